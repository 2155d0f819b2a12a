from typing import Any

import pyarrow as pa
import pytest

from mnerqg.report.summary import BINS, FrequentNames, Summary, differences, ordered_types
from mnerqg.schema import tags_schema


def row(number: int, **changed: Any) -> dict[str, Any]:
    named = {"text": "Ada", "start": 0, "end": 3, "type": "PER", "score": 0.93, "region": None}
    base = {
        "post_id": str(number),
        "entities": [named],
        "regions": [],
        "image_status": "ok",
        "text_status": "ok",
        "retryable": False,
        "row_hash": number,
    }
    return base | changed


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=tags_schema())


def test_counts_scores_names_and_strata() -> None:
    summary = Summary()
    place = {"text": "Rome", "start": 0, "end": 4, "type": "LOC", "score": 0.1, "region": None}
    region = {"type": "LOC", "score": 1.0, "image_index": 0}
    strata, failures = summary.add(
        batch(
            row(5),
            row(6, entities=[place, place], regions=[region]),
            row(
                7,
                entities=[],
                image_status="missing",
                error="503 after 4 attempts; picture 3: 404",
                retryable=True,
            ),
            row(2, entities=[], image_status="missing", error="503 after 6 attempts"),
        )
    )
    assert summary.types == ["PER", "LOC"]
    assert (summary.counts.rows, summary.counts.errors, summary.counts.row_hashes) == (4, 2, [])
    assert summary.tagged == {"PER": 1, "LOC": 1}
    assert summary.names["LOC"].top(5) == [("Rome", 2)]
    assert summary.entity_scores["PER"].tolist() == [0] * (BINS - 2) + [1, 0]
    assert summary.entity_scores["LOC"][2] == 2
    assert summary.region_scores["LOC"][-1] == 1
    assert summary.mean_scores == {"PER": pytest.approx(0.93), "LOC": pytest.approx(0.1)}
    assert summary.reasons == [("503 after N attempts", 2), ("404", 1)]
    assert summary.examples == {"503 after N attempts": 2, "404": 7}
    assert {name: mask.tolist() for name, mask in strata.items()} == {
        "type PER": [True, False, False, False],
        "type LOC": [False, True, False, False],
        "no entity": [False, False, True, True],
    }
    assert {name: mask.tolist() for name, mask in failures.items()} == {
        "image_status missing": [False, False, True, True],
        "reason 503 after N attempts": [False, False, True, True],
        "reason 404": [False, False, True, False],
    }


def test_names_are_counted_in_bounded_memory() -> None:
    names = FrequentNames(most=20)
    for number in range(2_000):
        names.add("often", 1)
        names.add(f"once {number}", 1)
        assert len(names.counts) <= 20
    assert names.top(1) == [("often", 2_000)]
    assert names.lost >= 1


def test_two_nights() -> None:
    before, after = Summary(), Summary()
    before.add(batch(row(1), row(2)))
    after.add(batch(row(1), row(2, entities=[]), row(3, entities=[], image_status="missing", error="404")))
    groups = {group["name"]: group["rows"] for group in differences(before, after)}
    assert list(groups) == ["volume", "entities", "pictures", "texts", "failures"]
    assert groups["volume"] == [
        {"name": "posts", "before": 2, "after": 3, "rate_before": 100.0, "rate_after": 100.0}
    ]
    assert groups["entities"][0]["rate_before"] == 100.0
    assert groups["entities"][0]["rate_after"] == pytest.approx(100 / 3)
    assert groups["failures"][0] == {
        "name": "404", "before": 0, "after": 1, "rate_before": 0.0, "rate_after": pytest.approx(100 / 3),
    }  # fmt: skip


def test_a_reason_that_is_rare_in_one_night_is_not_none() -> None:
    """Only the twenty most frequent ones of each night are shown."""
    before, after = Summary(), Summary()
    common = [row(number, error=f"reason {chr(97 + number % 20)}") for number in range(40)]
    before.add(batch(*common, row(99, error="timeout")))
    after.add(batch(*(row(number, error="timeout") for number in range(3))))
    (failures,) = (group["rows"] for group in differences(before, after) if group["name"] == "failures")
    (timeout,) = (one for one in failures if one["name"] == "timeout")
    assert (timeout["before"], timeout["after"]) == (1, 3)


def test_the_papers_types_come_first() -> None:
    assert ordered_types(["Zebra", "OTHER", "PER", "Apple", "PER"]) == ["PER", "OTHER", "Apple", "Zebra"]
