"""Parquet archives: one row for every row of a file, in columns of one type whatever file they come from.

Only the columns that are used are looked at, before the run (`look_at`) and in it (`read_tables`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from mnerqg.archive.column_types import converted
from mnerqg.archive.files import path_values
from mnerqg.archive.jsonlines import row_hashes, table_schema
from mnerqg.archive.parquet_pictures import read_images
from mnerqg.errors import DataError, one_line
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet, read_footer

PIECE_BYTES = 64 * 2**20
_BUFFER_BYTES = 8 * 2**20
_TABLE_BYTES = 16 * 2**20
_TABLE_ROWS = 2048
_REMEDY = "replace the file and start over with --restart, or go on without it: --skip-damaged"


@dataclass(frozen=True)
class ParquetLayout:
    """The columns of the posts that are used, and the one type of each; those that a file lacks are null.

    `image` is the one with the pictures themselves, if that is how the archive has them.
    """

    columns: tuple[tuple[str, pa.DataType], ...]
    image: str | None = None

    @property
    def schema(self) -> pa.Schema:
        """Of every table: the columns, `row_hash`, `LINE_ERROR` and `PICTURE_ERRORS`."""
        return table_schema(pa.field(name, kind) for name, kind in self.columns)


@dataclass(frozen=True)
class Piece:
    """Row groups of one file that one task reads: `first` up to before `stop`.

    Attributes:
        start: the number of their first row in the file.
        rows: theirs.
        bytes: of the columns that are used, decompressed.
    """

    entry: storage.FileEntry
    first: int
    stop: int
    start: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class ParquetFacts:
    """What the footer of a file says.

    Attributes:
        schema: of all its columns.
        groups: rows and, of the columns that may be used, bytes of each row group.
        rows: in all groups.
        signed: whether columns are encrypted, used ones or others.
    """

    entry: storage.FileEntry
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]
    rows: int
    signed: bool


# ---- looking at files ----------------------------------------------------------------------------


def look_at(entry: storage.FileEntry, names: Collection[str]) -> ParquetFacts:
    """Read the footer of a file.

    Args:
        entry: the file.
        names: of the columns that may be used.

    Raises:
        StorageError: the file cannot be read.
        DataError: it is no whole Parquet.
    """
    footer, schema, signed = read_footer(entry)
    paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
    used = [number for number, path in enumerate(paths) if path in names or path.partition(".")[0] in names]
    groups = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        sizes = [group.column(column).total_uncompressed_size for column in used] if not signed else []
        groups.append((group.num_rows, group.total_byte_size if signed else sum(sizes)))
    return ParquetFacts(entry, schema, tuple(groups), sum(rows for rows, _ in groups), signed)


def check_encryption(facts: ParquetFacts, names: Collection[str]) -> None:
    """Raises DataError where one of the columns is encrypted."""
    if not facts.signed:
        return
    with open_parquet(facts.entry) as file:
        for name in names:
            try:
                next(file.iter_batches(1, columns=[name], use_threads=False), None)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise DataError(
                    f"{facts.entry.uri}: the column {name} cannot be read ({one_line(error)}): it is encrypted, and "
                    "there is no key here; decrypt the file or remove it"
                ) from None


def pieces_of(facts: ParquetFacts) -> list[Piece]:
    """A file's row groups in pieces of about 64 MiB; those without rows are left out."""
    pieces: list[Piece] = []
    begun: Piece | None = None
    start = 0
    for number, (rows, size) in enumerate(facts.groups):
        if begun is not None and begun.bytes + size > PIECE_BYTES:
            pieces.append(begun)
            begun = None
        if begun is None:
            begun = Piece(facts.entry, number, number, start, 0, 0)
        begun = Piece(
            facts.entry, begun.first, number + 1, begun.start, begun.rows + rows, begun.bytes + size
        )
        start += rows
    return [piece for piece in [*pieces, *([begun] if begun else [])] if piece.rows]


# ---- rows ----------------------------------------------------------------------------------------


def read_tables(piece: Piece, layout: ParquetLayout) -> Iterator[pa.Table]:
    """The posts of a piece, in tables of `layout.schema`; the same in every attempt.

    What a file lacks comes from the names of its folders (`lang=de`), or is null. A value that does not fit the
    column's type is null, and `LINE_ERROR` says so; of one that is no picture, `PICTURE_ERRORS`.

    Raises:
        StorageError: the store does not give the file.
        DataError: a row group is damaged, or compressed in a way that Arrow does not know; the message names it, and
            the cause.
    """
    place = piece.start
    # A piece above the bound is a single row group: pandas makes one of a million posts, pictures and all.
    buffer_bytes = _BUFFER_BYTES if piece.bytes > PIECE_BYTES else 0
    with open_parquet(piece.entry, remedy=_REMEDY, buffer_bytes=buffer_bytes) as file:
        names = [name for name, _ in layout.columns if name in file.schema_arrow.names]
        rows_at_once = max(1, min(_TABLE_ROWS, _TABLE_BYTES * piece.rows // max(1, piece.bytes)))
        for group in range(piece.first, piece.stop):
            expected = place + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(rows_at_once, [group], names, use_threads=False):
                    yield _table(batch, piece.entry.uri, place, layout)
                    place += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise _damaged(piece.entry.uri, group, one_line(error)) from None
            if place != expected:
                raise _damaged(piece.entry.uri, group, f"{expected - place} rows are missing")


def _damaged(uri: str, group: int, cause: str) -> DataError:
    return DataError(f"{uri}: row group {group} cannot be read ({cause}); {_REMEDY}")


def _table(batch: pa.RecordBatch, uri: str, start: int, layout: ParquetLayout) -> pa.Table:
    path = storage.path_of(uri)
    from_path = path_values(path)
    arrays: list[pa.Array] = []
    problems: dict[int, list[str]] = {}
    lost: list[list[str] | None] = [None] * batch.num_rows
    for name, kind in layout.columns:
        if name in batch.schema.names:
            column = batch.column(name)
        elif name in from_path:
            column = pa.repeat(pa.scalar(from_path[name], pa.string()), batch.num_rows)
        else:
            column = pa.nulls(batch.num_rows, kind)
        unfit: list[int] = []
        if name == layout.image:
            column, reasons = read_images(column, kind)
            lost = [
                [f"{name} {reason}, in row {row} ({path})"] if reason else None
                for row, reason in enumerate(reasons, start)
            ]
        else:
            column, unfit = converted(column, kind)
        arrays.append(column)
        for row in unfit:
            problems.setdefault(row, []).append(f"row {start + row}: {name} does not fit {kind}")
    errors = [
        f"{'; '.join(problems[row])} ({path})" if row in problems else None for row in range(batch.num_rows)
    ]
    arrays += [pa.array(row_hashes(path, start, batch.num_rows)), pa.array(errors, pa.string())]
    arrays.append(pa.array(lost, pa.list_(pa.string())))
    return pa.Table.from_arrays(arrays, schema=layout.schema)
