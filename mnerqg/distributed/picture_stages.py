"""The picture stages of bulk tagging: fetch and decode, in Ray Data tasks.

Each maps an Arrow table to an Arrow table with the same rows. Between the stages travel the archive's columns
and `PICTURES`, a list for every post, whose name keeps it apart from whatever an archive's columns are called.
Nothing here imports torch: every worker process would pay for it in seconds and memory.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from mnerqg.archive.jsonlines import PICTURE_ERRORS
from mnerqg.archive.reading import uri_lists
from mnerqg.config_jobs import ColumnsConfig, ImageLimits, PicturesConfig
from mnerqg.errors import one_line
from mnerqg.inputs.images import decode_letterbox
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.inputs.prepared import DECODED_TYPE, FETCHED_TYPE, PICTURES
from mnerqg.io.picture_store import Fetched, PictureStore


class FetchPictures:
    """Adds bytes, status and error of every picture of a post; the URIs go unless they are passed through.

    Args:
        columns: of the archive.
        uris: the column with a URI, a list of URIs or a struct of `bytes` and `path`, whose path is only a name where
            there are bytes.
        config: where pictures may lie.
    """

    def __init__(self, columns: ColumnsConfig, uris: str, config: PicturesConfig) -> None:
        self._columns = columns
        self._uris = uris
        self._store = PictureStore(config)
        self._max_per_post = config.max_per_post

    def __call__(self, rows: pa.Table) -> pa.Table:
        column = rows[self._uris]
        embedded: list[bytes | None] = [None] * rows.num_rows
        if pa.types.is_struct(column.type):
            data, paths = column.combine_chunks().flatten()
            embedded, column = data.to_pylist(), pa.chunked_array([paths])
        posts = uri_lists(column)
        wanted = [
            uri
            for uris, data in zip(posts, embedded, strict=True)
            for uri in uris[: self._max_per_post]
            if data is None
        ]
        fetched = iter(self._store.fetch_many(wanted))
        pictures = [
            [_fetched(_embedded(data))] if data is not None else self._pictures(uris, fetched, errors)
            for uris, data, errors in zip(posts, embedded, _picture_errors(rows), strict=True)
        ]
        rows = _without(_without(rows, self._uris, self._columns), PICTURE_ERRORS, self._columns)
        return rows.append_column(PICTURES, pa.array(pictures, FETCHED_TYPE))

    def _pictures(
        self, uris: Sequence[str | None], fetched: Iterable[Fetched], errors: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        read = itertools.islice(fetched, min(len(uris), self._max_per_post))
        lost = itertools.islice(itertools.chain(errors, itertools.repeat(None)), len(uris))
        pictures = [_fetched(_lost(error) or one) for one, error in zip(read, lost, strict=False)]
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
        for name in (self._columns.image, PICTURE_ERRORS, PICTURES):
            rows = _without(rows, name, self._columns)
        return rows.append_column(PICTURES, pa.array(decoded, DECODED_TYPE))

    def _posts(self, rows: pa.Table) -> list[list[dict[str, Any]]]:
        if PICTURES in rows.column_names:
            posts: list[list[dict[str, Any]]] = rows[PICTURES].to_pylist()
            return posts
        name = self._columns.image
        if name not in rows.column_names:
            return [[] for _ in range(rows.num_rows)]
        images = zip(rows[name].to_pylist(), _picture_errors(rows), strict=True)
        return [[_fetched(_lost(next(iter(errors), None)) or _embedded(image))] for image, errors in images]

    def _decode(self, picture: dict[str, Any]) -> dict[str, Any]:
        data = picture.pop("data")
        if picture["status"] != "ok":
            return picture
        try:
            pixels, letterbox, flaw = decode_letterbox(data, self._side, self._limits)
        except ImageProblem as problem:
            return picture | {"status": problem.status, "error": str(problem)}
        return picture | {
            "pixels": pixels.tobytes(),
            "width": letterbox.width,
            "height": letterbox.height,
            "error": flaw,
        }


def _embedded(image: bytes | None) -> Fetched:
    """A picture that lies in the archive itself."""
    return Fetched(image, "none" if image is None else "ok", None)


def _lost(error: str | None) -> Fetched | None:
    """What was given as a picture and cannot be one."""
    return Fetched(None, "unreadable", error) if error else None


def _picture_errors(rows: pa.Table) -> list[list[str | None]]:
    """For each row the errors that the archive's reader has for its pictures, none for most."""
    if PICTURE_ERRORS not in rows.column_names:
        return [[] for _ in range(rows.num_rows)]
    return [errors or [] for errors in rows[PICTURE_ERRORS].to_pylist()]


def _fetched(fetched: Fetched) -> dict[str, Any]:
    return {
        "data": fetched.data,
        "status": fetched.status,
        "error": one_line(fetched.error) if fetched.error else None,
        "retryable": fetched.transient,
    }


def _without(rows: pa.Table, name: str, columns: ColumnsConfig) -> pa.Table:
    """`rows` without a column whose work is done, unless it is also the id, the text or passed through."""
    needed = (columns.post_id, columns.text, *columns.pass_through)
    keep = name in needed or name not in rows.column_names
    return rows if keep else rows.drop_columns([name])
