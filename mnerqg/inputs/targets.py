"""What a batch should answer, from the annotations of its posts.

Shapes: P posts, K queries a post, L pieces, C box candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mnerqg.boxes import Anchors, Floats, assign
from mnerqg.inputs.batch import Batch, Targets
from mnerqg.inputs.examples import Example
from mnerqg.inputs.sentences import IntArray


class TargetEncoder:
    """Encodes the targets of examples. The arguments are those of `Collator`."""

    def __init__(
        self, *, anchors: Anchors, ignore_iou: float, inputs: str, asks: bool, box_targets: str
    ) -> None:
        self._anchors = anchors
        self._ignore_iou = ignore_iou
        self._sees_text = inputs != "picture"
        self._sees_picture = inputs != "text"
        self._asks = asks
        self._box_targets = box_targets

    def __call__(self, examples: Sequence[Example], batch: Batch, asked: IntArray) -> Targets:
        """The targets of P examples.

        Args:
            examples: of the batch.
            batch: their inputs.
            asked: [P] how many of the K queries are each post's own.
        """
        offsets, shape = batch.sentence_offset.numpy(), tuple(batch.begins_word.shape)
        existence = np.full(shape[:2], -100, np.int64)
        starts, ends = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        spans = []
        for p, example in enumerate(examples):
            if not self._asks or not self._reads(example):
                continue
            existence[p] = 0
            for first, last, k in example.spans:
                i, j = first + offsets[p, k], last + offsets[p, k]
                existence[p, k] = starts[p, k, i] = ends[p, k, j] = 1
                spans.append((p, k, i, j))
        pairs = sorted(
            {(p, k, i, j) for p, k, i, _ in spans for q, m, _, j in spans if (p, k) == (q, m) and i <= j}
        )
        return Targets(
            existence=torch.from_numpy(existence),
            starts=torch.from_numpy(starts),
            ends=torch.from_numpy(ends),
            pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 4),
            matches=torch.tensor([float(pair in spans) for pair in pairs]),
            **self._boxes(examples, shape, asked),
            labels=self._word_labels(examples, offsets, shape[2]),
        )

    def _boxes(
        self, examples: Sequence[Example], shape: tuple[int, ...], asked: IntArray
    ) -> dict[str, Tensor]:
        objectness = np.full((*shape[:2], self._anchors.candidates), -1, np.int8)
        box_candidates, box_targets = [], []
        for p, example in enumerate(examples):
            # Where nobody looked, an absent box says nothing.
            if example.pixels is None or not example.boxes_annotated or not self._sees_picture:
                continue
            objectness[p, : asked[p]] = 0
            objectness[p, list(example.unknown_types)] = -1
            for k, boxes in _boxes_by_type(example).items():
                assigned = [assign(box, self._anchors, self._ignore_iou) for box in boxes]
                on_canvas = [one for one in assigned if one]
                if not on_canvas:
                    objectness[p, k] = -1
                # A box that is not learned is no background either: any of a query's boxes is a right answer.
                for one in on_canvas:
                    objectness[p, k, [one.candidate, *one.ignored]] = -1
                learned = on_canvas[:1] if self._box_targets == "largest" else on_canvas
                # The larger box keeps a candidate that two would take.
                for candidate, one in {one.candidate: one for one in reversed(learned)}.items():
                    objectness[p, k, candidate] = 1
                    box_candidates.append((p, k, candidate))
                    box_targets.append(one.target)
        return {
            "objectness": torch.from_numpy(objectness),
            "box_candidates": torch.tensor(box_candidates, dtype=torch.long).reshape(-1, 3),
            "box_targets": torch.tensor(box_targets, dtype=torch.float32).reshape(-1, 4),
        }

    def _word_labels(self, examples: Sequence[Example], offsets: IntArray, pieces: int) -> Tensor:
        """[P, L]: 0 outside, 1 + 2k at the first piece of an entity of type k and 2 + 2k at its further pieces."""
        labels = np.zeros((len(examples), pieces), np.int64)
        for row, example, offset in zip(labels, examples, offsets[:, 0], strict=True):
            for first, last, k in example.spans if self._reads(example) else ():
                row[offset + first + 1 : offset + last + 1] = 2 + 2 * k
                row[offset + first] = 1 + 2 * k
        return torch.from_numpy(labels)

    def _reads(self, example: Example) -> bool:
        """Whether a sentence stands behind the queries of the post."""
        return self._sees_text and not example.phrases


def _boxes_by_type(example: Example) -> dict[int, list[Floats]]:
    """The gold boxes of each type index, the largest first: it is the target where a query has but one [chosen]."""
    boxes: dict[int, list[Floats]] = {}
    for box, kind in zip(example.boxes_canvas, example.box_types, strict=True):
        boxes.setdefault(kind, []).append(box)
    return {kind: sorted(of_type, key=_area, reverse=True) for kind, of_type in boxes.items()}


def _area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
