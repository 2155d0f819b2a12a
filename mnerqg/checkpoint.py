"""A model directory is the model: nothing else is needed to load it, no hub and no training data.

    model.json           format version, model_id; written last, so a half-written directory is never a model
    model.safetensors    all weights
    config.yaml          the whole configuration
    queries.yaml         the queries it was trained with
    encoder/             config and tokenizer files of the text encoder
    metrics.json         what it scored, where known

`model_id` is a digest of weights, config and queries, and is checked on loading.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mnerqg import storage
from mnerqg.config import Config, dump_config, load_config
from mnerqg.data.text import TextEncoder, load_tokenizer
from mnerqg.errors import ModelError
from mnerqg.model.build import build_empty
from mnerqg.model.mnerqg import MNERQG
from mnerqg.queries import EntityQuery, dump_queries, parse_queries

FORMAT_VERSION = 1
_MANIFEST = "model.json"
WEIGHTS_FILE = "model.safetensors"
_CONFIG = "config.yaml"
_QUERIES = "queries.yaml"
_ENCODER = "encoder"
_METRICS = "metrics.json"
_DIGESTED = (WEIGHTS_FILE, _CONFIG, _QUERIES)


@dataclass(frozen=True)
class ModelDirectory:
    """What a model directory holds; the model is on the CPU in eval mode."""

    model: MNERQG
    text_encoder: TextEncoder
    config: Config
    model_id: str


def save_model(
    directory: Path,
    *,
    model: MNERQG,
    text_encoder: TextEncoder,
    config: Config,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write a model directory and return its model_id."""
    directory.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    safetensors.torch.save_file(weights, directory / WEIGHTS_FILE)
    (directory / _CONFIG).write_text(dump_config(config), encoding="utf-8")
    (directory / _QUERIES).write_text(dump_queries(text_encoder.queries), encoding="utf-8")
    encoder = directory / _ENCODER
    text_encoder.save(encoder)
    model.text.encoder.config.save_pretrained(encoder)  # type: ignore[union-attr,operator]
    (directory / _METRICS).write_text(json.dumps(dict(metrics or {}), indent=2) + "\n", encoding="utf-8")
    model_id = _digest(directory)
    manifest = {"format_version": FORMAT_VERSION, "model_id": model_id}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return model_id


def publish_model(directory: Path, uri: str) -> None:
    """Copy a model directory to `uri`, the manifest last; what was there before stops being a model first."""
    storage.delete_directory(uri)
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != _MANIFEST:
            storage.write_bytes(storage.join(uri, path.relative_to(directory).as_posix()), path.read_bytes())
    storage.write_bytes(storage.join(uri, _MANIFEST), (directory / _MANIFEST).read_bytes())


@dataclass(frozen=True)
class ModelFiles:
    """A model directory that has been found complete and undamaged; its weights are not loaded."""

    directory: Path
    config: Config
    queries: tuple[EntityQuery, ...]
    model_id: str


def check_model(uri: str) -> ModelFiles:
    """Read everything of a model directory, local or remote, but build no network.

    Raises:
        ModelError: a file missing or damaged, or another format version.
        StorageError: the URI cannot be read.
    """
    directory = storage.download_directory(uri)
    for name in (_MANIFEST, *_DIGESTED, f"{_ENCODER}/config.json", f"{_ENCODER}/tokenizer.json"):
        if not (directory / name).is_file():
            raise ModelError(
                f"{uri} is not a complete model directory: {name} is missing; copy it again whole"
            )
    model_id = _check_manifest(uri, directory)
    config = load_config(Config, (directory / _CONFIG).read_text(encoding="utf-8"), source=f"{uri}/{_CONFIG}")
    queries = parse_queries((directory / _QUERIES).read_text(encoding="utf-8"), source=f"{uri}/{_QUERIES}")
    return ModelFiles(directory, config, queries, model_id)


def load_model(uri: str) -> ModelDirectory:
    """Load a model directory, local or remote.

    Raises:
        ModelError: a file missing or damaged, or another format version.
        StorageError: the URI cannot be read.
    """
    files = check_model(uri)
    text_encoder = TextEncoder(
        tokenizer=load_tokenizer(str(files.directory / _ENCODER)),
        queries=files.queries,
        max_length=files.config.model.max_length,
    )
    model = build_empty(files.config.model, files.directory / _ENCODER)
    load_weights(model, files.directory / WEIGHTS_FILE)
    return ModelDirectory(model.eval(), text_encoder, files.config, files.model_id)


def load_weights(model: MNERQG, path: Path) -> None:
    """Fill a model from a safetensors file.

    Raises:
        ModelError: damaged, or tensors missing, left over or of another shape.
    """
    try:
        weights = safetensors.torch.load_file(path)
        model.load_state_dict(weights)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{path.name} does not hold this model's weights: {' '.join(str(error).split())[:300]}"
        ) from None


def is_model(uri: str) -> bool:
    """Whether a complete model directory lies at `uri`."""
    return storage.exists(storage.join(uri, _MANIFEST))


def _check_manifest(uri: str, directory: Path) -> str:
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        version, model_id = manifest["format_version"], manifest["model_id"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{uri}/{_MANIFEST} is damaged; copy the model directory again") from None
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{uri} has format version {version}; this release reads version {FORMAT_VERSION}: "
            "train again or install the release that wrote it"
        )
    found = _digest(directory)
    if found != model_id:
        raise ModelError(
            f"{uri} is damaged: its files have the digest {found}, {_MANIFEST} says {model_id}; copy it again"
        )
    return str(model_id)


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for name in _DIGESTED:
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def save_training_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what resuming needs beside the weights."""
    torch.save(dict(state), path)


def load_training_state(path: Path) -> dict[str, object]:
    """Read it back; tensors and plain values only, never arbitrary pickles."""
    state: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return state
