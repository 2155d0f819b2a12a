"""The picture stages of bulk tagging: fetch and decode, in Ray Data tasks (DESIGN §6).

Each maps an Arrow table to an Arrow table with the same rows. Between the stages travel the archive's columns
and the ones named below, whose prefix keeps them apart from whatever an archive's columns are called. Nothing
here imports torch: every worker process would pay for it in seconds and memory.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mnerqg.config import ColumnsConfig
from mnerqg.data.archive import text_values
from mnerqg.data.images import ImageLimits, ImageProblem, decode_letterbox
from mnerqg.pictures import PicturePolicy, PictureStore

_FETCHED = "mnerqg:image"
STATUS = "mnerqg:image_status"
ERROR = "mnerqg:error"
PIXELS = "mnerqg:pixels"
WIDTH = "mnerqg:width"
HEIGHT = "mnerqg:height"

_Picture = tuple[bytes | None, int | None, int | None, str | None, str | None]
"""Canvas, width, height, status, error."""


class FetchPictures:
    """Adds the bytes, status and error of every row's picture; the URI goes unless it is passed through."""

    def __init__(self, columns: ColumnsConfig, policy: PicturePolicy) -> None:
        self._columns = columns
        self._store = PictureStore(policy)

    def __call__(self, rows: pa.Table) -> pa.Table:
        name = self._columns.image_uri
        fetched = self._store.fetch_many(text_values(rows[name])[0])
        rows = _without(rows, name, self._columns)
        rows = rows.append_column(_FETCHED, pa.array([one.data for one in fetched], pa.large_binary()))
        rows = rows.append_column(STATUS, pa.array([one.status for one in fetched], pa.string()))
        return rows.append_column(ERROR, _text_array([one.error for one in fetched]))


class DecodePictures:
    """Replaces the bytes of every row's picture by its canvas [side, side, 3] uint8 and original size."""

    def __init__(self, columns: ColumnsConfig, side: int, limits: ImageLimits) -> None:
        self._columns = columns
        self._side = side
        self._limits = limits

    def __call__(self, rows: pa.Table) -> pa.Table:
        pictures = [self._decode(*picture) for picture in self._pictures(rows)]
        for name in (_FETCHED, STATUS, ERROR):
            rows = rows.drop_columns([name]) if name in rows.column_names else rows
        rows = _without(rows, self._columns.image, self._columns)
        canvases, widths, heights, statuses, errors = zip(*pictures, strict=True) if pictures else ((),) * 5
        for name, values in (
            (PIXELS, pa.array(canvases, pa.large_binary())),
            (WIDTH, pa.array(widths, pa.int32())),
            (HEIGHT, pa.array(heights, pa.int32())),
            (STATUS, pa.array(statuses, pa.string())),
            (ERROR, _text_array(errors)),
        ):
            rows = rows.append_column(name, values)
        return rows

    def _pictures(self, rows: pa.Table) -> Sequence[tuple[Any, Any, Any]]:
        """Bytes, status (None: not known yet) and error of each row."""
        nothing = [None] * rows.num_rows
        if _FETCHED in rows.column_names:
            columns = [rows[name].to_pylist() for name in (_FETCHED, STATUS, ERROR)]
            return list(zip(*columns, strict=True))
        name = self._columns.image
        images = rows[name].to_pylist() if name in rows.column_names else nothing
        return list(zip(images, nothing, nothing, strict=True))

    def _decode(self, data: bytes | None, status: str | None, error: str | None) -> _Picture:
        if status not in (None, "ok"):
            return None, None, None, status, error
        if data is None:
            return None, None, None, "none", None
        try:
            pixels, letterbox = decode_letterbox(data, self._side, self._limits)
        except ImageProblem as problem:
            return None, None, None, problem.status, str(problem)
        return pixels.tobytes(), letterbox.width, letterbox.height, "ok", None


def _without(rows: pa.Table, name: str, columns: ColumnsConfig) -> pa.Table:
    """`rows` without a column whose work is done, unless it is passed through."""
    keep = name in columns.pass_through or name not in rows.column_names
    return rows if keep else rows.drop_columns([name])


def _text_array(values: Sequence[str | None]) -> pa.Array:
    """Messages of the operating system may carry surrogates, which no Arrow string can hold."""
    return pa.array(
        [None if value is None else value.encode("utf-8", "replace").decode() for value in values],
        pa.string(),
    )
