"""The picture stages of bulk tagging: fetch and decode, in Ray Data tasks (DESIGN §6).

Each maps an Arrow table to an Arrow table with the same rows. Between the stages travel the archive's columns
and `PICTURES`, a list for every post, whose name keeps it apart from whatever an archive's columns are called.
Nothing here imports torch: every worker process would pay for it in seconds and memory.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from mnerqg.archive.reading import text_values
from mnerqg.config_jobs import ColumnsConfig, ImageLimits, PicturesConfig
from mnerqg.errors import one_line
from mnerqg.inputs.images import ImageProblem, decode_letterbox
from mnerqg.io.picture_store import Fetched, PictureStore

PICTURES = "mnerqg:pictures"

_OUTCOME = [("status", pa.string()), ("error", pa.string()), ("retryable", pa.bool_())]
_SIZED = [("pixels", pa.large_binary()), ("width", pa.int32()), ("height", pa.int32())]
_FETCHED_TYPE = pa.list_(pa.struct([("data", pa.large_binary()), *_OUTCOME]))
_DECODED_TYPE = pa.list_(pa.struct([*_SIZED, *_OUTCOME]))


class FetchPictures:
    """Adds bytes, status and error of every picture of a post; the URIs go unless they are passed through."""

    def __init__(self, columns: ColumnsConfig, uris: str, config: PicturesConfig) -> None:
        self._columns = columns
        self._uris = uris
        self._store = PictureStore(config)
        self._max_per_post = config.max_per_post

    def __call__(self, rows: pa.Table) -> pa.Table:
        posts = self._uris_of_posts(rows[self._uris])
        wanted = [uri for uris in posts for uri in uris[: self._max_per_post]]
        fetched = iter(self._store.fetch_many(wanted))
        pictures = [self._pictures(uris, fetched) for uris in posts]
        rows = _without(rows, self._uris, self._columns)
        return rows.append_column(PICTURES, pa.array(pictures, _FETCHED_TYPE))

    def _uris_of_posts(self, column: pa.ChunkedArray) -> list[list[str | None]]:
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            return [[uri] for uri in text_values(column)[0]]
        flat = iter(text_values(pa.chunked_array([column.combine_chunks().flatten()]))[0])
        lengths = column.combine_chunks().value_lengths().to_pylist()
        return [list(itertools.islice(flat, length or 0)) for length in lengths]

    def _pictures(self, uris: Sequence[str | None], fetched: Iterable[Fetched]) -> list[dict[str, Any]]:
        read = itertools.islice(fetched, min(len(uris), self._max_per_post))
        pictures = [_fetched(one) for one in read]
        unread = Fetched(None, "too_large", f"only {self._max_per_post} pictures of a post are read")
        return pictures + [_fetched(unread)] * (len(uris) - len(pictures))


class DecodePictures:
    """Replaces the bytes of every picture by its canvas [side, side, 3] uint8 and original size."""

    def __init__(self, columns: ColumnsConfig, side: int, limits: ImageLimits) -> None:
        self._columns = columns
        self._side = side
        self._limits = limits

    def __call__(self, rows: pa.Table) -> pa.Table:
        decoded = [[self._decode(picture) for picture in post] for post in self._posts(rows)]
        rows = _without(rows, self._columns.image, self._columns)
        if PICTURES in rows.column_names:
            rows = rows.drop_columns([PICTURES])
        return rows.append_column(PICTURES, pa.array(decoded, _DECODED_TYPE))

    def _posts(self, rows: pa.Table) -> list[list[dict[str, Any]]]:
        if PICTURES in rows.column_names:
            posts: list[list[dict[str, Any]]] = rows[PICTURES].to_pylist()
            return posts
        name = self._columns.image
        if name not in rows.column_names:
            return [[] for _ in range(rows.num_rows)]
        images = rows[name].to_pylist()
        return [[_fetched(Fetched(image, "none" if image is None else "ok", None))] for image in images]

    def _decode(self, picture: dict[str, Any]) -> dict[str, Any]:
        data = picture.pop("data")
        if picture["status"] != "ok":
            return picture
        try:
            pixels, letterbox = decode_letterbox(data, self._side, self._limits)
        except ImageProblem as problem:
            return picture | {"status": problem.status, "error": str(problem)}
        return picture | {"pixels": pixels.tobytes(), "width": letterbox.width, "height": letterbox.height}


def _fetched(fetched: Fetched) -> dict[str, Any]:
    return {
        "data": fetched.data,
        "status": fetched.status,
        "error": one_line(fetched.error) if fetched.error else None,
        "retryable": fetched.transient,
    }


def _without(rows: pa.Table, name: str, columns: ColumnsConfig) -> pa.Table:
    """`rows` without a column whose work is done, unless it is passed through."""
    keep = name in columns.pass_through or name not in rows.column_names
    return rows if keep else rows.drop_columns([name])
