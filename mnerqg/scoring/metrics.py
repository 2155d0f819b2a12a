"""Scores as counts that workers can add up in any order.

Every number is an integer, the IoU sum too (in millionths): addition is exact and independent of order.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mnerqg.boxes import iou_xyxy
from mnerqg.schema import Box, Entity, Post, Region

MICRO = 1_000_000
# Columns a type: correct, predicted and gold spans; grounded queries, IoU ≥ 0.5, IoU ≥ 0.75, IoU sum in
# millionths; correct, predicted and gold triples of GMNER, with one region an entity; the same with every region.
_COLUMNS = 13


class Counts:
    """Counts of scored posts, one row an entity type.

    Args:
        types: the entity types.
        values: [types, 13] int64; zeros if not given.
        posts: how many posts were scored.
    """

    def __init__(self, types: Sequence[str], values: NDArray[np.int64] | None = None, posts: int = 0) -> None:
        self.types = tuple(types)
        self.values = np.zeros((len(self.types), _COLUMNS), np.int64) if values is None else values
        self.posts = posts

    def __add__(self, other: Self) -> Self:
        if self.types != other.types:
            raise ValueError(f"counts of types {self.types} and {other.types} cannot be added")
        return type(self)(self.types, self.values + other.values, self.posts + other.posts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Counts)
            and (self.types, self.posts) == (other.types, other.posts)
            and np.array_equal(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]

    def add_post(
        self,
        post: Post,
        entities: Sequence[Entity],
        best_regions: Sequence[Region],
        regions: Sequence[Region],
    ) -> None:
        """Score one post.

        Args:
            post: with its annotations. Gold are the manual boxes only. Those of a post's own phrases, which are no
                types of the model, are counted in the first row.
            entities: predicted.
            best_regions: the most confident box of each type or phrase, for Accu and IoU (empty without a picture:
                then every gold box is missed).
            regions: those above the threshold, for GMNER, which is taken over posts whose boxes are annotated.
        """
        self.posts += 1
        best = {region.type: region for region in best_regions}
        gold_boxes = _gold_boxes(post)
        for phrase in post.phrases:
            self._add_box(self.values[0], best.get(phrase.id), gold_boxes[phrase.id])
        gold_spans = {(span.start, span.end, span.type) for span in post.entities}
        spans = {(entity.start, entity.end, entity.type) for entity in entities}
        for row, kind in zip(self.values, self.types, strict=True):
            mine = {span for span in spans if span[2] == kind}
            gold = {span for span in gold_spans if span[2] == kind}
            right = len(mine & gold)
            row[:3] += right, len(mine), len(gold)
            if not post.boxes_annotated or post.phrases:
                continue
            boxes = gold_boxes[kind]
            self._add_box(row, best.get(kind), boxes)
            kept = sorted((one for one in regions if one.type == kind), key=lambda one: -one.score)
            hits = _matches(kept, boxes)
            first = max(_iou(kept[0], boxes)) >= 0.5 if kept and boxes else not (kept or boxes)
            row[7:10] += right * first, len(mine), len(gold)
            row[10:] += right * hits, len(mine) * max(len(kept), 1), len(gold) * max(len(boxes), 1)

    def _add_box(self, row: NDArray[np.int64], best: Region | None, gold_boxes: Sequence[Box]) -> None:
        if gold_boxes:
            iou = max(_iou(best, gold_boxes)) if best is not None else 0.0
            row[3:7] += 1, iou >= 0.5, iou >= 0.75, round(iou * MICRO)

    def to_array(self) -> NDArray[np.int64]:
        """All counts as one flat array, to be summed over workers; `from_array` is the inverse."""
        return np.append(self.values.ravel(), self.posts)

    @classmethod
    def from_array(cls, types: Sequence[str], array: NDArray[np.int64]) -> Self:
        return cls(types, np.asarray(array[:-1], np.int64).reshape(len(types), _COLUMNS), int(array[-1]))

    def scores(self) -> dict[str, float]:
        """P, R, F1 over all types and F1 a type, Accu@0.5, Accu@0.75, mean IoU, GMNER F1, all in [0, 1].

        GMNER asks of an entity that its region, the best one of its type, hits one of the gold boxes or that there is
        neither. In `gmner_all_f1` each region of its type makes a triple of its own, and so does each gold box: there
        several regions can gain, and lose, something.
        """
        total = self.values.sum(0)
        precision, recall, f1 = _precision_recall_f1(*total[:3])
        grounded = max(int(total[3]), 1)
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            **{
                f"f1_{kind}": _precision_recall_f1(*row[:3])[2]
                for kind, row in zip(self.types, self.values, strict=True)
            },
            "accuracy_50": int(total[4]) / grounded,
            "accuracy_75": int(total[5]) / grounded,
            "mean_iou": int(total[6]) / MICRO / grounded,
            "gmner_f1": _precision_recall_f1(*total[7:10])[2],
            "gmner_all_f1": _precision_recall_f1(*total[10:])[2],
            "posts": self.posts,
            "entities": int(total[2]),
            "grounded_queries": int(total[3]),
        }


def _gold_boxes(post: Post) -> defaultdict[str, list[Box]]:
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    for box in post.boxes:
        if box.source == "manual":
            boxes[box.type].append(box)
    return boxes


def _iou(region: Region, gold_boxes: Sequence[Box]) -> list[float]:
    gold = np.asarray([box.xyxy_px for box in gold_boxes], np.float32)
    return [float(iou) for iou in iou_xyxy(np.asarray(region.xyxy_px, np.float32), gold)]


def _matches(regions: Sequence[Region], gold_boxes: Sequence[Box]) -> int:
    """How many regions find a gold box of their own, the most confident first; 1 where there is neither."""
    if not regions and not gold_boxes:
        return 1
    free = list(gold_boxes)
    for region in regions:
        overlaps = _iou(region, free) if free else [0.0]
        if max(overlaps) >= 0.5:
            free.pop(overlaps.index(max(overlaps)))
    return len(gold_boxes) - len(free)


def _precision_recall_f1(correct: int, predicted: int, gold: int) -> tuple[float, float, float]:
    precision = int(correct) / max(int(predicted), 1)
    recall = int(correct) / max(int(gold), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)
