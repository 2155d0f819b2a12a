import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.schema import Box, Entity, Phrase, Post, Region, Span
from mnerqg.scoring.metrics import Counts

TYPES = ("PER", "LOC", "ORG")
corner = st.integers(0, 8)
size = st.integers(1, 8)
place = st.tuples(corner, corner, size, size).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
kind = st.sampled_from([*TYPES, "DISH"])
span = st.tuples(st.integers(0, 3), st.integers(4, 6), kind)


@st.composite
def scored_posts(draw: st.DrawFn) -> tuple[Post, list[Entity], list[Region], list[Region]]:
    gold = draw(st.lists(span, max_size=4, unique=True))
    boxes = draw(st.lists(st.tuples(kind, place), max_size=4))
    known = draw(st.booleans())
    post = Post(
        "p",
        "0123456789",
        entities=tuple(Span(*entry) for entry in gold),
        boxes=tuple(Box(entry, *corners) for entry, corners in boxes) if known else (),
        boxes_annotated=known,
    )
    answered = st.lists(span.filter(lambda entry: entry[2] != "DISH"), max_size=4, unique=True)
    entities = [Entity("0123456789"[a:b], a, b, c, 0.9) for a, b, c in draw(answered)]
    best = [Region(entry, *draw(place), 0.9) for entry in TYPES] if draw(st.booleans()) else []
    kept = [region for region in best if draw(st.booleans())]
    return post, entities, best, kept


def count(posts: list[tuple[Post, list[Entity], list[Region], list[Region]]]) -> Counts:
    counts = Counts(TYPES)
    for post in posts:
        counts.add_post(*post)
    return counts


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inner = max(width, 0) * max(height, 0)
    return inner / (
        (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inner
    )


def slow_scores(posts: list[tuple[Post, list[Entity], list[Region], list[Region]]]) -> dict[str, float]:
    gold, said, right = Counter[str](), Counter[str](), Counter[str]()
    overlaps: list[float] = []
    triples = Counter[str]()
    for post, entities, best, kept in posts:
        for one in post.entities:
            gold[one.type] += one.type in TYPES
        for entity in entities:
            said[entity.type] += 1
            correct = any(
                (g.start, g.end, g.type) == (entity.start, entity.end, entity.type) for g in post.entities
            )
            right[entity.type] += correct
            if post.boxes_annotated:
                triples["said"] += 1
                mine = [box.xyxy_px for box in post.boxes if box.type == entity.type]
                region = next((r.xyxy_px for r in kept if r.type == entity.type), None)
                near = region and any(iou(region, box) >= 0.5 - 1e-7 for box in mine)
                triples["right"] += correct and bool(near if region else not mine)
        if post.boxes_annotated:
            triples["gold"] += sum(one.type in TYPES for one in post.entities)
            for one in post.entities:
                mine = [box for box in post.boxes if box.type == one.type]
                triples["all gold"] += max(len(mine), 1) if one.type in TYPES else 0
            for entry in TYPES:
                mine = [box.xyxy_px for box in post.boxes if box.type == entry]
                region = next((r.xyxy_px for r in best if r.type == entry), None)
                if mine:
                    overlaps.append(max((iou(region, box) for box in mine), default=0) if region else 0)

    def f1(correct: int, answered: int, wanted: int) -> float:
        return 2 * correct / (answered + wanted) if correct else 0.0

    return {
        "precision": right.total() / max(said.total(), 1),
        "recall": right.total() / max(gold.total(), 1),
        "f1": f1(right.total(), said.total(), gold.total()),
        **{f"f1_{entry}": f1(right[entry], said[entry], gold[entry]) for entry in TYPES},
        "accuracy_50": sum(o >= 0.5 - 1e-7 for o in overlaps) / max(len(overlaps), 1),
        "accuracy_75": sum(o >= 0.75 - 1e-7 for o in overlaps) / max(len(overlaps), 1),
        "mean_iou": sum(overlaps) / max(len(overlaps), 1),
        "gmner_f1": f1(triples["right"], triples["said"], triples["gold"]),
        # With one region an entity, as here; several have a test of their own.
        "gmner_all_f1": f1(triples["right"], triples["said"], triples["all gold"]),
        "posts": len(posts),
        "entities": gold.total(),
        "grounded_queries": len(overlaps),
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(scored_posts(), max_size=6))
def test_scores_are_their_definitions(
    posts: list[tuple[Post, list[Entity], list[Region], list[Region]]],
) -> None:
    assert count(posts).scores() == pytest.approx(slow_scores(posts), abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(scored_posts(), max_size=8), st.integers(1, 4), st.randoms(use_true_random=False))
def test_merged_in_any_order_and_partition(
    posts: list[tuple[Post, list[Entity], list[Region], list[Region]]], workers: int, chance: random.Random
) -> None:
    whole = count(posts)
    shuffled = chance.sample(posts, len(posts))
    parts = [count(shuffled[worker::workers]) for worker in range(workers)]
    chance.shuffle(parts)
    assert sum(parts, Counts(TYPES)) == whole
    arrays = np.stack([part.to_array() for part in parts])
    assert arrays.dtype == np.int64
    assert Counts.from_array(TYPES, arrays.sum(0)) == whole


def test_nothing_scored() -> None:
    scores = Counts(TYPES).scores()
    assert set(scores.values()) == {0}
    assert Counts(TYPES) == Counts.from_array(TYPES, Counts(TYPES).to_array())


def test_counts_of_other_types_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        Counts(TYPES) + Counts(("PER",))
    assert Counts(TYPES) != Counts(("PER",))
    assert Counts(TYPES) != "counts"


def test_an_entity_said_twice_counts_once() -> None:
    twice = [Entity("01", 0, 2, "PER", 0.9)] * 2
    scores = count([(Post("p", "01", entities=(Span(0, 2, "PER"),)), twice, [], [])]).scores()
    assert (scores["precision"], scores["f1"]) == (1, 1)


SHOWN = Box("PER", 0, 0, 10, 10)
GOOD, BAD = Region("PER", 0, 0, 10, 8, 0.9), Region("PER", 8, 8, 20, 20, 0.9)


@pytest.mark.parametrize(
    ("boxes", "annotated", "region", "gmner", "accuracy"),
    [
        ((SHOWN,), True, GOOD, 1, 1),
        ((SHOWN,), True, BAD, 0, 0),
        ((SHOWN,), True, None, 0, 0),
        ((), True, None, 1, 0),
        ((), True, GOOD, 0, 0),
        ((), False, GOOD, 0, 0),  # nobody looked: the post is left out
        ((Box("PER", 50, 50, 60, 60), SHOWN), True, GOOD, 1, 1),  # the best of the gold boxes
        ((Box("LOC", 0, 0, 10, 10),), True, GOOD, 0, 0),  # another type's box
    ],
)
def test_gmner_wants_the_region_right_too(
    boxes: tuple[Box, ...], annotated: bool, region: Region | None, gmner: float, accuracy: float
) -> None:
    post = Post("p", "Ada", None, (Span(0, 3, "PER"),), boxes, annotated)
    regions = [region] if region else []
    scores = count([(post, [Entity("Ada", 0, 3, "PER", 0.9)], regions, regions)]).scores()
    assert scores["f1"] == 1
    assert scores["gmner_f1"] == gmner
    assert scores["accuracy_50"] == accuracy


def test_the_best_region_counts_for_accuracy_even_below_the_threshold() -> None:
    post = Post("p", "Ada", None, (Span(0, 3, "PER"),), (SHOWN,), boxes_annotated=True)
    scores = count([(post, [Entity("Ada", 0, 3, "PER", 0.9)], [GOOD], [])]).scores()
    assert (scores["accuracy_50"], scores["accuracy_75"], scores["gmner_f1"]) == (1, 1, 0)
    assert scores["mean_iou"] == pytest.approx(0.8)


LEFT, RIGHT = Box("PER", 0, 0, 10, 10), Box("PER", 50, 0, 60, 10)
ON_LEFT, ON_RIGHT = Region("PER", 0, 0, 10, 10, 0.9), Region("PER", 50, 0, 60, 10, 0.8)
NOWHERE = Region("PER", 80, 80, 90, 90, 0.7)


@pytest.mark.parametrize(
    ("boxes", "regions", "one", "every"),
    [
        ((LEFT, RIGHT), [ON_RIGHT, ON_LEFT], 1, 1),
        ((LEFT, RIGHT), [ON_LEFT], 1, 2 / 3),  # precision 1, recall 1/2
        ((LEFT,), [ON_LEFT, NOWHERE], 1, 2 / 3),  # precision 1/2, recall 1
        ((RIGHT,), [ON_LEFT, ON_RIGHT], 0, 2 / 3),  # the best region is the wrong one
        ((LEFT,), [ON_LEFT, ON_LEFT], 1, 2 / 3),  # a gold box is found once
        ((), [], 1, 1),
        ((), [NOWHERE], 0, 0),
        ((LEFT,), [], 0, 0),
    ],
)
def test_several_regions_of_an_entity(
    boxes: tuple[Box, ...], regions: list[Region], one: float, every: float
) -> None:
    post = Post("p", "Ada", None, (Span(0, 3, "PER"),), boxes, boxes_annotated=True)
    scores = count([(post, [Entity("Ada", 0, 3, "PER", 0.9)], regions[:1], regions)]).scores()
    assert scores["gmner_f1"] == one
    assert scores["gmner_all_f1"] == pytest.approx(every)


def test_weak_boxes_are_no_gold() -> None:
    weak = Box("PER", 80, 80, 90, 90, "weak", 0.9)
    post = Post("p", "Ada", None, (Span(0, 3, "PER"),), (weak, SHOWN), boxes_annotated=True)
    scores = count([(post, [Entity("Ada", 0, 3, "PER", 0.9)], [GOOD], [GOOD])]).scores()
    assert (scores["accuracy_50"], scores["gmner_f1"], scores["gmner_all_f1"]) == (1, 1, 1)
    weakly = Post("p", "Ada", None, boxes=(weak,), boxes_annotated=True)
    assert count([(weakly, [], [GOOD], [])]).scores()["grounded_queries"] == 0


def test_phrases_are_counted_as_grounded_queries() -> None:
    post = Post(
        "p",
        "A man and his hat",
        boxes=(Box("1", 0, 0, 10, 10), Box("2", 0, 0, 4, 4)),
        boxes_annotated=True,
        phrases=(Phrase("1", "A man"), Phrase("2", "his hat")),
    )
    best = [Region("1", 0, 0, 10, 8, 0.9), Region("2", 8, 8, 9, 9, 0.9)]
    scores = count([(post, [], best, [])]).scores()
    assert (scores["grounded_queries"], scores["accuracy_50"], scores["entities"]) == (2, 0.5, 0)
