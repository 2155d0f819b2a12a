"""Posts of an archive that somebody asks for by name: the texts and pictures of a few rows of tags (DESIGN §3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.archive import jsonlines, parquet_files
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.parquet_files import ParquetLayout
from mnerqg.archive.reading import Archive, text_values
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH

RowHashes = npt.NDArray[np.uint64]


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
    for hashes, rows in read_rows(archive, wanted):
        yield from _posts(archive, columns, rows, np.flatnonzero(np.isin(hashes, wanted)), hashes)


def find_by_id(archive: Archive, columns: ColumnsConfig, wanted: set[str]) -> Iterator[ArchivedPost]:
    """The posts with a wanted id, of an archive that has been moved; of several with the same id the first.

    Raises:
        StorageError, DataError: as `find_by_hash`.
    """
    missing = set(wanted)
    for hashes, rows in read_rows(archive):
        places = []
        for place, post_id in enumerate(text_values(rows[columns.post_id])[0]):
            if post_id in missing:
                missing.discard(post_id)
                places.append(place)
        yield from _posts(archive, columns, rows, np.asarray(places, np.int64), hashes)
        if not missing:
            return


def read_rows(archive: Archive, wanted: RowHashes | None = None) -> Iterator[tuple[RowHashes, pa.Table]]:
    """The rows of the archive, a few at a time, with their `row_hash`.

    Args:
        archive: from `open_archive`.
        wanted: pieces of files in which none of these stands are not read; None: all are.

    Raises:
        StorageError, DataError: the archive cannot be read.
    """
    if isinstance(archive.layout, ParquetLayout):
        for piece in archive.pieces:
            hashes = row_hashes(storage.path_of(piece.entry.uri), piece.start, piece.rows)
            if wanted is None or np.isin(hashes, wanted).any():
                for table in parquet_files.read_tables(piece, archive.layout):
                    yield table[ROW_HASH].to_numpy(), table
        return
    for entry in archive.files:
        with storage.open_stream(entry.uri) as stream:
            for table in jsonlines.read_tables(stream, storage.path_of(entry.uri), archive.layout):
                yield table[ROW_HASH].to_numpy(), table


def picture_column(archive: Archive, columns: ColumnsConfig) -> str | None:
    """The column with the pictures or their URIs, None where there is none."""
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
    name = picture_column(archive, columns)
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
