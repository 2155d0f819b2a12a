"""Posts of an archive that somebody asks for by name: the texts and pictures of a few rows of tags."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.archive import jsonlines, parquet_files
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.parquet_files import ParquetLayout
from mnerqg.archive.reading import Archive, text_values, uri_lists
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


def picture_values(
    archive: Archive, columns: ColumnsConfig, rows: pa.Table
) -> list[tuple[bytes | str | None, ...]]:
    """The pictures of each row, as `ArchivedPost` has them; none where the archive has none."""
    name = archive.picture_column(columns)
    if name is None:
        return [()] * rows.num_rows
    column = rows[name]
    if archive.pictures == "bytes":
        return [(image,) for image in column.to_pylist()]
    if archive.pictures == "structs":
        images, paths = column.combine_chunks().flatten()
        uris = text_values(pa.chunked_array([paths]))[0]
        # With bytes the path is only a name.
        return [
            (uri if image is None else image,) for image, uri in zip(images.to_pylist(), uris, strict=True)
        ]
    return [tuple(uris) for uris in uri_lists(column)]


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
    pictures = picture_values(archive, columns, found)
    for place, post_id, text, own in zip(places, ids, texts, pictures, strict=True):
        yield ArchivedPost(int(hashes[place]), post_id, text, own)
