"""From posts to examples (host, one a post) and from examples to a batch of tensors.

Shapes: P posts, K queries a post, L pieces, I pictures, S canvas side, C box candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mnerqg.boxes import Anchors, Floats, assign
from mnerqg.data.augment import Augmenter, Pixels
from mnerqg.data.images import ImageLimits, ImageProblem, Letterbox, decode_letterbox
from mnerqg.data.text import EncodedText, TextEncoder
from mnerqg.schema import Post

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Example:
    """A post as the model takes it, with its targets if it has any.

    `pixels` is the letterboxed canvas [S, S, 3]; `spans` are (first piece, last piece, type index);
    `boxes_canvas` [N, 4] xyxy on the canvas with `box_types` [N] type indices.
    """

    text: EncodedText
    pixels: Pixels | None = None
    letterbox: Letterbox | None = None
    spans: tuple[tuple[int, int, int], ...] = ()
    boxes_canvas: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    box_types: tuple[int, ...] = ()
    boxes_annotated: bool = False


def make_example(post: Post, text_encoder: TextEncoder, side: int, limits: ImageLimits) -> Example:
    """Encode a training post. An undecodable picture counts as none; annotations of unasked types are left out."""
    types = [query.type for query in text_encoder.queries]
    text = text_encoder.encode(post.text or "")
    spans = []
    for span in post.entities:
        pieces = text.piece_span(span)
        if pieces is not None and span.type in types:
            spans.append((*pieces, types.index(span.type)))
    example = Example(text, spans=tuple(spans))
    if post.image is None:
        return example
    try:
        pixels, letterbox = decode_letterbox(post.image, side, limits)
    except ImageProblem:
        return example
    boxes = [box for box in post.boxes if box.type in types]
    boxes_px = np.asarray([box.xyxy_px for box in boxes], np.float32).reshape(-1, 4)
    return replace(
        example,
        pixels=pixels,
        letterbox=letterbox,
        boxes_canvas=letterbox.to_canvas(boxes_px).astype(np.float32),
        box_types=tuple(types.index(box.type) for box in boxes),
        boxes_annotated=post.boxes_annotated,
    )


def augment_example(example: Example, augmenter: Augmenter, *, seed: int) -> Example:
    """Augment the picture of a training example, or take it away together with its boxes."""
    if example.pixels is None:
        return example
    augmented = augmenter(example.pixels, example.boxes_canvas, seed=seed)
    if augmented is None:
        return Example(example.text, spans=example.spans)
    # The letterbox no longer describes the moved picture.
    return replace(example, pixels=augmented[0], boxes_canvas=augmented[1], letterbox=None)


@dataclass(frozen=True)
class Targets:
    """What a batch should answer.

    existence: [P, K] 1 where the text names an entity of the type.
    starts, ends: [P, K, L] 1 where an entity of the type starts or ends.
    matches: [N, 4] (post, query, start, end) of the gold spans.
    objectness: [P, K, C] 1 assigned, 0 background, -1 not to be learned from.
    box_candidates: [M, 3] (post, query, candidate) of the boxed pairs; box_targets: [M, 4].
    """

    existence: Tensor
    starts: Tensor
    ends: Tensor
    matches: Tensor
    objectness: Tensor
    box_candidates: Tensor
    box_targets: Tensor


@dataclass(frozen=True)
class Batch:
    """Dense inputs of P posts.

    input_ids, token_type_ids, attention_mask: [P, K, L] of `[CLS] query [SEP] sentence [SEP]`.
    query_mask: [P, K, L] true on the query's own pieces.
    begins_word, ends_word: [P, K, L] true where an entity may start or end.
    sentence_offset: [K] position of the sentence's first piece behind each query.
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
    """Builds batches: lays the queries before the sentences, pads, and encodes the targets."""

    def __init__(self, *, text_encoder: TextEncoder, anchors: Anchors, ignore_iou: float) -> None:
        self._text = text_encoder
        self._anchors = anchors
        self._ignore_iou = ignore_iou

    def __call__(self, examples: Sequence[Example], *, with_targets: bool) -> Batch:
        """Collate P examples; sequences are padded to the longest of them, in steps of 8."""
        queries = self._text.query_ids
        longest = max(len(ids) for ids in queries) + max(len(example.text.token_ids) for example in examples)
        shape = (len(examples), len(queries), -(-(longest + 3) // 8) * 8)
        input_ids = np.full(shape, self._text.pad_id, np.int64)
        token_type_ids = np.zeros(shape, np.int64)
        attention_mask, query_mask, begins, ends = (np.zeros(shape, bool) for _ in range(4))
        offsets = np.asarray([len(ids) + 2 for ids in queries], np.int64)
        for k, ids in enumerate(queries):
            head = [self._text.cls_id, *ids, self._text.sep_id]
            input_ids[:, k, : len(head)] = head
            query_mask[:, k, 1 : len(head) - 1] = True
            for p, example in enumerate(examples):
                text = example.text
                stop = len(head) + len(text.token_ids)
                input_ids[p, k, len(head) : stop + 1] = [*text.token_ids, self._text.sep_id]
                token_type_ids[p, k, len(head) : stop + 1] = 1
                attention_mask[p, k, : stop + 1] = True
                begins[p, k, len(head) : stop] = text.begins_word
                ends[p, k, len(head) : stop] = text.ends_word
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

    def _pictures(self, examples: Sequence[Example]) -> tuple[Pixels, np.ndarray]:
        """[I, 3, S, S] pictures and [P] their row."""
        present = [example.pixels for example in examples if example.pixels is not None]
        picture = np.full(len(examples), -1, np.int64)
        picture[[example.pixels is not None for example in examples]] = np.arange(len(present))
        if not present:
            # Nothing may stand in for a picture: batch normalisation would count it.
            return np.zeros((0, 3, self._anchors.side, self._anchors.side), np.uint8), picture
        return np.ascontiguousarray(np.stack(present).transpose(0, 3, 1, 2)), picture

    def _targets(self, examples: Sequence[Example], offsets: np.ndarray, shape: tuple[int, ...]) -> Targets:
        posts, queries, _ = shape
        existence = np.zeros((posts, queries), np.int64)
        starts, ends = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        matches = []
        objectness = np.full((posts, queries, self._anchors.candidates), -1, np.int8)
        box_candidates, box_targets = [], []
        for p, example in enumerate(examples):
            for first, last, k in example.spans:
                i, j = first + offsets[k], last + offsets[k]
                existence[p, k] = starts[p, k, i] = ends[p, k, j] = 1
                matches.append((p, k, i, j))
            # Where nobody looked, an absent box says nothing.
            if example.pixels is None or not example.boxes_annotated:
                continue
            objectness[p] = 0
            for k, box in largest_boxes(example).items():
                assignment = assign(box, self._anchors, self._ignore_iou)
                if assignment is None:
                    objectness[p, k] = -1
                    continue
                objectness[p, k, list(assignment.ignored)] = -1
                objectness[p, k, assignment.candidate] = 1
                box_candidates.append((p, k, assignment.candidate))
                box_targets.append(assignment.target)
        return Targets(
            existence=torch.from_numpy(existence),
            starts=torch.from_numpy(starts),
            ends=torch.from_numpy(ends),
            matches=torch.tensor(matches, dtype=torch.long).reshape(-1, 4),
            objectness=torch.from_numpy(objectness),
            box_candidates=torch.tensor(box_candidates, dtype=torch.long).reshape(-1, 3),
            box_targets=torch.tensor(box_targets, dtype=torch.float32).reshape(-1, 4),
        )


def largest_boxes(example: Example) -> dict[int, Floats]:
    """The largest gold box of each type index: the paper's single target of a query."""
    largest: dict[int, Floats] = {}
    for box, kind in zip(example.boxes_canvas, example.box_types, strict=True):
        if kind not in largest or _area(box) > _area(largest[kind]):
            largest[kind] = box
    return largest


def _area(box: Floats) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


# Examples travel from Ray Data's tasks to the training workers as Arrow columns: no ragged tensors, no pickles.
EXAMPLE_SCHEMA = pa.schema(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("begins_word", pa.list_(pa.bool_())),
        ("ends_word", pa.list_(pa.bool_())),
        ("truncated", pa.bool_()),
        ("pixels", pa.binary()),
        ("spans", pa.list_(pa.int32())),
        ("boxes_canvas", pa.list_(pa.float32())),
        ("box_types", pa.list_(pa.int32())),
        ("boxes_annotated", pa.bool_()),
    ]
)


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Examples as Arrow columns; the letterbox stays behind (training has no use for it)."""
    rows = []
    for example in examples:
        row = {entry.name: getattr(example.text, entry.name) for entry in fields(EncodedText)}
        row["pixels"] = None if example.pixels is None else example.pixels.tobytes()
        row["spans"] = [number for span in example.spans for number in span]
        row["boxes_canvas"] = example.boxes_canvas.ravel().tolist()
        row["box_types"] = list(example.box_types)
        row["boxes_annotated"] = example.boxes_annotated
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def table_to_examples(table: pa.Table, side: int) -> list[Example]:
    """The inverse of `examples_to_table` for canvases of `side` pixels."""
    examples = []
    for row in table.select(EXAMPLE_SCHEMA.names).to_pylist():
        pixels = row["pixels"]
        numbers = row["spans"]
        examples.append(
            Example(
                text=EncodedText(**{entry.name: row[entry.name] for entry in fields(EncodedText)}),
                pixels=None if pixels is None else np.frombuffer(pixels, np.uint8).reshape(side, side, 3),
                spans=tuple((a, b, k) for a, b, k in zip(*[iter(numbers)] * 3, strict=True)),
                boxes_canvas=np.asarray(row["boxes_canvas"], np.float32).reshape(-1, 4),
                box_types=tuple(row["box_types"]),
                boxes_annotated=row["boxes_annotated"],
            )
        )
    return examples
