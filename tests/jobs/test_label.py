"""jobs/label.py: what it prints. The labelling itself: tests/distributed/test_labelling.py."""

from jobs.label import format_labels


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
