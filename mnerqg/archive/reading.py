"""The archive of posts that is to be tagged: its files, rows and columns."""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyarrow as pa

from mnerqg.archive import jsonlines, parquet_files
from mnerqg.archive.column_types import is_bytes
from mnerqg.archive.columns import (
    PICTURES,
    Pictures,
    check_name,
    check_pass_through,
    expected_pictures,
    picture_column,
)
from mnerqg.archive.files import Found, find_files, path_values
from mnerqg.archive.json_values import Picture
from mnerqg.archive.jsonlines import Layout, Scan
from mnerqg.archive.parquet_columns import make_layout
from mnerqg.archive.parquet_files import ParquetFacts, ParquetLayout, Piece
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.io import storage

T = TypeVar("T")
Work = Callable[[Callable[[Any], T], Sequence[Any]], list[T]]
"""Calls a function with each of some files, or pieces of files, and returns the results in their order."""

_FILES_IN_FLIGHT = 16
_SHOWN_KEYS = 30
_READ_HERE_BYTES = 32 * 2**20
"""Files of no more bytes are read through by the process that asks: seconds, even where they are compressed tenfold,
and less than it takes to ask a cluster [chosen]."""


@dataclass(frozen=True)
class LeftOut:
    """A file that is damaged, and is not tagged since that was asked for; its rows as far as they are known."""

    entry: storage.FileEntry
    rows: int
    reason: str


@dataclass(frozen=True)
class Archive:
    """An archive that has been found fit to be tagged.

    Attributes:
        uris: as they were given.
        folders: the directories of its files, of a glob the part before the first wildcard; relative picture URIs
            are meant below them.
        files: its files, all of one format.
        rows: posts in all files together.
        format: of the files.
        pictures: whether it holds the pictures themselves (as bytes, or as structs that may have a URI in the place of
            bytes), a URI a post, lists of URIs, or nothing of them.
        pass_through: the fields to be copied to the tags.
        layout: the columns that are used.
        pieces: how Parquet is read, a task each; JSON Lines are read a file a task.
        left_out: damaged files.
    """

    uris: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[storage.FileEntry, ...]
    rows: int
    format: Literal["parquet", "jsonl"]
    pictures: Pictures
    pass_through: tuple[pa.Field, ...]
    layout: Layout | ParquetLayout
    pieces: tuple[Piece, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def name(self) -> str:
        """For messages."""
        return ", ".join(self.uris)

    def picture_column(self, columns: ColumnsConfig) -> str | None:
        """The column of the pictures, or of their URIs; None where nothing is of them."""
        if self.pictures == "none":
            return None
        names = {"uris": columns.image_uri, "lists": columns.image_uris}
        return names.get(self.pictures, columns.image)


def work_here(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """`Work` in this process."""
    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        return list(pool.map(function, items))


def open_archive(
    uris: str | Sequence[str],
    columns: ColumnsConfig,
    work_large: Work[Any] = work_here,
    *,
    skip_damaged: bool = False,
) -> Archive:
    """Find the files of an archive and look at them: at the footers of Parquet, through all of JSON Lines.

    Args:
        uris: one or several places, as `find_files` takes them.
        columns: the names of the columns.
        work_large: does what `work_here` does, where more than 32 MiB are to be read through; before, the head of each
            file is looked at here.
        skip_damaged: leave damaged files out in the place of refusing them; Parquet is read through for that, too.

    Raises:
        StorageError: a URI cannot be read.
        DataError: no files, both formats, no rows, a file that is damaged or not what its name says, or columns missing
            or of a type that does not fit.
    """
    check_pass_through(columns)
    uris = (uris,) if isinstance(uris, str) else tuple(dict.fromkeys(uris))
    found = find_files(uris)
    open_format = _open_parquet if found.format == "parquet" else _open_json_lines
    archive = open_format(_Asked(uris, found, columns, work_large, skip_damaged))
    for field in archive.pass_through:
        if field.name in columns.partition_by and (pa.types.is_nested(field.type) or is_bytes(field.type)):
            raise DataError(
                f"{archive.name}: the column {field.name} holds {field.type}, by which no folder can be named; leave "
                "it out of --columns.partition_by"
            )
    return archive


@dataclass(frozen=True)
class _Asked:
    uris: tuple[str, ...]
    found: Found
    columns: ColumnsConfig
    work_large: Work[Any]
    skip_damaged: bool

    @property
    def name(self) -> str:
        return ", ".join(self.uris)

    def work(self, size: int) -> Work[Any]:
        """Where so many bytes are read."""
        return work_here if size <= _READ_HERE_BYTES else self.work_large


def _whole(
    files: Sequence[storage.FileEntry], results: Sequence[T | DataError], *, skip_damaged: bool
) -> tuple[list[T], list[LeftOut]]:
    """The results of the files that are whole, and the other files; raises the first error where none is skipped."""
    whole: list[T] = []
    left_out: list[LeftOut] = []
    for entry, result in zip(files, results, strict=True):
        if not isinstance(result, DataError):
            whole.append(result)
        elif skip_damaged:
            left_out.append(LeftOut(entry, 0, _reason(result)))
        else:
            raise result
    return whole, left_out


def _reason(error: DataError) -> str:
    """What is wrong with a file, without what to do about it."""
    return str(error).rpartition("; ")[0] or str(error)


def _no_posts(asked: _Asked, left_out: Sequence[LeftOut], what: str) -> DataError:
    damaged = f", {len(left_out)} of them damaged" if left_out else ""
    return DataError(
        f"{asked.name} holds no posts: its {len(asked.found.files)} file(s){damaged} have no {what}; check --input"
    )


# ---- Parquet -------------------------------------------------------------------------------------


def _open_parquet(asked: _Asked) -> Archive:
    columns, files = asked.columns, asked.found.files
    if columns.types:
        raise DataError(
            f"--columns.types is for JSON Lines, and {asked.name} is Parquet, which says itself what its columns hold; "
            "leave it out"
        )
    names = {
        columns.post_id,
        columns.text,
        *(getattr(columns, key) for key in PICTURES),
        *columns.pass_through,
    }
    looked = work_here(
        functools.partial(_tried, functools.partial(parquet_files.look_at, names=names)), files
    )
    facts, left_out = _whole(files, looked, skip_damaged=asked.skip_damaged)
    filled = [one for one in facts if one.rows]  # a file without rows has nothing that could not fit
    if not filled:
        raise _no_posts(asked, left_out, "rows")
    picture = picture_column({name for one in filled for name in one.schema.names}, columns)
    check_pass_through(columns, picture)
    layout = make_layout(filled, columns, picture)
    used = [name for name, _ in layout.columns]
    checked = work_here(functools.partial(_tried, functools.partial(_check_encryption, names=used)), filled)
    clear, encrypted = _whole([one.entry for one in filled], checked, skip_damaged=asked.skip_damaged)
    damaged = _read_through(asked, clear, layout) if asked.skip_damaged else []
    left_out += [*encrypted, *damaged]
    without = {one.entry for one in left_out}
    good = [one for one in facts if one.entry not in without]
    rows = sum(one.rows for one in good)
    if not rows:
        raise _no_posts(asked, left_out, "rows")
    return Archive(
        uris=asked.uris,
        folders=asked.found.folders,
        files=tuple(one.entry for one in good),
        rows=rows,
        format="parquet",
        pictures=_pictures(layout, picture),
        pass_through=tuple(layout.schema.field(name) for name in columns.pass_through),
        layout=layout,
        pieces=tuple(piece for one in good for piece in parquet_files.pieces_of(one)),
        left_out=tuple(left_out),
    )


def _pictures(layout: ParquetLayout, picture: Picture | None) -> Pictures:
    if layout.image is not None and pa.types.is_struct(layout.schema.field(layout.image).type):
        return "structs"
    return PICTURES[picture] if picture else "none"


def _tried(function: Callable[[Any], T], item: Any) -> T | DataError:
    try:
        return function(item)
    except DataError as error:
        return error


def _check_encryption(facts: ParquetFacts, names: Collection[str]) -> ParquetFacts:
    parquet_files.check_encryption(facts, [name for name in names if name in facts.schema.names])
    return facts


def _read_through(asked: _Asked, facts: Sequence[ParquetFacts], layout: ParquetLayout) -> list[LeftOut]:
    """The files with a page that is damaged."""
    pieces = [piece for one in facts for piece in parquet_files.pieces_of(one)]
    work = asked.work(sum(one.entry.size for one in facts))
    errors = work(functools.partial(_tried, functools.partial(_read_piece, layout=layout)), pieces)
    reasons: dict[storage.FileEntry, str] = {}
    for piece, error in zip(pieces, errors, strict=True):
        if error is not None:
            reasons.setdefault(piece.entry, _reason(error))
    return [LeftOut(one.entry, one.rows, reasons[one.entry]) for one in facts if one.entry in reasons]


def _read_piece(piece: Piece, layout: ParquetLayout) -> None:
    for _ in parquet_files.read_tables(piece, layout):
        pass


# ---- JSON Lines ----------------------------------------------------------------------------------


def _open_json_lines(asked: _Asked) -> Archive:
    columns, files = asked.columns, asked.found.files
    size = sum(entry.size for entry in files)
    left_out: list[LeftOut] = []
    if size > _READ_HERE_BYTES:
        heads = work_here(functools.partial(_tried, jsonlines.check_head), files)
        _, left_out = _whole(files, heads, skip_damaged=asked.skip_damaged)
        files = tuple(
            entry for entry, head in zip(files, heads, strict=True) if not isinstance(head, DataError)
        )
    results = asked.work(size)(
        functools.partial(_tried, functools.partial(jsonlines.scan, columns=columns)), files
    )
    scans, more = _whole(files, results, skip_damaged=asked.skip_damaged)
    left_out += more
    files = tuple(
        entry for entry, result in zip(files, results, strict=True) if not isinstance(result, DataError)
    )
    found = Scan.total(scans)
    if found.rows == 0:
        raise _no_posts(asked, left_out, "lines")
    picture = picture_column(found.keys, columns)
    check_pass_through(columns, picture)
    from_paths = {name for entry in files for name in path_values(storage.path_of(entry.uri))}
    _check_keys(asked.name, found, columns, picture, from_paths)
    layout = jsonlines.make_layout(columns, picture)
    return Archive(
        uris=asked.uris,
        folders=asked.found.folders,
        files=files,
        rows=found.rows,
        format="jsonl",
        pictures=PICTURES[picture] if picture else "none",
        pass_through=tuple(layout.schema.field(name) for name in columns.pass_through),
        layout=layout,
        left_out=tuple(left_out),
    )


def _check_keys(
    uri: str, found: Scan, columns: ColumnsConfig, picture: Picture | None, from_paths: Collection[str]
) -> None:
    if not found.keys:
        raise DataError(
            f"{uri}: no line holds a JSON object with keys ({found.problem or 'all are empty'}); "
            "JSON Lines has one object a line"
        )
    named = [(f"--columns.{key} NAME", getattr(columns, key)) for key in ("post_id", "text")]
    named += [(f"--columns.{key} NAME", getattr(columns, key)) for key in expected_pictures(columns, picture)]
    passed = [name for name in columns.pass_through if name in found.keys or name not in from_paths]
    named += [("--columns.pass_through [NAME, …]", name) for name in passed]
    keys = [key if key.isprintable() else ascii(key) for key in found.keys[:_SHOWN_KEYS]]
    for remedy, name in named:
        if name not in found.keys:
            raise DataError(
                f"{uri}: no line has the key {name}; the keys there: {', '.join(key[:60] for key in keys)}; "
                f"name the right one with {remedy}"
            )
        check_name(uri, name)


# ---- values --------------------------------------------------------------------------------------


def text_values(column: pa.ChunkedArray) -> tuple[list[str | None], list[bool]]:
    """A column of text (or integers) as Python strings, and which of them were not valid UTF-8.

    Parquet promises UTF-8, but writers break that promise; the broken characters become U+FFFD.
    """
    try:
        return [None if value is None else str(value) for value in column.to_pylist()], [False] * len(column)
    except UnicodeDecodeError:
        raw: Sequence[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    values = [None if value is None else value.decode("utf-8", "replace") for value in raw]
    broken = [
        value is not None and value.encode() != original for value, original in zip(values, raw, strict=True)
    ]
    return values, broken


def uri_lists(column: pa.ChunkedArray) -> list[list[str | None]]:
    """For each row of a column of URIs, or of lists of them, its URIs; a null is one URI that is null, or no list."""
    if not pa.types.is_list(column.type):
        return [[uri] for uri in text_values(column)[0]]
    lists = column.combine_chunks()
    flat = iter(text_values(pa.chunked_array([lists.flatten()]))[0])
    return [list(itertools.islice(flat, length or 0)) for length in lists.value_lengths().to_pylist()]
