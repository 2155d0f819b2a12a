"""The curves of a training run, from the line an epoch that it leaves (`metrics.jsonl`)."""

import json
from dataclasses import dataclass
from typing import Any

from mnerqg.errors import DataError
from mnerqg.io import storage

METRICS_FILE = "metrics.jsonl"

_LOSSES = {
    "loss": "joint loss",
    "loss_grounding": "query grounding (QG)",
    "loss_existence": "existence (ED)",
    "loss_spans": "spans (ESP)",
}
_BALANCE = {"balance": "at the end of the epoch", "mean_balance": "mean of the epoch"}
_SCORES = {
    "f1": "entity F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy_50": "Accu@0.5",
    "gmner_f1": "GMNER F1",
    "f1_shuffled": "entity F1, shuffled pictures",
    "f1_none": "entity F1, no pictures",
}
_RATE = "learning_rate_"


@dataclass(frozen=True)
class Chart:
    """Lines over epochs; a value is None where the epoch does not say it."""

    id: str
    title: str
    percent: bool
    lines: dict[str, list[float | None]]


@dataclass(frozen=True)
class Training:
    """A training run as far as it has come."""

    uri: str
    epochs: list[int]
    charts: list[Chart]


def read_training(uri: str) -> Training:
    """The run at `uri`, or the one that the model directory at `uri` (its `best`, `last`) belongs to.

    Raises:
        StorageError: it cannot be read.
        DataError: there is no metrics.jsonl, or it is not what a training run writes.
    """
    uri = storage.absolute(uri).rstrip("/")
    for folder in (uri, uri.rpartition("/")[0]):
        place = storage.join(folder, METRICS_FILE) if folder else ""
        if place and storage.exists(place):
            records = _records(place, storage.read_text(place))
            return Training(folder, [record["epoch"] for record in records], _charts(records))
    raise DataError(f"--model {uri} holds no {METRICS_FILE}; give the --output of jobs/train.py")


def _records(place: str, text: str) -> list[dict[str, Any]]:
    try:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
        if records and all(isinstance(record["epoch"], int) for record in records):
            return records
    except (ValueError, TypeError, KeyError):
        pass
    raise DataError(f"{place} is not what jobs/train.py writes: a JSON object with an epoch on every line")


def _charts(records: list[dict[str, Any]]) -> list[Chart]:
    keys = list(dict.fromkeys(key for record in records for key in record))
    rates = {key: key.removeprefix(_RATE) for key in keys if key.startswith(_RATE)}
    types = {
        key: f"F1 {key.removeprefix('f1_')}" for key in keys if key.startswith("f1_") and key not in _SCORES
    }
    asked = [
        ("losses", "Losses", False, _LOSSES),
        ("balance", "Balance ω_f of the grounding loss", False, _BALANCE),
        ("rates", "Learning rates at the end of the epoch", False, rates),
        ("scores", "Scores on valid", True, _SCORES),
        ("types", "F1 a type on valid", True, types),
    ]
    charts = []
    for name, title, percent, lines in asked:
        values = {label: [_number(record.get(key)) for record in records] for key, label in lines.items()}
        shown = {label: line for label, line in values.items() if any(value is not None for value in line)}
        if shown:
            charts.append(Chart(name, title, percent, shown))
    return charts


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON lines may hold NaN."""
    is_number = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    return float(value) if is_number else None
