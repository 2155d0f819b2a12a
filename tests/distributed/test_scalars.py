"""Scalars for TensorBoard, read back as TensorBoard does."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnerqg.distributed import scalars
from mnerqg.distributed.scalars import check_tensorboard, write_scalars
from mnerqg.errors import ConfigError
from mnerqg.io import storage


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 1 / epoch,
        "balance": 0.5,
        "learning_rate_heads": 1e-4,
        "f1": epoch / 10,
        "note": "text",
        "train_seconds": 60.0,
        "waited_seconds": 1.5,
        "valid_seconds": 2.0,
    }


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_epoch_once_however_often_it_is_written(tmp_path: Path) -> None:
    history = [record(1)]
    write_scalars(history, str(tmp_path))
    history.append(record(2))
    write_scalars(history, str(tmp_path))
    folder = tmp_path / "tensorboard"
    found = read(folder)
    assert found.keys() == {
        *("train/loss", "train/balance", "train/learning_rate_heads"),
        *("valid/f1", "run/train_seconds", "run/waited_seconds", "run/valid_seconds"),
    }
    assert found["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert found["valid/f1"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2))]
    first, second = EventAccumulator(str(folder)).Reload().Scalars("valid/f1")
    assert second.wall_time - first.wall_time == pytest.approx(62, abs=1)


def test_to_s3(s3_bucket: str, tmp_path: Path) -> None:
    write_scalars([record(1)], f"{s3_bucket}/run")
    (entry,) = storage.list_files(f"{s3_bucket}/run/tensorboard")
    (tmp_path / entry.uri.rpartition("/")[2]).write_bytes(storage.read_bytes(entry.uri))
    assert read(tmp_path)["train/loss"] == [(1, 1.0)]


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    monkeypatch.setattr(scalars, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"pip install 'mnerqg\[tensorboard\]'"):
        check_tensorboard()
