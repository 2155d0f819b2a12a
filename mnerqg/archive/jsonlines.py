"""JSON Lines archives: one post a line, and one row for every line, whatever is wrong with it (DESIGN §3).

A file is read twice: before the run by `scan`, which counts the posts and finds the types of what is passed
through, and by `read_tables`, which makes rows of them. Both see the same lines: those between line feeds that
are not blank.
"""

import base64
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.config import ColumnsConfig
from mnerqg.errors import DataError, one_line
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ENDINGS = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
MAX_LINE_BYTES = 16 * 2**20
LINE_ERROR = "mnerqg:line_error"
"""The column that says what is wrong with a row's line, null where nothing is."""

_SAMPLE_LINES = 1000
_MAX_KEYS = 100
_BUFFER_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Picture = Literal["image", "image_uris", "image_uri"]
Kind = Literal["post_id", "text", Picture, "null", "bool", "int", "float", "string"]
ValueKind = Literal["null", "bool", "int", "float", "string", "other"]

_ARROW_TYPES: dict[Kind, pa.DataType] = {
    "post_id": pa.string(),
    "text": pa.large_string(),
    "image": pa.large_binary(),
    "image_uris": pa.list_(pa.string()),
    "image_uri": pa.string(),
    "null": pa.null(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
}
_VALUE_KINDS: dict[type, ValueKind] = {bool: "bool", float: "float", str: "string"}


@dataclass(frozen=True)
class Layout:
    """The keys of the posts that become columns, and what each of them holds."""

    columns: tuple[tuple[str, Kind], ...]

    @property
    def schema(self) -> pa.Schema:
        """Of every table: the columns, `row_hash` and `LINE_ERROR`."""
        fields = [pa.field(name, _ARROW_TYPES[kind]) for name, kind in self.columns]
        return pa.schema([*fields, pa.field(ROW_HASH, pa.uint64()), pa.field(LINE_ERROR, pa.string())])


@dataclass(frozen=True)
class Scan:
    """What a file, or an archive, holds.

    Attributes:
        rows: posts, which is lines that are not blank.
        keys: of the posts; all that `ColumnsConfig` names, of the others the first hundred.
        kinds: for every pass-through column the kinds of its values, in whatever lines have it.
        problem: the first bad line that was come across.
    """

    rows: int
    keys: tuple[str, ...]
    kinds: dict[str, frozenset[ValueKind]]
    problem: str | None

    @classmethod
    def total(cls, scans: Iterable["Scan"]) -> "Scan":
        """Several files as one."""
        scans = list(scans)
        kinds: dict[str, frozenset[ValueKind]] = {}
        for one in scans:
            for name, found in one.kinds.items():
                kinds[name] = kinds.get(name, frozenset()) | found
        return cls(
            rows=sum(one.rows for one in scans),
            keys=tuple(dict.fromkeys(key for one in scans for key in one.keys)),
            kinds=kinds,
            problem=next((one.problem for one in scans if one.problem), None),
        )


# ---- looking at files ----------------------------------------------------------------------------


def scan(entry: storage.FileEntry, columns: ColumnsConfig) -> Scan:
    """Read a file once, in little memory.

    All lines are parsed only where columns are passed through. Otherwise the first thousand are, and then those
    in which a name stands that has not been met as a key.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is compressed and damaged.
    """
    names = {columns.post_id, columns.text, columns.image, columns.image_uris, columns.image_uri}
    typed = set(columns.pass_through) - {columns.post_id, columns.text}
    unseen = names | typed
    spellings = _spellings(unseen)
    keys: dict[str, None] = {}
    kinds: dict[str, set[ValueKind]] = {name: set() for name in typed}
    rows, problem = 0, None
    with storage.open_stream(entry.uri) as stream:
        for number, content in _lines(stream, entry.uri):
            rows += 1
            if not (typed or rows <= _SAMPLE_LINES or _has_any(content, spellings)):
                continue
            post, wrong = _parse(content)
            problem = problem or (wrong and f"{entry.uri}: line {number} {wrong}")
            if not unseen.isdisjoint(post):
                unseen -= post.keys()
                spellings = _spellings(unseen)
            for key in [key for key in post if key not in keys]:
                if key in names or key in typed or len(keys) < _MAX_KEYS:
                    keys[key] = None
            for name in typed & post.keys():
                kinds[name].add(_value_kind(post[name]))
    return Scan(rows, tuple(keys), {name: frozenset(found) for name, found in kinds.items()}, problem)


def _spellings(keys: Collection[str]) -> set[bytes]:
    """The keys as JSON writers put them down: with or without escapes for what is not ASCII."""
    escaped = {json.dumps(key).encode() for key in keys}
    return escaped | {json.dumps(key, ensure_ascii=False).encode("utf-8", "replace") for key in keys}


def _has_any(content: bytes | None, parts: Collection[bytes]) -> bool:
    return content is not None and any(map(content.__contains__, parts))


def _value_kind(value: Any) -> ValueKind:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**63 else "other"
    return _VALUE_KINDS.get(type(value), "other")


def make_layout(found: Scan, columns: ColumnsConfig, picture: Picture | None) -> Layout:
    """The layout of an archive.

    Args:
        found: all files together.
        columns: whose `post_id`, `text`, `picture` and `pass_through` are keys of `found`.
        picture: which of the keys for pictures is read.
    """
    kinds: dict[str, Kind] = {columns.post_id: "post_id"}
    kinds.setdefault(columns.text, "text")
    if picture is not None:
        kinds.setdefault(getattr(columns, picture), picture)
    for name in columns.pass_through:
        kinds.setdefault(name, _column_kind(found.kinds.get(name, frozenset())))
    return Layout(tuple(kinds.items()))


def _column_kind(kinds: frozenset[ValueKind]) -> Kind:
    """The narrowest type for values of these kinds; a column of text takes any, as JSON."""
    present = kinds - {"null"}
    if not present:
        return "null"
    if present == {"bool"}:
        return "bool"
    if present == {"int"}:
        return "int"
    return "float" if present <= {"int", "float"} else "string"


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


def _parse(content: bytes | None) -> tuple[dict[str, Any], str | None]:
    """The object on a line, empty where there is none, and what is wrong with the line."""
    if content is None:
        return {}, f"is longer than {MAX_LINE_BYTES // 2**20} MiB"
    problem = None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        text = content.decode(errors="replace")
        problem = f"is not UTF-8 at byte {error.start + 1}"
    try:
        post = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, problem or f"is not valid JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a tower of brackets
        return {}, problem or f"is not valid JSON that can be read: {error}"
    return (post, problem) if isinstance(post, dict) else ({}, f"is {_described(post)}, not a JSON object")


# ---- rows ----------------------------------------------------------------------------------------


class _UnfitError(Exception):
    """A value that its column does not take as it is; `usable` is what can be kept of it."""

    def __init__(self, words: str, usable: Any = None) -> None:
        super().__init__(words)
        self.usable = usable


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
    for number, content in _lines(stream, path):
        rows.append(_row(number, content, path, layout))
        size += len(content or b"")
        if len(rows) == rows_per_table or size >= bytes_per_table:
            yield _table(rows, path, done, layout)
            done += len(rows)
            rows, size = [], 0
    if rows or not done:
        yield _table(rows, path, done, layout)


def _row(number: int, content: bytes | None, path: str, layout: Layout) -> list[Any]:
    """The values of the layout's columns, then the error."""
    post, wrong = _parse(content)
    problems = [f"line {number} {wrong}"] if wrong else []
    values: list[Any] = []
    for name, kind in layout.columns:
        value = post.get(name)
        if value is not None:
            try:
                value = _READERS[kind](value)
            except _UnfitError as unfit:
                problems.append(f"line {number}: {name} {unfit}")
                value = unfit.usable
        values.append(value)
    # The file, since the row may not even have an id by which the line could be found.
    values.append(f"{'; '.join(problems)} ({path})" if problems else None)
    return values


def _table(rows: Sequence[Sequence[Any]], path: str, start: int, layout: Layout) -> pa.Table:
    schema = layout.schema
    *columns, errors = list(zip(*rows, strict=True)) or [()] * (len(layout.columns) + 1)
    values = [*columns, row_hashes(path, start, len(rows)), errors]
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


# ---- values --------------------------------------------------------------------------------------


def _read_id(value: Any) -> str:
    return (
        str(value) if _described(value) == "a whole number" else _read_text(value, "text or a whole number")
    )


def _read_text(value: Any, wanted: str = "text") -> str:
    if not isinstance(value, str):
        raise _UnfitError(f"is {_described(value)}, not {wanted}")
    if (usable := _encodable(value)) != value:
        raise _UnfitError(_HALF_A_PAIR, usable)
    return value


def _read_texts(value: Any) -> list[str | None]:
    if not isinstance(value, list):
        raise _UnfitError(f"is {_described(value)}, not a list of texts")
    for one in value:
        if one is not None and not isinstance(one, str):
            raise _UnfitError(f"is a list with {_described(one)} in it, not of texts")
    usable = [None if one is None else _encodable(one) for one in value]
    if usable != value:
        raise _UnfitError(_HALF_A_PAIR, usable)
    return usable


def _encodable(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read_base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _UnfitError(f"is {_described(value)}, not base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise _UnfitError(f"is not base64: {error}") from None


def _read_as_json(value: Any) -> str:
    try:
        return _read_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise _UnfitError("is nested too deeply") from None


def _read_plain(*kinds: ValueKind) -> Callable[[Any], Any]:
    """A reader of values whose kinds `scan` has found; others are there if the file has changed since."""

    def read(value: Any) -> Any:
        if _value_kind(value) not in kinds:
            raise _UnfitError(f"is {_described(value)}, which it was not when the posts were counted")
        return value

    return read


def _read_float(value: Any) -> float:
    return float(_read_plain("int", "float")(value))  # Arrow would refuse whole numbers above 2^53


_READERS: dict[Kind, Callable[[Any], Any]] = {
    "post_id": _read_id,
    "text": _read_text,
    "image": _read_base64,
    "image_uris": _read_texts,
    "image_uri": _read_text,
    "null": _read_plain(),
    "bool": _read_plain("bool"),
    "int": _read_plain("int"),
    "float": _read_float,
    "string": _read_as_json,
}


def _described(value: Any) -> str:
    return _DESCRIPTIONS[type(value)]


_DESCRIPTIONS = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "text",
    list: "a list",
    dict: "an object",
}
_HALF_A_PAIR = "has half a surrogate pair, now U+FFFD"
