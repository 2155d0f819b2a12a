"""From examples to a batch of tensors.

Shapes: P posts, K queries a post, L pieces, I pictures, S canvas side, C box candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnerqg.boxes import Anchors, Floats, assign
from mnerqg.inputs.examples import Example
from mnerqg.inputs.images import Pixels
from mnerqg.inputs.pairs import Row
from mnerqg.inputs.text import TextEncoder

R = TypeVar("R")
IntArray = NDArray[np.int64]
_STEP = 8  # lengths are multiples of it, so that matrices suit the kernels and few lengths occur
# The encoder is called once more for shorter sequences where this saves more than so many of all its pieces [chosen].
_WORTH_A_CALL = 1 / 32


@dataclass(frozen=True)
class Targets:
    """What a batch should answer.

    existence: [P, K] 1 where the text names an entity of the type, -100 for queries of the post's own.
    starts, ends: [P, K, L] 1 where an entity of the type starts or ends.
    pairs: [N, 4] (post, query, start, end) of gold starts and gold ends of a query, start ≤ end; matches: [N] 1 where
        the pair is a gold span, else 0.
    objectness: [P, K, C] 1 assigned, 0 background, -1 not to be learned from.
    box_candidates: [M, 3] (post, query, candidate) of the boxed pairs; box_targets: [M, 4].
    labels: [P, L] the word labels that the baselines learn, of the words' first pieces (see `model.words`).
    """

    existence: Tensor
    starts: Tensor
    ends: Tensor
    pairs: Tensor
    matches: Tensor
    objectness: Tensor
    box_candidates: Tensor
    box_targets: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Texts:
    """N sequences of about one length, as the encoder reads them.

    input_ids, token_type_ids, attention_mask: [N, L'] of query and sentence as the tokenizer lays pairs: of BERT's
        `[CLS] query [SEP] sentence [SEP]`.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of P posts. K is the most queries that a post of the batch has, L the pieces of the longest sequence.

    texts: every sequence once, by length: the encoder does not pad all of them to the longest.
    sequence: [P, K] which of the sequences of all `texts`, counted through, stands there.
    attention_mask: [P, K, L] true on the sequence.
    query_mask: [P, K, L] true on the query's own pieces.
    begins_word, ends_word: [P, K, L] true where an entity may start or end.
    sentence_offset: [P, K] position of the sentence's first piece behind each query.
    pixels: [I, 3, S, S] uint8, every picture once; I may be 0.
    shown: [Q] the posts that have a picture, in rising order.
    picture: [Q] the row of each one's picture in `pixels`.
    """

    texts: tuple[Texts, ...]
    sequence: Tensor
    attention_mask: Tensor
    query_mask: Tensor
    begins_word: Tensor
    ends_word: Tensor
    sentence_offset: Tensor
    pixels: Tensor
    shown: Tensor
    picture: Tensor
    targets: Targets | None = None

    def to(self, device: torch.device | str) -> Self:
        """The batch on `device`."""
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The batch in memory from which a GPU fetches it while other work goes on."""
        return _each(self, Tensor.pin_memory)


def _each(record: R, change: Callable[[Tensor], Tensor]) -> R:
    """The record with every tensor in it changed."""
    if isinstance(record, Tensor):
        return change(record)  # type: ignore[return-value]
    if isinstance(record, tuple):
        return tuple(_each(part, change) for part in record)  # type: ignore[return-value]
    if record is None:
        return record
    parts = {entry.name: _each(getattr(record, entry.name), change) for entry in fields(record)}  # type: ignore[arg-type]
    return replace(record, **parts)  # type: ignore[type-var]


def made_ahead(items: Iterator[R]) -> Iterator[R]:
    """The items in their order, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


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
        """Collate P examples; of sequences of about one length each is padded to the longest, in steps of 8."""
        rows, sequence = self._lay(examples)
        texts, order = self._texts(rows)
        lengths = np.asarray([len(row.ids) for row in rows])
        queries = np.asarray([(row.query.start, max(row.query.stop, row.query.start)) for row in rows])
        # Of a query without a piece it is the first piece of all: a mean over nothing is no number.
        queries[queries[:, 0] == queries[:, 1]] = (0, 1)
        offsets = np.asarray([row.sentence.start for row in rows])[sequence]  # [P, K]
        place = np.arange(_padded(lengths.max()))  # [L]
        first, last = queries[sequence][..., None, :].transpose(3, 0, 1, 2)  # each [P, K, 1]
        begins, ends = self._word_borders(examples, offsets, place)
        pixels, shown, picture = self._pictures(examples)
        return Batch(
            texts=texts,
            sequence=torch.from_numpy(order[sequence]),
            attention_mask=torch.from_numpy(place < lengths[sequence][..., None]),
            query_mask=torch.from_numpy((first <= place) & (place < last)),
            begins_word=torch.from_numpy(begins),
            ends_word=torch.from_numpy(ends),
            sentence_offset=torch.from_numpy(offsets),
            pixels=torch.from_numpy(pixels),
            shown=torch.from_numpy(shown),
            picture=torch.from_numpy(picture),
            targets=self._targets(examples, offsets, begins.shape) if with_targets else None,
        )

    def _lay(self, examples: Sequence[Example]) -> tuple[list[Row], IntArray]:
        """The distinct sequences, and which of them stands where, [P, K].

        Queries without a sentence behind them, as FA-VG asks them, are the same for all posts. A post with fewer
        queries than others asks its first one again, unheard. The batch normalisation of the grounding counts it: with
        phrases the statistics depend a little on which posts come together.
        """
        rows: list[Row] = []
        alone: dict[tuple[int, ...], int] = {}
        sequence = np.zeros(
            (len(examples), max(len(self._queries(example)) for example in examples)), np.int64
        )
        for p, example in enumerate(examples):
            sentence = self._sentence(example)
            for k, query in enumerate(self._queries(example)):
                known = None if sentence is not None else alone.setdefault(tuple(query), len(rows))
                sequence[p, k] = len(rows) if known is None else known
                if sequence[p, k] == len(rows):
                    rows.append(self._text.lay(query, sentence))
            sequence[p, k + 1 :] = sequence[p, 0]
        return rows, sequence

    def _texts(self, rows: Sequence[Row]) -> tuple[tuple[Texts, ...], IntArray]:
        """The sequences by length, and the place [N] of each among them."""
        lengths = np.asarray([len(row.ids) for row in rows])
        by_length = np.argsort(lengths, kind="stable")
        texts = []
        for group in np.split(by_length, _cuts([_padded(length) for length in lengths[by_length]])):
            mask = np.arange(_padded(lengths[group].max())) < lengths[group, None]
            ids = np.full(mask.shape, self._text.pad_id, np.int64)
            types = np.zeros(mask.shape, np.int64)
            ids[mask] = list(chain.from_iterable(rows[row].ids for row in group))
            types[mask] = list(chain.from_iterable(rows[row].types for row in group))
            texts.append(Texts(*map(torch.from_numpy, (ids, types, mask))))
        order = np.empty_like(by_length)
        order[by_length] = np.arange(len(rows))
        return tuple(texts), order

    def _word_borders(
        self, examples: Sequence[Example], offsets: IntArray, place: IntArray
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Where behind the queries words begin and end, two [P, K, L]."""
        shape = (*offsets.shape, len(place))
        begins, ends = np.zeros(shape, bool), np.zeros(shape, bool)
        for p, example in enumerate(examples):
            if self._sentence(example) is None:
                continue
            for marks, marked in ((example.text.begins_word, begins), (example.text.ends_word, ends)):
                at = np.flatnonzero(np.asarray(marks, bool))
                for k in range(len(self._queries(example))):
                    marked[p, k, offsets[p, k] + at] = True
        return begins, ends

    def _queries(self, example: Example) -> Sequence[list[int]]:
        if not self._asks:
            return ([],)
        return example.phrases or self._text.query_ids

    def _sentence(self, example: Example) -> list[int] | None:
        """The pieces of the sentence, or None where only the queries are read."""
        return example.text.token_ids if self._sees_text and not example.phrases else None

    def _pictures(self, examples: Sequence[Example]) -> tuple[Pixels, IntArray, IntArray]:
        """[I, 3, S, S] pictures, each once, the posts that have one, and each one's row."""
        pixels = [example.pixels if self._sees_picture else None for example in examples]
        # The windows of a long text share one canvas, which is encoded once.
        present = {id(canvas): canvas for canvas in pixels if canvas is not None}
        rows = {canvas: row for row, canvas in enumerate(present)}
        shown = np.flatnonzero([canvas is not None for canvas in pixels])
        picture = np.array([rows[id(pixels[post])] for post in shown], np.int64)
        if not present:
            # Nothing may stand in for a picture: batch normalisation would count it.
            return np.zeros((0, 3, self._anchors.side, self._anchors.side), np.uint8), shown, picture
        # The stack's own order, [I, S, S, 3], is the one in which the convolutions want it.
        return np.stack(list(present.values())).transpose(0, 3, 1, 2), shown, picture

    def _targets(self, examples: Sequence[Example], offsets: IntArray, shape: tuple[int, ...]) -> Targets:
        existence = np.full(shape[:2], -100, np.int64)
        starts, ends = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        spans = []
        for p, example in enumerate(examples):
            if not self._asks or self._sentence(example) is None:
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

    def _word_labels(self, examples: Sequence[Example], offsets: IntArray, pieces: int) -> Tensor:
        """[P, L]: 0 outside, 1 + 2k at the first piece of an entity of type k and 2 + 2k at its further pieces."""
        labels = np.zeros((len(examples), pieces), np.int64)
        for row, example, offset in zip(labels, examples, offsets[:, 0], strict=True):
            for first, last, k in example.spans if self._sentence(example) is not None else ():
                row[offset + first + 1 : offset + last + 1] = 2 + 2 * k
                row[offset + first] = 1 + 2 * k
        return torch.from_numpy(labels)


def _padded(length: int) -> int:
    return -(-int(length) // _STEP) * _STEP


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Where to cut sequences of rising lengths so that padding and calls of the encoder cost least together.

    Found by the shortest way over the places where the length rises: a call costs as much as `_WORTH_A_CALL` of all
    pieces would when nothing is cut more finely.
    """
    rises = [
        0,
        *(index for index in range(1, len(lengths)) if lengths[index] > lengths[index - 1]),
        len(lengths),
    ]
    call = _WORTH_A_CALL * sum(lengths)
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # to each place, the cost and the cuts on the way
    for to in range(1, len(rises)):
        last = lengths[rises[to] - 1]
        best.append(
            min(
                (cost + call + (rises[to] - rises[start]) * last, [*cuts, rises[start]])
                for start, (cost, cuts) in enumerate(best)
            )
        )
    return best[-1][1][1:]


def _boxes_by_type(example: Example) -> dict[int, list[Floats]]:
    """The gold boxes of each type index, the largest first: it is the target where a query has but one [chosen]."""
    boxes: dict[int, list[Floats]] = {}
    for box, kind in zip(example.boxes_canvas, example.box_types, strict=True):
        boxes.setdefault(kind, []).append(box)
    return {kind: sorted(of_type, key=_area, reverse=True) for kind, of_type in boxes.items()}


def _area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
