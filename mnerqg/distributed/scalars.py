"""The figures of a training for TensorBoard, beside `metrics.jsonl`."""

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnerqg.errors import ConfigError
from mnerqg.io import storage

_FOLDER = "tensorboard"
_FILE = "events.out.tfevents.0.mnerqg"  # TensorBoard looks for "tfevents"


def check_tensorboard() -> None:
    """Raises ConfigError where the package that writes them is not there."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard is true, but the package tensorboard is not installed; pip install "
            "'mnerqg[tensorboard]', or leave it false"
        )


def write_scalars(history: Sequence[Mapping[str, Any]], output: str) -> None:
    """Write all epochs as one file, over that of the epoch before: a run that goes on has none of them twice.

    Args:
        history: a record an epoch, as in metrics.jsonl. What was measured on the validation posts, and what was learned
            from, become groups of their own.
        output: URI of the run's folder.

    Raises:
        StorageError: it cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    left = [_seconds(record) for record in history]
    with TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for place, record in enumerate(history):
            ended = time.time() - sum(left[place + 1 :])
            for name, value in record.items():
                if isinstance(value, int | float) and name != "epoch":
                    writer.add_scalar(f"{_group(name)}/{name}", value, record["epoch"], walltime=ended)
        writer.close()
        (file,) = Path(folder).iterdir()
        storage.write_bytes(storage.join(output, _FOLDER, _FILE), file.read_bytes())


def _seconds(record: Mapping[str, Any]) -> float:
    return float(record["train_seconds"] + record["valid_seconds"])


def _group(name: str) -> str:
    if name.endswith("_seconds") or name == "workers":
        return "run"
    is_trained = name.startswith(("loss", "learning_rate_")) or name in (
        "balance",
        "mean_balance",
        "gradient_norm",
    )
    return "train" if is_trained else "valid"
