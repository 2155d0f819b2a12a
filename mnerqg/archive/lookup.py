"""Posts of an archive that somebody asks for by name: the texts and pictures of a few rows of tags (DESIGN §3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.archive.jsonlines import read_tables, row_hashes
from mnerqg.archive.reading import Archive, text_values
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.schema import ROW_HASH

RowHashes = npt.NDArray[np.uint64]

_ROWS_AT_ONCE = 256
"""With the pictures themselves in the rows these are many bytes."""


@dataclass(frozen=True, slots=True)
class ArchivedPost:
    """A post as it lies in the archive; each picture is its encoded file, its URI, or None."""

    row_hash: int
    post_id: str | None
    text: str | None
    pictures: tuple[bytes | str | None, ...]


def find_by_hash(archive: Archive, columns: ColumnsConfig, wanted: RowHashes) -> Iterator[ArchivedPost]:
    """The posts whose `row_hash` is wanted, in the order of the archive; few rows are in memory at a time.

    Args:
        archive: from `open_archive`, at the place where it was tagged: the digest is one of the path.
        columns: with which it was opened.
        wanted: any order.

    Raises:
        StorageError, DataError: the archive cannot be read.
    """
    for hashes, rows in _tables(archive, columns, wanted):
        yield from _posts(archive, columns, rows, np.flatnonzero(np.isin(hashes, wanted)), hashes)


def find_by_id(archive: Archive, columns: ColumnsConfig, wanted: set[str]) -> Iterator[ArchivedPost]:
    """The posts with a wanted id, of an archive that has been moved; of several with the same id the first.

    Raises:
        StorageError, DataError: as `find_by_hash`.
    """
    missing = set(wanted)
    for hashes, rows in _tables(archive, columns, None):
        places = []
        for place, post_id in enumerate(text_values(rows[columns.post_id])[0]):
            if post_id in missing:
                missing.discard(post_id)
                places.append(place)
        yield from _posts(archive, columns, rows, np.asarray(places, np.int64), hashes)
        if not missing:
            return


def _tables(
    archive: Archive, columns: ColumnsConfig, wanted: RowHashes | None
) -> Iterator[tuple[RowHashes, pa.Table]]:
    """The rows of the archive, a few at a time, each with its `row_hash`; without those where none is wanted."""
    for entry in archive.files:
        if archive.layout is None:
            yield from _parquet_tables(entry, _names(archive, columns), wanted)
        else:
            with storage.open_stream(entry.uri) as stream:
                for table in read_tables(stream, storage.path_of(entry.uri), archive.layout):
                    yield table[ROW_HASH].to_numpy(), table


def _parquet_tables(
    entry: storage.FileEntry, names: list[str], wanted: RowHashes | None
) -> Iterator[tuple[RowHashes, pa.Table]]:
    path, start = storage.path_of(entry.uri), 0
    with open_parquet(entry) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            hashes = row_hashes(path, start, count)
            start += count
            if wanted is not None and not np.isin(hashes, wanted).any():
                continue
            done = 0
            for rows in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names):
                yield hashes[done : done + rows.num_rows], pa.Table.from_batches([rows])
                done += rows.num_rows


def _names(archive: Archive, columns: ColumnsConfig) -> list[str]:
    pictures = _picture_column(archive, columns)
    return list(dict.fromkeys([columns.post_id, columns.text, *([pictures] if pictures else [])]))


def _picture_column(archive: Archive, columns: ColumnsConfig) -> str | None:
    named = {"bytes": columns.image, "uris": columns.image_uri, "lists": columns.image_uris, "none": None}
    return named[archive.pictures]


def _posts(
    archive: Archive,
    columns: ColumnsConfig,
    rows: pa.Table,
    places: npt.NDArray[np.int64],
    hashes: RowHashes,
) -> Iterator[ArchivedPost]:
    if not len(places):
        return
    found = rows.take(pa.array(places))
    ids, texts = (text_values(found[name])[0] for name in (columns.post_id, columns.text))
    name = _picture_column(archive, columns)
    pictures: list[Any] = [()] * len(places) if name is None else _picture_values(found[name])
    for place, post_id, text, own in zip(places, ids, texts, pictures, strict=True):
        several = tuple(own or ()) if archive.pictures == "lists" else (own,)
        yield ArchivedPost(int(hashes[place]), post_id, text, several if name else ())


def _picture_values(column: pa.ChunkedArray) -> list[Any]:
    """The column as Python values; a URI that is not UTF-8 names nothing that could be read."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [None] * len(column)
