"""JSON Lines archives: one post a line, and one row for every line, whatever is wrong with it.

A file is read twice: before the run by `scan`, which counts the posts and finds their keys, and by `read_tables`,
which makes rows of them. Both see the same lines: those between line feeds that are not blank.
"""

import contextlib
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.archive.files import path_values
from mnerqg.archive.json_values import (
    ARROW_TYPES,
    READERS,
    Kind,
    LostPicturesError,
    Picture,
    UnfitError,
    described,
    values_as_written,
)
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError, one_line
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE_BYTES = 16 * 2**20
LINE_ERROR = "mnerqg:line_error"
"""The column that says what is wrong with a row's line, null where nothing is."""
PICTURE_ERRORS = "mnerqg:picture_errors"
"""The column that says of each picture of a row why what was given as one cannot be used, null where nothing is."""

_MENDED = "mended: "
"""How an error begins that cost nothing but characters; any other says that something was not read (`counts`)."""
_SAMPLE_LINES = 1000
_MAX_KEYS = 100
_PLAIN = re.compile(r"[A-Za-z0-9 _.:@#$-]*")
"""Keys that every writer puts down as they are."""
_BUFFER_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def table_schema(fields: Iterable[pa.Field]) -> pa.Schema:
    """Of every table of an archive, whatever its format: the columns, `row_hash`, `LINE_ERROR`, `PICTURE_ERRORS`."""
    errors = [pa.field(LINE_ERROR, pa.string()), pa.field(PICTURE_ERRORS, pa.list_(pa.string()))]
    return pa.schema([*fields, pa.field(ROW_HASH, pa.uint64()), *errors])


@dataclass(frozen=True)
class Layout:
    """The keys of the posts that become columns, and what each of them holds."""

    columns: tuple[tuple[str, Kind], ...]

    @property
    def schema(self) -> pa.Schema:
        """Of every table: the columns, `row_hash`, `LINE_ERROR` and `PICTURE_ERRORS`."""
        return table_schema(pa.field(name, ARROW_TYPES[kind]) for name, kind in self.columns)


@dataclass(frozen=True)
class Scan:
    """What a file, or an archive, holds.

    Attributes:
        rows: posts, which is lines that are not blank.
        keys: of the posts; all that `ColumnsConfig` names, of the others the first hundred.
        problem: the first bad line that was come across.
    """

    rows: int
    keys: tuple[str, ...]
    problem: str | None

    @classmethod
    def total(cls, scans: Iterable["Scan"]) -> "Scan":
        """Several files as one."""
        scans = list(scans)
        return cls(
            rows=sum(one.rows for one in scans),
            keys=tuple(dict.fromkeys(key for one in scans for key in one.keys)),
            problem=next((one.problem for one in scans if one.problem), None),
        )


# ---- looking at files ----------------------------------------------------------------------------


def check_head(entry: storage.FileEntry) -> None:
    """Read a file up to its first post, for what is wrong from the start; errors as of `scan`, and in its words."""
    with storage.open_stream(entry.uri) as stream:
        next(_lines(stream, entry.uri), None)


def scan(entry: storage.FileEntry, columns: ColumnsConfig) -> Scan:
    """Read a file once, in little memory.

    The first thousand lines are parsed, and then those in which a name may stand that has not been met as a key.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is compressed and damaged.
    """
    names = {columns.post_id, columns.text, columns.image, columns.image_uris, columns.image_uri}
    names |= set(columns.pass_through)
    unseen = set(names)
    spellings = _spellings(unseen)
    keys: dict[str, None] = {}
    rows, problem = 0, None
    with storage.open_stream(entry.uri) as stream:
        for number, content in _lines(stream, entry.uri):
            rows += 1
            if not (rows <= _SAMPLE_LINES or _has_any(content, spellings)):
                continue
            post, _, wrong = _parse(content)
            problem = problem or (wrong and f"{entry.uri}: line {number} {wrong}")
            if not unseen.isdisjoint(post):
                unseen -= post.keys()
                spellings = _spellings(unseen)
            for key in [key for key in post if key not in keys]:
                if key in names or len(keys) < _MAX_KEYS:
                    keys[key] = None
    return Scan(rows, tuple(keys), problem)


def _spellings(keys: Collection[str]) -> set[bytes]:
    """Bytes of which some stand in any line that has one of the keys."""
    spellings = {f'"{key}"'.encode("utf-8", "replace") for key in keys}
    if not all(map(_PLAIN.fullmatch, keys)):
        spellings.add(b"\\")  # writers escape as they please what is not ASCII, and slashes
    return spellings


def _has_any(content: bytes | None, parts: Collection[bytes]) -> bool:
    return content is not None and any(map(content.__contains__, parts))


def make_layout(columns: ColumnsConfig, picture: Picture | None) -> Layout:
    """The layout of an archive in which `picture`, one of the keys for pictures, is read."""
    kinds: dict[str, Kind] = {columns.post_id: "post_id"}
    kinds.setdefault(columns.text, "text")
    if picture is not None:
        kinds.setdefault(getattr(columns, picture), picture)
    for name in columns.pass_through:
        kinds.setdefault(name, columns.types.get(name, "string"))
    return Layout(tuple(kinds.items()))


# ---- lines ---------------------------------------------------------------------------------------


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Number (from 1) and bytes of every line that is not blank; None for one beyond `MAX_LINE_BYTES`."""
    reader = _decompressed(stream, name)
    number = 0
    try:
        while line := reader.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = reader.readline(_BUFFER_BYTES)
                yield number, None
                continue
            line = line.removeprefix(_BYTE_ORDER_MARK)  # after appending, one may stand anywhere
            if line and not line.isspace():
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        reason = one_line(error)
        raise DataError(
            f"{name} is damaged or cut short after line {number} ({reason}); replace or remove the file"
        ) from None


def _decompressed(stream: Any, name: str) -> BinaryIO:
    raw = io.BufferedReader(stream, _BUFFER_BYTES)
    if not raw.peek(1):
        return raw  # an empty file is no posts, compressed or not
    # Not pyarrow's streams: they refuse the zeros that some tools pad gzip files with.
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES)
    if name.endswith(".zst"):
        return io.BufferedReader(zstd.ZstdFile(raw), _BUFFER_BYTES)
    return raw


def _parse(content: bytes | None) -> tuple[dict[str, Any], str, str | None]:
    """The object on a line, empty where there is none, the line's text, and what is wrong with the line."""
    if content is None:
        return {}, "", f"is longer than {MAX_LINE_BYTES // 2**20} MiB"
    problem = None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        text = content.decode(errors="replace")
        problem = f"is not UTF-8 at byte {error.start + 1}"
    try:
        post = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, text, problem or f"is not valid JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a tower of brackets
        return {}, text, problem or f"is not valid JSON that can be read: {error}"
    if not isinstance(post, dict):
        return {}, text, f"is {described(post)}, not a JSON object"
    return post, text, problem


# ---- rows ----------------------------------------------------------------------------------------


def read_tables(
    stream: BinaryIO,
    path: str,
    layout: Layout,
    *,
    rows_per_table: int = 2048,
    bytes_per_table: int = MAX_LINE_BYTES,
) -> Iterator[pa.Table]:
    """A file's posts, one row for every line that is not blank, in tables of `layout.schema`.

    The same file gives the same tables, however often it is read; one without posts gives an empty table.

    Args:
        stream: the file as it lies there; it is decompressed where `path` ends in .gz or .zst.
        path: in the filesystem, as `storage.path_of` gives it: `row_hash` depends on it.
        layout: of the archive.
        rows_per_table: the most rows of a table.
        bytes_per_table: a table ends with the line that reaches them.

    Raises:
        DataError: the file is compressed and damaged.
    """
    rows: list[list[Any]] = []
    done = size = 0
    folders = _FolderValues(path, layout)
    for number, content in _lines(stream, path):
        rows.append(_row(number, content, path, layout, folders))
        size += len(content or b"")
        if len(rows) == rows_per_table or size >= bytes_per_table:
            yield _table(rows, path, done, layout)
            done += len(rows)
            rows, size = [], 0
    if rows or not done:
        yield _table(rows, path, done, layout)


class _FolderValues:
    """What the folders of a file say of all its posts: values and, of what does not fit, problems, by key.

    `lost` has those of the picture.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        self.values: dict[str, Any] = {}
        self.problems: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        texts = path_values(path)
        for name, kind in layout.columns:
            text = texts.get(name)
            if text is not None:
                try:
                    self.values[name] = READERS[kind](_number_or_text(text, kind))
                except LostPicturesError as unfit:
                    self.lost[name] = f"{name} {unfit} (in the name of its folder)"
                except UnfitError as unfit:
                    self.problems[name] = f"{name} {unfit} (in the name of its folder)"


def _number_or_text(text: str, kind: Kind) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text) if kind in ("int64", "float64", "bool") else text
    return text


def _row(number: int, content: bytes | None, path: str, layout: Layout, folders: _FolderValues) -> list[Any]:
    """The values of the layout's columns, then the error, then those of the pictures."""
    post, text, wrong = _parse(content)
    problems = [f"{_MENDED if post else ''}line {number} {wrong}"] if wrong else []
    lost: list[str | None] | None = None
    written: dict[str, str] = {}
    values: list[Any] = []
    for name, kind in layout.columns:
        value = post.get(name)
        if name not in post:
            value = folders.values.get(name)
            problems += [f"line {number}: {folders.problems[name]}"] if name in folders.problems else []
            lost = [f"{folders.lost[name]} ({path})"] if name in folders.lost else lost
        elif kind == "string" and not isinstance(value, str | None):
            written = written or values_as_written(text)
            value = written[name]
        elif value is not None:
            try:
                value = READERS[kind](value)
            except LostPicturesError as unfit:
                # Not as an error of the line begins: the post can be read, and the picture counts as one that failed.
                end = f", on line {number} ({path})"
                lost = [reason and f"{name} {reason}{end}" for reason in unfit.reasons]
                value = unfit.usable
            except UnfitError as unfit:
                mended = "" if unfit.usable is None else _MENDED
                problems.append(f"{mended}line {number}: {name} {unfit}")
                value = unfit.usable
        values.append(value)
    # The file, since the row may not even have an id by which the line could be found.
    values += [f"{'; '.join(problems)} ({path})" if problems else None, lost]
    return values


def _table(rows: Sequence[Sequence[Any]], path: str, start: int, layout: Layout) -> pa.Table:
    schema = layout.schema
    *columns, errors, lost = list(zip(*rows, strict=True)) or [()] * (len(layout.columns) + 2)
    values = [*columns, row_hashes(path, start, len(rows)), errors, lost]
    arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def row_hashes(path: str, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Numbers for the rows `start` to `start + count` of a file, the same in every run: [count] uint64.

    The function of Ray's `read_parquet(include_row_hash=True)`, so that both formats resume alike: the first
    eight bytes of the path's MD5 plus the row, through the finalizer of splitmix64 (Steele, Lea and Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014; public domain code by Sebastiano Vigna at
    https://prng.di.unimi.it/splitmix64.c), which maps different numbers to different numbers.
    """
    seed = int.from_bytes(hashlib.md5(path.encode(), usedforsecurity=False).digest()[:8], "little")
    keys = np.arange(start, start + count, dtype=np.uint64) + np.uint64(seed)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys
