"""What a network has found in posts, as flat arrays on the host: all that an answer is made of.

Nothing here imports torch: answers are put together by tasks that do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnerqg.inputs.lists import counts, listed

Floats = NDArray[np.float32]
IntArray = NDArray[np.int64]

_SPAN_TYPE = pa.struct(
    [("query", pa.int32()), ("first", pa.int32()), ("last", pa.int32()), ("score", pa.float32())]
)
_BOX_TYPE = pa.struct(
    [("query", pa.int32()), *((name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max", "score"))]
)
_FOUND_TYPE = pa.struct(
    [
        ("existence", pa.list_(pa.float32())),
        ("spans", pa.list_(_SPAN_TYPE)),
        ("boxes", pa.list_(_BOX_TYPE)),
        ("error", pa.string()),
    ]
)
FOUND = "mnerqg:found"
FOUND_TYPE = pa.list_(_FOUND_TYPE)
"""Of each row of an archive: what was found in each window of its text beside each of its pictures."""


@dataclass(frozen=True)
class Found:
    """Of P posts that were asked K queries.

    existence: [P, K] scores; K is 0 where existence is not answered.
    spans: [M, 4] post, query, first and last piece of the sentence; span_scores: [M].
    boxes: [B, 2] post and query; boxes_canvas: [B, 4] xyxy; box_scores: [B]. Of each query of a post with a picture the
        most confident box stands first, whatever its score.
    """

    existence: Floats
    spans: IntArray
    span_scores: Floats
    boxes: IntArray
    boxes_canvas: Floats
    box_scores: Floats

    @classmethod
    def nothing(cls, posts: int) -> Self:
        """Of posts about which nothing is known."""
        return cls(
            existence=np.zeros((posts, 0), np.float32),
            spans=np.zeros((0, 4), np.int64),
            span_scores=np.zeros(0, np.float32),
            boxes=np.zeros((0, 2), np.int64),
            boxes_canvas=np.zeros((0, 4), np.float32),
            box_scores=np.zeros(0, np.float32),
        )

    @classmethod
    def together(cls, parts: Sequence[tuple[IntArray, "Found"]], posts: int) -> Self:
        """Of P posts, from what was found in some of them at a time.

        Args:
            parts: which of the P posts they were, each in at most one part, and what was found in them.
            posts: P. In a post of no part nothing was found.
        """
        whole = cls.nothing(posts)
        queries = max((found.existence.shape[1] for _, found in parts), default=0)
        existence = np.full((posts, queries), np.nan, np.float32)
        for which, found in parts:
            if found.existence.shape[1]:
                existence[which] = found.existence
        spans = [np.c_[which[found.spans[:, 0]], found.spans[:, 1:]] for which, found in parts]
        boxes = [np.c_[which[found.boxes[:, 0]], found.boxes[:, 1:]] for which, found in parts]
        by_post = {
            "spans": np.concatenate([whole.spans, *spans]),
            "boxes": np.concatenate([whole.boxes, *boxes]),
        }
        order = {name: np.argsort(rows[:, 0], kind="stable") for name, rows in by_post.items()}
        found_of = [found for _, found in parts]
        return cls(
            existence=existence,
            spans=by_post["spans"][order["spans"]],
            span_scores=np.concatenate([whole.span_scores, *(f.span_scores for f in found_of)])[
                order["spans"]
            ],
            boxes=by_post["boxes"][order["boxes"]],
            boxes_canvas=np.concatenate([whole.boxes_canvas, *(f.boxes_canvas for f in found_of)])[
                order["boxes"]
            ],
            box_scores=np.concatenate([whole.box_scores, *(f.box_scores for f in found_of)])[order["boxes"]],
        )

    def to_arrow(self, per_row: IntArray, errors: Sequence[str | None]) -> pa.ListArray:
        """`FOUND_TYPE`: of each row of an archive so many of the posts, in order; a post has an error or None."""
        posts, queries = self.existence.shape
        answered = ~np.isnan(self.existence).all(1) if queries else np.zeros(posts, bool)
        spans = pa.StructArray.from_arrays(
            [*(pa.array(column, pa.int32()) for column in self.spans.T[1:]), pa.array(self.span_scores)],
            fields=list(_SPAN_TYPE),
        )
        boxes = pa.StructArray.from_arrays(
            [
                pa.array(self.boxes[:, 1], pa.int32()),
                *(pa.array(np.ascontiguousarray(column)) for column in self.boxes_canvas.T),
                pa.array(self.box_scores),
            ],
            fields=list(_BOX_TYPE),
        )
        found = pa.StructArray.from_arrays(
            [
                listed(np.where(answered, queries, 0), pa.array(self.existence[answered].ravel())),
                listed(np.bincount(self.spans[:, 0], minlength=posts), spans),
                listed(np.bincount(self.boxes[:, 0], minlength=posts), boxes),
                pa.array(errors, pa.string()),
            ],
            fields=list(_FOUND_TYPE),
        )
        return listed(per_row, found)

    @classmethod
    def from_arrow(cls, column: pa.ListArray) -> tuple[IntArray, Self, list[str | None]]:
        """The inverse of `to_arrow`: how many posts each row has, what was found in them, and their errors."""
        existence, spans, boxes, errors = column.flatten().flatten()
        scores = counts(existence)
        queries = int(scores.max(initial=0))
        of_posts = np.full((len(scores), queries), np.nan, np.float32)
        of_posts[scores > 0] = existence.flatten().to_numpy().reshape(-1, queries) if queries else 0
        query, first, last, span_scores = (part.to_numpy() for part in spans.flatten().flatten())
        box_query, *corners, box_scores = (part.to_numpy() for part in boxes.flatten().flatten())
        posts = np.arange(len(scores))
        found = cls(
            existence=of_posts,
            spans=np.stack([np.repeat(posts, counts(spans)), query, first, last], 1),
            span_scores=span_scores,
            boxes=np.stack([np.repeat(posts, counts(boxes)), box_query], 1),
            boxes_canvas=np.stack(corners, 1),
            box_scores=box_scores,
        )
        return counts(column), found, errors.to_pylist()
