"""Writing and loading models and training states; what a model directory holds stands in `model.files`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mnerqg.config import Config
from mnerqg.config_files import dump_config
from mnerqg.errors import ModelError, one_line
from mnerqg.inputs.text import TextEncoder, load_tokenizer
from mnerqg.model.build import Network, build_empty
from mnerqg.model.files import (
    CONFIG_FILE,
    ENCODER_FOLDER,
    FORMAT_VERSION,
    MANIFEST_FILE,
    METRICS_FILE,
    QUERIES_FILE,
    WEIGHTS_FILE,
    ModelFiles,
    check_model,
    digest,
)
from mnerqg.queries import EntityQuery, dump_queries


@dataclass(frozen=True)
class ModelDirectory:
    """What a model directory holds; the model is on the CPU in eval mode."""

    model: Network
    text_encoder: TextEncoder
    config: Config
    model_id: str


def save_model(
    directory: Path,
    *,
    model: Network,
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
    (directory / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    (directory / QUERIES_FILE).write_text(dump_queries(text_encoder.queries), encoding="utf-8")
    encoder = directory / ENCODER_FOLDER
    text_encoder.save(encoder)
    model.encoder.config.save_pretrained(encoder)  # type: ignore[union-attr,operator]
    (directory / METRICS_FILE).write_text(json.dumps(dict(metrics or {}), indent=2) + "\n", encoding="utf-8")
    model_id = digest(directory)
    manifest = {"format_version": FORMAT_VERSION, "model_id": model_id}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return model_id


def load_model(uri: str, queries: tuple[EntityQuery, ...] | None = None) -> ModelDirectory:
    """Load a model directory, local or remote, to be asked its own queries or others.

    Raises:
        ModelError: a file missing or damaged, another format version, or queries that it cannot be asked.
        StorageError: the URI cannot be read.
    """
    return read_model(check_model(uri, queries))


def read_model(files: ModelFiles) -> ModelDirectory:
    """Load a model directory that has been checked.

    Its weights are mapped from their file and read when they are needed: who keeps the model, and the file may be
    written over meanwhile, copies them.

    Raises:
        ModelError: weights or encoder are not those of the configuration.
    """
    text_encoder = TextEncoder(
        tokenizer=load_tokenizer(str(files.directory / ENCODER_FOLDER)),
        queries=files.queries,
        max_length=files.config.model.max_length,
    )
    model = build_empty(files.config.model, files.directory / ENCODER_FOLDER, len(files.queries))
    load_weights(model, files.directory / WEIGHTS_FILE, mapped=True)
    return ModelDirectory(model.eval(), text_encoder, files.config, files.model_id)


def load_weights(model: Network, path: Path, *, mapped: bool = False) -> None:
    """Fill a model from a safetensors file; `mapped`: with the tensors of the file itself in the place of copies.

    Raises:
        ModelError: damaged, or tensors missing, left over or of another shape.
    """
    try:
        weights = safetensors.torch.load_file(path)
        model.load_state_dict(weights, assign=mapped)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path.name} does not hold this model's weights: {one_line(error)}") from None


def start_weights(model: Network, uri: str) -> None:
    """Fill a network with the weights of a model directory of the same shape, to train on from there.

    Raises:
        ModelError: no complete model directory, or of another network.
        StorageError: the URI cannot be read.
    """
    files = check_model(uri)
    try:
        load_weights(model, files.directory / WEIGHTS_FILE)
    except ModelError as error:
        raise ModelError(f"train.start_from is {uri}, which is of another network: {error}") from None


def save_training_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what resuming needs beside the weights."""
    torch.save(dict(state), path)


def load_training_state(path: Path) -> dict[str, object]:
    """Read it back; tensors and plain values only, never arbitrary pickles."""
    state: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return state
