"""From examples to a batch of tensors.

Shapes: P posts, K queries a post, L pieces, I pictures, S canvas side, C box candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from mnerqg.boxes import Anchors, Floats, assign
from mnerqg.inputs.examples import Example
from mnerqg.inputs.images import Pixels
from mnerqg.inputs.text import TextEncoder

R = TypeVar("R")


@dataclass(frozen=True)
class Targets:
    """What a batch should answer.

    existence: [P, K] 1 where the text names an entity of the type, -100 for queries of the post's own.
    starts, ends: [P, K, L] 1 where an entity of the type starts or ends.
    matches: [N, 4] (post, query, start, end) of the gold spans.
    objectness: [P, K, C] 1 assigned, 0 background, -1 not to be learned from.
    box_candidates: [M, 3] (post, query, candidate) of the boxed pairs; box_targets: [M, 4].
    labels: [P, L] the word labels that the baselines learn, of the words' first pieces (see `model.words`).
    """

    existence: Tensor
    starts: Tensor
    ends: Tensor
    matches: Tensor
    objectness: Tensor
    box_candidates: Tensor
    box_targets: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """Dense inputs of P posts. K is the most queries that a post of the batch has.

    input_ids, token_type_ids, attention_mask: [P, K, L] of query and sentence as the tokenizer lays pairs: of BERT's
        `[CLS] query [SEP] sentence [SEP]`.
    query_mask: [P, K, L] true on the query's own pieces.
    begins_word, ends_word: [P, K, L] true where an entity may start or end.
    sentence_offset: [P, K] position of the sentence's first piece behind each query.
    pixels: [I, 3, S, S] uint8, every picture once; I may be 0.
    picture: [P] row of the post's picture in `pixels`, -1 for none.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    query_mask: Tensor
    begins_word: Tensor
    ends_word: Tensor
    sentence_offset: Tensor
    pixels: Tensor
    picture: Tensor
    targets: Targets | None = None

    def to(self, device: torch.device | str) -> Self:
        """The batch on `device`."""
        return _moved(self, device)


def _moved(record: R, device: torch.device | str) -> R:
    values = {}
    for entry in fields(record):  # type: ignore[arg-type]
        value = getattr(record, entry.name)
        if isinstance(value, Tensor):
            values[entry.name] = value.to(device, non_blocking=True)
        elif value is not None:
            values[entry.name] = _moved(value, device)
    return replace(record, **values)  # type: ignore[type-var]


class Collator:
    """Builds batches: lays the queries before the sentences, pads, and encodes the targets.

    Args:
        text_encoder: of the model.
        anchors: of the model's canvas.
        ignore_iou: see `boxes.assign`.
        inputs: what of a post is seen; see `ModelConfig.inputs`.
        asks: whether queries are asked; the baselines label the words of the bare sentence.
        box_targets: see `LossConfig.box_targets`.
    """

    def __init__(
        self,
        *,
        text_encoder: TextEncoder,
        anchors: Anchors,
        ignore_iou: float,
        inputs: str = "text_picture",
        asks: bool = True,
        box_targets: str = "largest",
    ) -> None:
        self._text = text_encoder
        self._anchors = anchors
        self._ignore_iou = ignore_iou
        self._sees_text = inputs != "picture"
        self._sees_picture = inputs != "text"
        self._asks = asks
        self._box_targets = box_targets

    def __call__(self, examples: Sequence[Example], *, with_targets: bool) -> Batch:
        """Collate P examples; sequences are padded to the longest of them, in steps of 8."""
        rows = [
            [self._text.lay(query, self._sentence(example)) for query in self._queries(example)]
            for example in examples
        ]
        asked = [len(post) for post in rows]
        # A post with fewer queries than others asks its first one again, unheard. The batch normalisation of the
        # grounding counts it: with phrases the statistics depend a little on which posts come together.
        rows = [[*post, *[post[0]] * (max(asked) - len(post))] for post in rows]
        longest = max(len(row.ids) for post in rows for row in post)
        shape = (len(examples), max(asked), -(-longest // 8) * 8)
        input_ids = np.full(shape, self._text.pad_id, np.int64)
        token_type_ids = np.zeros(shape, np.int64)
        attention_mask, query_mask, begins, ends = (np.zeros(shape, bool) for _ in range(4))
        offsets = np.zeros(shape[:2], np.int64)
        for p, example in enumerate(examples):
            for k, row in enumerate(rows[p]):
                size = len(row.ids)
                offsets[p, k] = row.sentence.start
                input_ids[p, k, :size] = row.ids
                token_type_ids[p, k, :size] = row.types
                attention_mask[p, k, :size] = True
                # Of a query without a piece it is the first piece of all: a mean over nothing is no number.
                query_mask[p, k, row.query if row.query.start < row.query.stop else 0] = True
                if k < asked[p] and self._sentence(example) is not None:
                    begins[p, k, row.sentence] = example.text.begins_word
                    ends[p, k, row.sentence] = example.text.ends_word
        pixels, picture = self._pictures(examples)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            token_type_ids=torch.from_numpy(token_type_ids),
            attention_mask=torch.from_numpy(attention_mask),
            query_mask=torch.from_numpy(query_mask),
            begins_word=torch.from_numpy(begins),
            ends_word=torch.from_numpy(ends),
            sentence_offset=torch.from_numpy(offsets),
            pixels=torch.from_numpy(pixels),
            picture=torch.from_numpy(picture),
            targets=self._targets(examples, offsets, shape) if with_targets else None,
        )

    def _queries(self, example: Example) -> Sequence[list[int]]:
        if not self._asks:
            return ([],)
        return example.phrases or self._text.query_ids

    def _sentence(self, example: Example) -> list[int] | None:
        """The pieces of the sentence, or None where only the queries are read."""
        return example.text.token_ids if self._sees_text and not example.phrases else None

    def _pictures(self, examples: Sequence[Example]) -> tuple[Pixels, np.ndarray]:
        """[I, 3, S, S] pictures, each once, and [P] their row."""
        pixels = [example.pixels if self._sees_picture else None for example in examples]
        # The windows of a long text share one canvas, which is encoded once.
        present = {id(canvas): canvas for canvas in pixels if canvas is not None}
        rows = {canvas: row for row, canvas in enumerate(present)}
        picture = np.array([-1 if canvas is None else rows[id(canvas)] for canvas in pixels], np.int64)
        if not present:
            # Nothing may stand in for a picture: batch normalisation would count it.
            return np.zeros((0, 3, self._anchors.side, self._anchors.side), np.uint8), picture
        return np.ascontiguousarray(np.stack(list(present.values())).transpose(0, 3, 1, 2)), picture

    def _targets(self, examples: Sequence[Example], offsets: np.ndarray, shape: tuple[int, ...]) -> Targets:
        existence = np.full(shape[:2], -100, np.int64)
        starts, ends = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        matches = []
        for p, example in enumerate(examples):
            if not self._asks or self._sentence(example) is None:
                continue
            existence[p] = 0
            for first, last, k in example.spans:
                i, j = first + offsets[p, k], last + offsets[p, k]
                existence[p, k] = starts[p, k, i] = ends[p, k, j] = 1
                matches.append((p, k, i, j))
        return Targets(
            existence=torch.from_numpy(existence),
            starts=torch.from_numpy(starts),
            ends=torch.from_numpy(ends),
            matches=torch.tensor(matches, dtype=torch.long).reshape(-1, 4),
            **self._box_targets_of(examples, shape),
            labels=self._word_labels(examples, offsets, shape[2]),
        )

    def _box_targets_of(self, examples: Sequence[Example], shape: tuple[int, ...]) -> dict[str, Tensor]:
        objectness = np.full((*shape[:2], self._anchors.candidates), -1, np.int8)
        box_candidates, box_targets = [], []
        for p, example in enumerate(examples):
            # Where nobody looked, an absent box says nothing.
            if example.pixels is None or not example.boxes_annotated or not self._sees_picture:
                continue
            objectness[p, : len(self._queries(example))] = 0
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

    def _word_labels(self, examples: Sequence[Example], offsets: np.ndarray, pieces: int) -> Tensor:
        """[P, L]: 0 outside, 1 + 2k at the first piece of an entity of type k and 2 + 2k at its further pieces."""
        labels = np.zeros((len(examples), pieces), np.int64)
        for row, example, offset in zip(labels, examples, offsets[:, 0], strict=True):
            for first, last, k in example.spans if self._sentence(example) is not None else ():
                row[offset + first + 1 : offset + last + 1] = 2 + 2 * k
                row[offset + first] = 1 + 2 * k
        return torch.from_numpy(labels)


def _boxes_by_type(example: Example) -> dict[int, list[Floats]]:
    """The gold boxes of each type index, the largest first: it is the target where a query has but one [chosen]."""
    boxes: dict[int, list[Floats]] = {}
    for box, kind in zip(example.boxes_canvas, example.box_types, strict=True):
        boxes.setdefault(kind, []).append(box)
    return {kind: sorted(of_type, key=_area, reverse=True) for kind, of_type in boxes.items()}


def _area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
