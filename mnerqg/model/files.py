"""A model directory is the model: nothing else is needed to load it, no hub and no training data.

    model.json           format version, model_id; written last, so a half-written directory is never a model
    model.safetensors    all weights
    config.yaml          the whole configuration
    queries.yaml         the queries it was trained with
    encoder/             config and tokenizer files of the text encoder
    metrics.json         what it scored, where known

`model_id` is a digest of weights, config, queries and the encoder's files, of all that decides what the model
answers, and is checked on loading.

Nothing here imports torch, which takes seconds: drivers look at a model directory without loading the model.
"""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mnerqg.config import Config
from mnerqg.config_files import load_config
from mnerqg.errors import ModelError
from mnerqg.inputs.text import TextEncoderSource
from mnerqg.io import storage
from mnerqg.io.downloads import download_directory
from mnerqg.queries import EntityQuery, dump_queries, parse_queries

FORMAT_VERSION = 5
MANIFEST_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
QUERIES_FILE = "queries.yaml"
ENCODER_FOLDER = "encoder"
TOKENIZER_FILE = "tokenizer.json"
METRICS_FILE = "metrics.json"
BEST_FOLDER = "best"
"""Of a training run: the model of its best epoch."""
_DIGESTED = (WEIGHTS_FILE, CONFIG_FILE, QUERIES_FILE)


@dataclass(frozen=True)
class ModelFiles:
    """A model directory that has been found complete and undamaged; its weights are not loaded."""

    directory: Path
    config: Config
    queries: tuple[EntityQuery, ...]
    model_id: str

    @property
    def text_encoder(self) -> TextEncoderSource:
        """What its texts are read with."""
        tokenizer = (self.directory / ENCODER_FOLDER / TOKENIZER_FILE).read_text(encoding="utf-8")
        return TextEncoderSource(tokenizer, self.queries, self.config.model.max_length)


def check_model(uri: str, asked: tuple[EntityQuery, ...] | None = None) -> ModelFiles:
    """Read everything of a model directory, local or remote, but build no network.

    With `asked` its queries are those, in the place of its own, and the model_id is the one that belongs to them.

    Raises:
        ModelError: a file missing or damaged, another format version, or queries that it cannot be asked.
        StorageError: the URI cannot be read.
    """
    if not is_model(uri) and is_model(best := storage.join(uri, BEST_FOLDER)):
        raise ModelError(f"{uri} is a training run, and no model; give one of its models, such as {best}")
    directory = download_directory(uri)
    for name in (
        MANIFEST_FILE,
        *_DIGESTED,
        f"{ENCODER_FOLDER}/config.json",
        f"{ENCODER_FOLDER}/{TOKENIZER_FILE}",
    ):
        if not (directory / name).is_file():
            raise ModelError(
                f"{uri} is not a complete model directory: {name} is missing; copy it again whole"
            )
    model_id = _check_manifest(uri, directory)
    config = load_config(
        Config, (directory / CONFIG_FILE).read_text(encoding="utf-8"), source=f"{uri}/{CONFIG_FILE}"
    )
    queries = parse_queries(
        (directory / QUERIES_FILE).read_text(encoding="utf-8"), source=f"{uri}/{QUERIES_FILE}"
    )
    files = ModelFiles(directory, config, queries, model_id)
    return files if asked is None or asked == queries else _ask(files, asked, uri)


def is_model(uri: str) -> bool:
    """Whether a complete model directory lies at `uri`."""
    return storage.exists(storage.join(uri, MANIFEST_FILE))


def publish_model(directory: Path, uri: str) -> None:
    """Copy the model of a directory to `uri`, the manifest last; what was there before stops being a model first.

    A training state that lies beside the model is not copied.
    """
    storage.delete_directory(uri)
    metrics = [METRICS_FILE] if (directory / METRICS_FILE).is_file() else []
    for name in (*_DIGESTED, *_encoder_files(directory), *metrics, MANIFEST_FILE):
        storage.write_bytes(storage.join(uri, name), (directory / name).read_bytes())


def _check_manifest(uri: str, directory: Path) -> str:
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
        version, model_id = manifest["format_version"], manifest["model_id"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{uri}/{MANIFEST_FILE} is damaged; copy the model directory again") from None
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{uri} has format version {version}; this release reads version {FORMAT_VERSION}: "
            "train again or install the release that wrote it"
        )
    found = digest(directory)
    if found != model_id:
        raise ModelError(
            f"{uri} is damaged: its files have the digest {found}, {MANIFEST_FILE} says {model_id}; copy it again"
        )
    return str(model_id)


def digest(directory: Path) -> str:
    """The model_id that belongs to the files of a model directory."""
    digest = hashlib.sha256()
    for name in (*_DIGESTED, *_encoder_files(directory)):
        # Names count, too: the encoder's files are whatever its tokenizer is made of.
        digest.update(hashlib.sha256(os.fsencode(name)).digest())
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _encoder_files(directory: Path) -> list[str]:
    files = (path for path in (directory / ENCODER_FOLDER).rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in files)


def _ask(files: ModelFiles, queries: tuple[EntityQuery, ...], uri: str) -> ModelFiles:
    """Raises ModelError where the model is a baseline, which cannot be asked, or a query is too long for it."""
    if files.config.model.tagger != "mrc":
        raise ModelError(
            f"{uri} labels words (model.tagger is {files.config.model.tagger}) and cannot be asked other queries; "
            "leave queries out"
        )
    asked = replace(files, queries=queries)
    asked.text_encoder.make()  # do they fit?
    text = f"{files.model_id}\n{dump_queries(queries)}"
    return replace(asked, model_id=hashlib.sha256(text.encode()).hexdigest()[:16])
