"""Scores as counts that workers can add up in any order (DESIGN §4 "Metrics").

Every number is an integer, the IoU sum too (in millionths): addition is exact and independent of order.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mnerqg.boxes import iou_xyxy
from mnerqg.schema import Entity, Post, Region

MICRO = 1_000_000
# Columns a type: correct, predicted and gold spans; grounded queries, IoU ≥ 0.5, IoU ≥ 0.75, IoU sum in
# millionths; correct, predicted and gold triples of GMNER.
_COLUMNS = 10


class Counts:
    """Counts of scored posts, one row an entity type.

    Args:
        types: the entity types.
        values: [types, 10] int64; zeros if not given.
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
            post: with its annotations.
            entities: predicted.
            best_regions: the most confident box of each type, for Accu and IoU (empty without a picture: then
                every gold box is missed).
            regions: those above the threshold, for GMNER, which is taken over posts whose boxes are annotated.
        """
        self.posts += 1
        gold_spans = {(span.start, span.end, span.type) for span in post.entities}
        spans = {(entity.start, entity.end, entity.type) for entity in entities}
        best = {region.type: region for region in best_regions}
        kept = {region.type: region for region in regions}
        for row, kind in zip(self.values, self.types, strict=True):
            mine = {span for span in spans if span[2] == kind}
            gold = {span for span in gold_spans if span[2] == kind}
            row[:3] += len(mine & gold), len(mine), len(gold)
            if not post.boxes_annotated:
                continue
            gold_boxes = np.asarray([box.xyxy_px for box in post.boxes if box.type == kind], np.float32)
            if len(gold_boxes):
                iou = _best_iou(best.get(kind), gold_boxes)
                row[3:7] += 1, iou >= 0.5, iou >= 0.75, round(iou * MICRO)
            region = kept.get(kind)
            right = _best_iou(region, gold_boxes) >= 0.5 if len(gold_boxes) else region is None
            row[7:] += len(mine & gold) * right, len(mine), len(gold)

    def to_array(self) -> NDArray[np.int64]:
        """All counts as one flat array, to be summed over workers; `from_array` is the inverse."""
        return np.append(self.values.ravel(), self.posts)

    @classmethod
    def from_array(cls, types: Sequence[str], array: NDArray[np.int64]) -> Self:
        return cls(types, np.asarray(array[:-1], np.int64).reshape(len(types), _COLUMNS), int(array[-1]))

    def scores(self) -> dict[str, float]:
        """P, R, F1 over all types and F1 a type, Accu@0.5, Accu@0.75, mean IoU, GMNER F1, all in [0, 1]."""
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
            "gmner_f1": _precision_recall_f1(*total[7:])[2],
            "posts": self.posts,
            "entities": int(total[2]),
            "grounded_queries": int(total[3]),
        }


def _best_iou(region: Region | None, gold_boxes: NDArray[np.float32]) -> float:
    if region is None:
        return 0.0
    return float(iou_xyxy(np.asarray(region.xyxy_px, np.float32), gold_boxes).max())


def _precision_recall_f1(correct: int, predicted: int, gold: int) -> tuple[float, float, float]:
    precision = int(correct) / max(int(predicted), 1)
    recall = int(correct) / max(int(gold), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)
