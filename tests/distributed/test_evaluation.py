"""What is made of the counts of scored posts; that each post is scored once stands in tests/jobs/test_evaluate.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from mnerqg.config import Config
from mnerqg.datasets.prepared import write_split
from mnerqg.distributed.evaluation import (
    PER_POST_SCHEMA,
    _split_in_blocks,
    answered,
    per_post_table,
    write_per_post,
)
from mnerqg.schema import Box, Entity, Post, Region, Span
from mnerqg.scoring.metrics import MICRO, Counts

TYPES = ("PER", "LOC")
ENTITIES = {"precision", "recall", "f1", "f1_PER", "f1_LOC"}
BOXES = {"accuracy_50", "accuracy_75", "mean_iou"}
BOTH = {"gmner_f1", "gmner_all_f1"}


def counts_of(number: int) -> Counts:
    """Of a post with two entities and a box, some of which are found."""
    counts = Counts(TYPES)
    spans = (Span(0, 3, "PER"), Span(11, 15, "LOC"))
    post = Post(str(number), "Ada visits Oslo", None, spans, (Box("PER", 0, 0, 10, 10),), True)
    found = [Entity("Ada", 0, 3, "PER", 0.9), Entity("Oslo", 11, 15, "LOC", 0.9)][number % 3 :]
    region = Region("PER", 0, 0, 10, 10 - number % 8, 0.9)
    counts.add_post(post, found, [region], [region] if number % 2 else [])
    return counts


def test_the_columns_are_those_of_the_counts() -> None:
    posts = [(str(number), counts_of(number)) for number in range(20)]
    table = per_post_table(posts[::-1])
    assert table.schema == PER_POST_SCHEMA
    assert table["post_id"].to_pylist() == sorted(name for name, _ in posts for _ in TYPES)

    total = {name: pc.sum(table[name]).as_py() for name in PER_POST_SCHEMA.names[2:]}
    scores = sum((counts for _, counts in posts), Counts(TYPES)).scores()
    for score, above, below in (
        ("precision", total["correct"], total["predicted"]),
        ("recall", total["correct"], total["gold"]),
        ("f1", 2 * total["correct"], total["predicted"] + total["gold"]),
        ("accuracy_50", total["iou_50"], total["grounded"]),
        ("accuracy_75", total["iou_75"], total["grounded"]),
        ("mean_iou", total["iou_millionths"] / MICRO, total["grounded"]),
        ("gmner_f1", 2 * total["gmner_correct"], total["gmner_predicted"] + total["gmner_gold"]),
        (
            "gmner_all_f1",
            2 * total["gmner_all_correct"],
            total["gmner_all_predicted"] + total["gmner_all_gold"],
        ),
    ):
        assert above > 0
        assert scores[score] == pytest.approx(above / below)
    assert (total["gold"], total["grounded"]) == (scores["entities"], scores["grounded_queries"])
    of_type = table.filter(pc.field("type") == "LOC")
    assert pc.sum(of_type["correct"]).as_py() == sum(int(np.sum(counts.values[1, 0])) for _, counts in posts)


def test_no_posts_are_a_table_too(tmp_path: object) -> None:
    assert per_post_table([]).schema == PER_POST_SCHEMA
    write_per_post(f"{tmp_path}/posts.parquet", per_post_table([]))
    assert pq.read_schema(f"{tmp_path}/posts.parquet") == PER_POST_SCHEMA


def test_the_posts_of_one_file_are_blocks_for_several_actors_in_their_order(
    ray_cluster: None, tmp_path: Path
) -> None:
    posts = [Post(str(number), f"post {number}") for number in range(20)]
    write_split(posts, str(tmp_path / "valid"), rows_per_file=20)
    blocks = ray.get(_split_in_blocks(str(tmp_path), "valid", 8).to_arrow_refs())
    assert [block.num_rows for block in blocks] == [8, 8, 4]
    assert [name for block in blocks for name in block["post_id"].to_pylist()] == [
        post.post_id for post in posts
    ]


@pytest.mark.parametrize(
    ("config", "unanswered"),
    [
        ({}, set()),
        ({"loss": {"existence_weight": 0}}, set()),
        ({"loss": {"grounding_weight": 0}}, BOXES | BOTH),
        ({"model": {"grounding": False}}, BOXES | BOTH),
        ({"model": {"inputs": "text", "grounding": False}}, BOXES | BOTH),
        ({"model": {"inputs": "text", "grounding": False, "tagger": "crf"}}, BOXES | BOTH),
        ({"model": {"inputs": "picture"}}, ENTITIES | BOTH),
    ],
)
def test_what_a_model_never_answers_is_none(config: dict[str, Any], unanswered: set[str]) -> None:
    scores = counts_of(1).scores()
    found = answered(scores, Config.model_validate(config))
    assert {name for name, value in found.items() if value is None} == unanswered
    assert {name: scores[name] for name in scores if name not in unanswered} == {
        name: value for name, value in found.items() if value is not None
    }
