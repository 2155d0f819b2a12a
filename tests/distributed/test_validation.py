"""Which thresholds are chosen, of a model whose scores are given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mnerqg.config import Config, DecodeConfig
from mnerqg.datasets.prepared import write_split
from mnerqg.distributed.validation import ValidationPosts, validate
from mnerqg.schema import Box, Entity, Post, Region, Span, TaggedPost
from tests.builders import TYPES, photo, small_config

BOX, ELSEWHERE = (0.0, 0.0, 40.0, 40.0), (60.0, 40.0, 80.0, 60.0)


@dataclass
class Scripted:
    """Answers every post with what it is given: Ada, whom all texts name, "Oslo" as a person, and boxes of persons.

    sure, unsure: scores of the two entities.
    boxes: [id of the post] its boxes with their scores, the best one first.
    """

    config: Config
    boxes: dict[str, list[tuple[tuple[float, ...], float]]]
    sure: float = 0.9
    unsure: float = 0.01
    types = TYPES
    device = torch.device("cpu")

    def answers_at(self, posts: Sequence[Post], configs: Sequence[DecodeConfig]) -> list[list[TaggedPost]]:
        return [[self._answer(post, config) for post in posts] for config in configs]

    def _answer(self, post: Post, config: DecodeConfig) -> TaggedPost:
        found = Entity("Ada", 0, 3, "PER", self.sure), Entity("Oslo", 7, 11, "PER", self.unsure)
        entities = tuple(entity for entity in found if entity.score > config.span_threshold)
        regions = tuple(Region("PER", *box, score) for box, score in self.boxes.get(post.post_id, []))
        kept = tuple(region for region in regions if region.score >= config.region_threshold)
        return TaggedPost(entities, kept if config.regions == "several" else kept[:1], regions[:1])


def config_of(decode: dict[str, Any] | None = None, **model: Any) -> Config:
    return small_config(**model).model_copy(update={"decode": DecodeConfig(**decode or {})})


def valid_posts(folder: Path, *, boxed: Sequence[bool], annotated: bool = True) -> ValidationPosts:
    """Posts "0", "1" ... that name Ada, of whom those have a box that are said to have one."""
    posts = [
        Post(str(number), "Ada in Oslo", photo(), (Span(0, 3, "PER"),), boxes_annotated=annotated)
        for number in range(len(boxed))
    ]
    with_box = [
        replace(post, boxes=(Box("PER", *BOX),) * has) for post, has in zip(posts, boxed, strict=True)
    ]
    write_split(with_box, f"{folder}/valid")
    return ValidationPosts(str(folder), share=0, shares=1, limit=None)


@pytest.mark.parametrize("unsure", [0.01, 0.32, 0.93])
def test_of_equal_thresholds_of_spans_the_setting_stays(unsure: float, tmp_path: Path) -> None:
    posts = valid_posts(tmp_path, boxed=[True])
    config = config_of({"span_threshold": 0.37, "match_threshold": 0.41})
    _, decode = validate(Scripted(config, {}, unsure=unsure), posts, last=False)
    assert (decode.span_threshold, decode.match_threshold) == (0.37, 0.41)


def test_the_spans_with_the_best_f1(tmp_path: Path) -> None:
    """Ada needs a threshold below 0.33, Oslo one above 0.12: of 0.15 to 0.3 the nearest to 0.5 is taken."""
    posts = valid_posts(tmp_path, boxed=[True, False])
    found, decode = validate(Scripted(config_of(), {}, sure=0.33, unsure=0.12), posts, last=False)
    assert decode.span_threshold == decode.match_threshold == found["span_threshold"] == 0.3
    assert found["f1"] == 1


@pytest.mark.parametrize(
    ("right", "wrong", "chosen"),
    [(0.62, 0.35, 0.5), (0.62, 0.55, 0.6), (0.33, 0.12, 0.3), (0.95, 0.85, 0.9), (0.07, 0.01, 0.05)],
)
def test_the_regions_with_the_best_gmner(right: float, wrong: float, chosen: float, tmp_path: Path) -> None:
    """Of a post with a box and one without the first region is right and the second one wrong."""
    posts = valid_posts(tmp_path, boxed=[True, False])
    tagger = Scripted(config_of(), {"0": [(BOX, right)], "1": [(ELSEWHERE, wrong)]})
    found, decode = validate(tagger, posts, last=False)
    assert decode.region_threshold == found["region_threshold"] == chosen
    assert (found["gmner_f1"], found["accuracy_50"]) == (1, 1)


def test_of_several_regions_every_one_counts(tmp_path: Path) -> None:
    """The second box of a query is wrong, which the best one alone does not show."""
    posts = valid_posts(tmp_path, boxed=[True])
    boxes = {"0": [(BOX, 0.9), (ELSEWHERE, 0.35)]}
    for regions, chosen in (("one", 0.1), ("several", 0.4)):
        config = config_of({"regions": regions, "region_threshold": 0.1})
        _, decode = validate(Scripted(config, boxes), posts, last=False)
        assert decode.region_threshold == chosen


def test_without_annotated_boxes_the_threshold_of_regions_stays(tmp_path: Path) -> None:
    posts = valid_posts(tmp_path, boxed=[False, False], annotated=False)
    tagger = Scripted(config_of({"region_threshold": 0.37}), {"0": [(BOX, 0.6)], "1": [(BOX, 0.2)]})
    _, decode = validate(tagger, posts, last=False)
    assert decode.region_threshold == 0.37


@pytest.mark.parametrize(
    ("model", "fit", "fitted"),
    [
        ({}, True, {"span_threshold", "region_threshold"}),
        ({}, False, set()),
        ({"inputs": "text", "grounding": False}, True, {"span_threshold"}),
        ({"inputs": "picture"}, True, set()),
        ({"inputs": "text", "grounding": False, "tagger": "bio"}, True, set()),
    ],
)
def test_which_thresholds_are_fitted(
    model: dict[str, Any], fit: bool, fitted: set[str], tmp_path: Path
) -> None:
    """What is not fitted stays as it is set."""
    posts = valid_posts(tmp_path, boxed=[True])
    config = config_of({"span_threshold": 0.37, "match_threshold": 0.41, "region_threshold": 0.43}, **model)
    config = config.model_copy(update={"train": config.train.model_copy(update={"fit_thresholds": fit})})
    found, decode = validate(Scripted(config, {"0": [(BOX, 0.9)]}), posts, last=False)
    assert {name for name in ("span_threshold", "region_threshold") if name in found} == fitted
    own = config.decode
    if "span_threshold" not in fitted:
        assert (decode.span_threshold, decode.match_threshold) == (own.span_threshold, own.match_threshold)
    if "region_threshold" not in fitted:
        assert decode.region_threshold == own.region_threshold
