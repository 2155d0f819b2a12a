"""Posts on their way from the tasks that prepare them, over the model, to those that finish them: Arrow columns.

Their names keep them apart from whatever an archive's columns are called. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnerqg.inputs.images import Pixels
from mnerqg.inputs.lists import counts, listed
from mnerqg.inputs.sentences import IntArray, Sentences, Shown, starts_of
from mnerqg.inputs.text import EncodedText

PICTURES = "mnerqg:pictures"
"""Of each post a list of what became of its pictures; a usable one has its canvas, until the model has seen it."""
TEXTS = "mnerqg:texts"
"""Of each post a list of the windows of its text."""

ROW_ERROR = "mnerqg:error"
"""What is wrong with a row itself, whatever its pictures are; null for most."""

_OUTCOME = [("status", pa.string()), ("error", pa.string()), ("retryable", pa.bool_())]
_SIZED = [("width", pa.int32()), ("height", pa.int32())]
FETCHED_TYPE = pa.list_(pa.struct([("data", pa.large_binary()), *_OUTCOME]))
DECODED_TYPE = pa.list_(pa.struct([("pixels", pa.large_binary()), *_SIZED, *_OUTCOME]))

_PIECES = ("token_ids", "starts", "ends", "begins_word", "ends_word")
_WINDOW_TYPE = pa.struct(
    [
        *((name, pa.list_(pa.int32())) for name in _PIECES[:3]),
        *((name, pa.list_(pa.bool_())) for name in _PIECES[3:]),
        ("text_read", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)


def texts_to_arrow(posts: Sequence[Sequence[EncodedText]]) -> pa.ListArray:
    """The windows of each post's text; the text itself stays in its own column."""
    windows = list(chain.from_iterable(posts))
    lengths = [len(window.token_ids) for window in windows]

    def pieces(name: str, kind: pa.DataType) -> pa.ListArray:
        flat = chain.from_iterable(getattr(window, name) for window in windows)
        return listed(lengths, pa.array(np.fromiter(flat, kind.to_pandas_dtype(), sum(lengths)), kind))

    columns = [
        *(pieces(name, pa.int32()) for name in _PIECES[:3]),
        *(pieces(name, pa.bool_()) for name in _PIECES[3:]),
        pa.array([window.text_read for window in windows], pa.int32()),
        pa.array([window.truncated for window in windows], pa.bool_()),
    ]
    return listed(map(len, posts), pa.StructArray.from_arrays(columns, fields=list(_WINDOW_TYPE)))


def texts_from_arrow(column: pa.ChunkedArray, texts: Sequence[str | None]) -> list[list[EncodedText]]:
    """The inverse of `texts_to_arrow`."""
    return [
        [EncodedText(text=text or "", **window) for window in windows]
        for windows, text in zip(column.to_pylist(), texts, strict=True)
    ]


def without_pixels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`PICTURES` with all but the canvases, none of which is copied."""
    chunks = [listed(counts(chunk), _dropped(chunk.flatten(), "pixels")) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.list_(pa.struct([*_SIZED, *_OUTCOME])))


def has_error(column: pa.ChunkedArray | pa.ListArray) -> NDArray[np.bool_]:
    """[rows] whether there is an error: of a column of texts, or of lists of structs with a field `error`."""
    found = []
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        errors, rows = chunk, np.arange(len(chunk))
        if pa.types.is_list(chunk.type):
            structs = chunk.flatten()
            errors = structs.flatten()[structs.type.get_field_index("error")]
            rows = np.repeat(rows, counts(chunk))
        is_error = errors.is_valid().to_numpy(zero_copy_only=False)
        found.append(np.bincount(rows, is_error, minlength=len(chunk)) > 0)
    return np.concatenate([np.zeros(0, bool), *found])


@dataclass(frozen=True)
class Views:
    """What the model is to look at: of each row each window of its text beside each of its usable pictures, or beside
    none where it has none. Picture for picture, window for window.

    sentences: of the V views.
    canvases: of all usable pictures; canvas: [V] which of them each view has, -1 for none.
    per_row: how many views each row has.
    """

    sentences: Sentences
    canvases: Sequence[Pixels]
    canvas: IntArray
    per_row: IntArray

    @classmethod
    def of(cls, rows: pa.Table, side: int) -> Self:
        """Of rows with `TEXTS` and `PICTURES`, whose canvases have this side, pixels; no canvas is copied."""
        windows, sentences = _sentences(rows[TEXTS])
        canvases, usable = _canvases(rows[PICTURES], side)
        slots = np.maximum(usable, 1)  # one for each picture, or one for none
        row_of_slot = np.repeat(np.arange(len(slots)), slots)
        canvas_of_slot = np.full(len(row_of_slot), -1)
        canvas_of_slot[(usable > 0)[row_of_slot]] = np.arange(len(canvases))
        views = windows[row_of_slot]
        slot = np.repeat(np.arange(len(row_of_slot)), views)
        within = np.arange(len(slot)) - starts_of(views)[slot]
        return cls(
            sentences=sentences.take(starts_of(windows)[row_of_slot[slot]] + within),
            canvases=canvases,
            canvas=canvas_of_slot[slot],
            per_row=slots * windows,
        )

    def __len__(self) -> int:
        return len(self.canvas)

    def by_length(self) -> IntArray:
        """The views in the order of their texts' lengths: padding costs as much as words do."""
        return np.argsort(self.sentences.lengths, kind="stable")

    def take(self, which: IntArray) -> tuple[Sentences, Shown]:
        """The sentences and pictures of some views."""
        canvas = self.canvas[which]
        posts = np.flatnonzero(canvas >= 0)
        present, first, rows = np.unique(canvas[posts], return_index=True, return_inverse=True)
        order = np.argsort(first)
        canvases = [self.canvases[one] for one in present[order]]
        return self.sentences.take(which), Shown(canvases, posts, np.argsort(order)[rows])


def _sentences(column: pa.ChunkedArray) -> tuple[IntArray, Sentences]:
    """How many windows each row has, and the pieces of all of them."""
    rows = column.combine_chunks()
    windows = rows.flatten()
    ids, _, _, begins, ends, *_ = windows.flatten()
    lengths = counts(ids)
    pieces, begins_word, ends_word = (
        part.flatten().to_numpy(zero_copy_only=False) for part in (ids, begins, ends)
    )
    return counts(rows), Sentences(pieces, begins_word, ends_word, starts_of(lengths), lengths)


def _canvases(column: pa.ChunkedArray, side: int) -> tuple[list[Pixels], IntArray]:
    """The canvases of all usable pictures, and how many each row has."""
    canvases: list[Pixels] = []
    usable = [np.zeros(0, np.int64)]
    for rows in column.chunks:
        pixels, _, _, status, *_ = rows.flatten().flatten()
        is_usable = pc.equal(status, "ok").to_numpy(zero_copy_only=False)
        per_row = counts(rows)
        row_of = np.repeat(np.arange(len(per_row)), per_row)
        usable.append(np.bincount(row_of, is_usable, minlength=len(per_row)).astype(np.int64))
        canvases += _views(pixels, np.flatnonzero(is_usable), side)
    return canvases, np.concatenate(usable)


def _views(pixels: pa.LargeBinaryArray, which: IntArray, side: int) -> list[Pixels]:
    """[side, side, 3] each, where they lie."""
    if not len(which):
        return []
    _, offsets, data = pixels.buffers()
    starts = np.frombuffer(offsets, np.int64)[pixels.offset :][which]
    flat = np.frombuffer(data, np.uint8)
    return [flat[start : start + 3 * side**2].reshape(side, side, 3) for start in starts.tolist()]


def _dropped(structs: pa.StructArray, name: str) -> pa.StructArray:
    fields = [entry for entry in structs.type if entry.name != name]
    columns = dict(zip((entry.name for entry in structs.type), structs.flatten(), strict=True))
    return pa.StructArray.from_arrays([columns[entry.name] for entry in fields], fields=fields)
