import json
from pathlib import Path

import pytest

from mnerqg.errors import DataError
from mnerqg.report.training import read_training
from tests.noisy_tags import write_training


def test_curves(tmp_path: Path) -> None:
    training = read_training(str(write_training(tmp_path / "run", epochs=3)))
    assert training.epochs == [1, 2, 3]
    assert [chart.id for chart in training.charts] == ["losses", "balance", "rates", "scores", "types"]
    rates = training.charts[2]
    assert list(rates.lines) == ["encoder", "heads"]
    assert training.charts[3].lines["entity F1, no pictures"] == [None, None, 0.4]
    assert list(training.charts[4].lines) == ["F1 PER", "F1 LOC", "F1 ORG", "F1 OTHER"]


def test_a_model_of_the_run_names_the_run(tmp_path: Path) -> None:
    write_training(tmp_path / "run")
    (tmp_path / "run" / "best").mkdir()
    assert read_training(str(tmp_path / "run" / "best")).uri == str(tmp_path / "run")


def test_what_an_epoch_does_not_say(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "loss": 2.0, "f1": None}, {"epoch": 2, "loss": float("nan"), "f1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    losses, scores = read_training(str(tmp_path)).charts
    assert losses.lines == {"joint loss": [2.0, None]}
    assert scores.lines == {"entity F1": [None, 0.5]}


@pytest.mark.parametrize("text", ["", "{", "[1]\n", '{"loss": 1}\n', "null\n"])
def test_no_metrics(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"is not what jobs/train.py writes"):
        read_training(str(tmp_path))
    with pytest.raises(DataError, match=r"holds no metrics.jsonl; give the --output of jobs/train.py"):
        read_training(str(tmp_path / "elsewhere" / "deep"))
