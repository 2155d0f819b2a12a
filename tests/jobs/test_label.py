"""jobs/label.py: what it prints. The labelling itself: tests/distributed/test_labelling.py."""

from pathlib import Path

import pytest

from jobs.label import format_labels, main
from mnerqg.errors import ConfigError, DataError, ModelError
from tests.tiny_training import write_dataset


def test_what_is_wrong_is_named_before_any_cluster(
    no_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data", train=2, valid=1)
    given = {"--model": str(tiny_model), "--data": str(tmp_path / "data"), "--output": str(tmp_path / "out")}
    queries = tmp_path / "queries.yaml"
    queries.write_text("- {type: Product, query: a product}\n")
    for changes, error, words in (
        ({"--model": str(tmp_path)}, ModelError, "not a complete model directory"),
        (
            {"--data": str(tmp_path / "none")},
            DataError,
            r"none has no split \(train, valid, test\); give a prepared",
        ),
        (
            {"--queries": str(queries)},
            ConfigError,
            "the model answers Product, but the posts of .* name LOC, PER",
        ),
    ):
        with pytest.raises(error, match=words):
            main([part for pair in (given | changes).items() for part in pair])
    assert not (tmp_path / "out").exists()


def test_a_column_a_split() -> None:
    found = {
        "posts": 1200,
        "named": 30,
        "learned": 20,
        "grounded_queries": 8,
        "accuracy_50": 0.5,
        "mean_iou": 0.25,
    }
    splits = {
        "train": {**found, "weak_boxes": {"PER": 1000, "LOC": 2}},
        "valid": {**found, "weak_boxes": {"ORG": 1}},
    }
    labels = {"model_id": "abc", "dataset": "prepared", "splits": splits}
    assert format_labels(labels).splitlines() == [
        "weak boxes of the model abc for prepared",
        "                                      train  valid",
        "  posts                               1,200  1,200",
        "  boxes LOC                               2      0",
        "  boxes ORG                               0      1",
        "  boxes PER                           1,000      0",
        "  boxes of types that the text names     30     30",
        "    sure enough to be learned from       20     20",
        "  manual boxes to compare with            8      8",
        "    Accu@0.5                          50.00  50.00",
        "    mean IoU                          25.00  25.00",
    ]
