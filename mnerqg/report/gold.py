"""Tags against annotations: what of each post is right, and the measures over all posts that have both."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mnerqg.boxes import iou_xyxy
from mnerqg.datasets.prepared import count_posts, read_posts
from mnerqg.errors import DataError
from mnerqg.report.sampling import Mask
from mnerqg.report.summary import ordered_types
from mnerqg.schema import Box, Entity, Post, Region
from mnerqg.scoring.metrics import Counts

NOTHING = "nothing"
"""In the confusion: what was predicted where nothing is, or what is where nothing was predicted."""
_RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Judgement:
    """One post against its annotations.

    Attributes:
        entities: of each predicted entity: `right`, `type` (the span is an entity of another type), `span` (it
            overlaps with one of its type), or `false`.
        missed: annotated entities that no predicted one hits exactly.
        ious: of each region its best IoU with a gold box of its type; None where nobody has looked for boxes.
        missed_boxes: gold boxes that no region of their type hits with an IoU of 0.5.
        confusion: how often each (annotated, predicted) type.
    """

    entities: tuple[str, ...]
    missed: tuple[int, ...]
    ious: tuple[float | None, ...]
    missed_boxes: tuple[int, ...]
    confusion: Counter[tuple[str, str]]

    @property
    def labels(self) -> set[str]:
        """What the post can be filtered by."""
        boxes = {"box right" if iou >= _RIGHT_IOU else "box wrong" for iou in self.ious if iou is not None}
        found = {"right" if verdict == "right" else "false" for verdict in self.entities}
        return (
            boxes
            | found
            | ({"missed"} if self.missed else set())
            | ({"box missed"} if self.missed_boxes else set())
        )

    @property
    def faults(self) -> int:
        """False and missed entities and boxes: the gallery has the worst post first by it."""
        wrong = sum(verdict != "right" for verdict in self.entities)
        boxes = sum(iou is not None and iou < _RIGHT_IOU for iou in self.ious)
        return wrong + len(self.missed) + boxes + len(self.missed_boxes)


def judge(post: Post, entities: Sequence[Entity], regions: Sequence[Region]) -> Judgement:
    """Compare what was predicted for a post with its annotations, of whose boxes only the manual ones count."""
    gold = {(span.start, span.end, span.type) for span in post.entities}
    exact = [(entity.start, entity.end, entity.type) in gold for entity in entities]
    hit = {(one.start, one.end, one.type) for one, is_right in zip(entities, exact, strict=True) if is_right}
    verdicts, confusion, taken = [], Counter[tuple[str, str]](), set[int]()
    for entity, is_right in zip(entities, exact, strict=True):
        verdict, other = _verdict(post, entity, is_right, hit)
        verdicts.append(verdict)
        taken.update([] if other is None else [other])
        confusion[NOTHING if other is None else post.entities[other].type, entity.type] += 1
    missed = [
        place for place, span in enumerate(post.entities) if (span.start, span.end, span.type) not in hit
    ]
    confusion.update((post.entities[place].type, NOTHING) for place in missed if place not in taken)
    ious, missed_boxes = _judge_boxes(post, regions)
    return Judgement(tuple(verdicts), tuple(missed), ious, missed_boxes, confusion)


def _verdict(
    post: Post, entity: Entity, is_right: bool, hit: set[tuple[int, int, str]]
) -> tuple[str, int | None]:
    """What a predicted entity is, and the annotated one that it stands for."""
    best: tuple[tuple[bool, bool, int], str, int] | None = None
    for place, span in enumerate(post.entities):
        shared = min(span.end, entity.end) - max(span.start, entity.start)
        same = (span.start, span.end) == (entity.start, entity.end)
        if is_right and (not same or span.type != entity.type):
            continue
        if shared <= 0 or (not is_right and (span.start, span.end, span.type) in hit):
            continue
        kind = "right" if is_right else "type" if span.type != entity.type else "span"
        rank = (same, span.type == entity.type, shared)
        if best is None or rank > best[0]:
            best = rank, kind, place
    return ("false", None) if best is None else best[1:]


def _judge_boxes(post: Post, regions: Sequence[Region]) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    if not post.boxes_annotated:
        return (None,) * len(regions), ()
    hit: set[int] = set()
    ious: list[float | None] = []
    for region in regions:
        if region.image_index:  # an annotated post has one picture: nobody has looked at the others
            ious.append(None)
            continue
        own = [
            (place, _iou(region, box))
            for place, box in enumerate(gold_boxes(post))
            if box.type == region.type
        ]
        place, iou = max(own, key=lambda one: one[1], default=(-1, 0.0))
        hit.update([place] if iou >= _RIGHT_IOU else [])
        ious.append(iou)
    return tuple(ious), tuple(place for place in range(len(gold_boxes(post))) if place not in hit)


def gold_boxes(post: Post) -> list[Box]:
    """The boxes that somebody drew."""
    return [box for box in post.boxes if box.source == "manual"]


def _iou(region: Region, box: Box) -> float:
    one, other = (np.asarray(corners.xyxy_px, np.float32) for corners in (region, box))
    return float(iou_xyxy(one, other[None])[0])


def entities_of(row: Mapping[str, Any]) -> list[Entity]:
    """The entities of a row of tags."""
    return [Entity(**{name: one[name] for name in Entity.__slots__}) for one in row["entities"] or ()]


def regions_of(row: Mapping[str, Any]) -> list[Region]:
    """The regions of a row of tags."""
    return [Region(**{name: one[name] for name in Region.__slots__}) for one in row["regions"] or ()]


@dataclass
class Gold:
    """The annotations of a split, and how the tags of its posts compare with them.

    Attributes:
        name: what was read, for people.
        posts: without their pictures, by id.
        judged: ids of those that were met in the tags; the first row with an id counts.
        per_type: counts of the measures, by type.
        confusion: how often each (annotated, predicted) type.
    """

    name: str
    posts: dict[str, Post]
    judged: set[str] = field(default_factory=set)
    per_type: dict[str, Counts] = field(default_factory=dict)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)

    @classmethod
    def read(cls, data: str, split: str) -> "Gold":
        """The split of a prepared dataset. Raises StorageError, DataError."""
        count_posts(data, split)
        return cls(
            f"{data} ({split})", {post.post_id: post for post in read_posts(data, split, pictures=False)}
        )

    def strata(self, rows: pa.RecordBatch) -> dict[str, Mask]:
        """Score the rows whose posts have annotations; the masks of those that have something right, false, missed."""
        found: dict[str, Mask] = {}
        for place, post_id in enumerate(rows["post_id"].to_pylist()):
            post = self.posts.get(post_id)
            if post is None or post_id in self.judged:
                continue
            self.judged.add(post_id)
            (row,) = rows.slice(place, 1).select(["entities", "regions"]).to_pylist()
            judgement = self._add(post, entities_of(row), regions_of(row))
            for label in judgement.labels:
                found.setdefault(f"gold {label}", np.zeros(rows.num_rows, np.bool_))[place] = True
        return found

    def _add(self, post: Post, entities: Sequence[Entity], regions: Sequence[Region]) -> Judgement:
        types = {span.type for span in post.entities} | {entity.type for entity in entities}
        types |= {box.type for box in gold_boxes(post)} | {region.type for region in regions}
        first = [region for region in regions if region.image_index == 0]
        best = {region.type: region for region in sorted(first, key=lambda one: one.score)}
        for kind in types - self.per_type.keys():
            self.per_type[kind] = Counts((kind,))
        for counts in self.per_type.values():
            counts.add_post(post, entities, list(best.values()), first)
        judgement = judge(post, entities, regions)
        self.confusion.update(judgement.confusion)
        return judgement

    def check(self, tags: str) -> None:
        """Raises DataError where no post of the split was met."""
        if not self.judged:
            raise DataError(
                f"none of the posts of --data {self.name} is in --tags {tags}; tag the split itself "
                "(jobs/tag.py --input DATA/SPLIT), or name another one with --split"
            )

    def scores(self) -> dict[str, dict[str, float]]:
        """The measures of each type and, under "all", of all together."""
        types = ordered_types(list(self.per_type))
        values = np.concatenate([self.per_type[kind].values for kind in types]) if types else None
        each = {kind: self.per_type[kind].scores() for kind in types}
        return {"all": Counts(types, values, len(self.judged)).scores(), **each}
