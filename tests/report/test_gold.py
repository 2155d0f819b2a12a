from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from mnerqg.datasets.prepared import write_split
from mnerqg.errors import DataError
from mnerqg.report.gold import NOTHING, Gold, judge
from mnerqg.schema import Box, Entity, Post, Region, Span, tags_schema

TEXT = "Ada Lovelace of Rome met Bo"
ADA, ROME, BO = Span(0, 12, "PER"), Span(16, 20, "LOC"), Span(25, 27, "PER")


def entity(start: int, end: int, kind: str, region: int | None = None) -> Entity:
    return Entity(TEXT[start:end], start, end, kind, 0.9, region)


def test_each_entity_has_its_verdict() -> None:
    post = Post("1", TEXT, entities=(ADA, ROME, BO))
    found = [entity(0, 12, "PER"), entity(16, 20, "ORG"), entity(13, 15, "LOC"), entity(21, 27, "PER")]
    judged = judge(post, found, [])
    assert judged.entities == ("right", "type", "false", "span")
    assert judged.missed == (1, 2)
    assert judged.confusion == Counter({("PER", "PER"): 2, ("LOC", "ORG"): 1, (NOTHING, "LOC"): 1})
    assert judged.labels == {"right", "false", "missed"}
    assert judged.faults == 5


def test_nothing_found_and_nothing_there() -> None:
    judged = judge(Post("1", TEXT, entities=(ADA,)), [], [])
    assert (judged.missed, judged.confusion) == ((0,), {("PER", NOTHING): 1})
    judged = judge(Post("1", TEXT), [entity(0, 3, "PER"), entity(0, 12, "PER")], [])
    assert judged.entities == ("false", "false")
    assert judged.confusion == {(NOTHING, "PER"): 2}
    # An overlapping one beside the right one stands for nothing more.
    judged = judge(Post("1", TEXT, entities=(ADA,)), [entity(0, 3, "PER"), entity(0, 12, "PER")], [])
    assert judged.entities == ("false", "right")
    assert judged.missed == ()


def test_boxes() -> None:
    gold = (Box("PER", 0, 0, 10, 10), Box("LOC", 0, 0, 10, 10), Box("ORG", 0, 0, 9, 9, source="weak"))
    post = Post("1", TEXT, b"", boxes=gold, boxes_annotated=True)
    regions = [
        Region("PER", 0, 0, 10, 8, 0.9),
        Region("PER", 50, 50, 60, 60, 0.9),
        Region("ORG", 0, 0, 9, 9, 0.9),
        Region("LOC", 0, 0, 10, 10, 0.9, image_index=1),
    ]
    judged = judge(post, [], regions)
    assert judged.ious == (pytest.approx(0.8), 0.0, 0.0, None)
    assert judged.missed_boxes == (1,)
    assert judged.labels == {"box right", "box wrong", "box missed"}
    nobody_looked = judge(Post("1", TEXT, b"", boxes=gold[:1]), [], regions)
    assert (set(nobody_looked.ious), nobody_looked.missed_boxes) == ({None}, ())


def test_scores_over_batches(tmp_path: Path) -> None:
    posts = [
        Post("a", TEXT, None, (ADA, ROME), (Box("PER", 0, 0, 10, 10),), boxes_annotated=True),
        Post("b", TEXT, None, (BO,)),
        Post("never tagged", TEXT, None, (BO,)),
    ]
    write_split(posts, str(tmp_path / "test"))
    gold = Gold.read(str(tmp_path), "test")
    with pytest.raises(
        DataError, match=r"none of the posts of --data .* is in --tags T; tag the split itself"
    ):
        gold.check("T")
    named = {"text": "x", "score": 0.9, "region": None}
    rows = [
        {
            "post_id": "a",
            "entities": [named | {"start": 0, "end": 12, "type": "PER"}],
            "regions": [
                {
                    "type": "PER",
                    "x_min": 0,
                    "y_min": 0,
                    "x_max": 10,
                    "y_max": 10,
                    "score": 0.9,
                    "image_index": 0,
                }
            ],
        },
        {"post_id": "elsewhere", "entities": [], "regions": []},
        {"post_id": "b", "entities": [named | {"start": 0, "end": 3, "type": "ORG"}], "regions": []},
        {"post_id": "a", "entities": [], "regions": []},
    ]
    strata = gold.strata(pa.RecordBatch.from_pylist(rows, schema=tags_schema()))
    gold.check("T")
    assert gold.judged == {"a", "b"}
    assert strata["gold missed"].tolist() == [True, False, True, False]
    assert strata["gold right"].tolist() == [True, False, False, False]
    scores = gold.scores()
    assert list(scores) == ["all", "PER", "LOC", "ORG"]
    assert scores["all"]["precision"] == 0.5
    assert scores["all"]["recall"] == pytest.approx(1 / 3)
    assert scores["PER"]["accuracy_50"] == 1.0
    assert scores["LOC"]["f1"] == 0.0
    with pytest.raises(DataError, match="holds no Parquet files"):
        Gold.read(str(tmp_path), "valid")
