"""Parquet files, read the same way everywhere: what the store says is never told as damage to a file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg.errors import DataError, one_line
from mnerqg.io import storage

_SIGNATURE_BYTES = 28
"""What follows a footer in plain text where columns are encrypted: a nonce and a tag (Parquet Modular Encryption)."""
_READ_AHEAD_BYTES = 2**18
"""The small columns of a row group lie side by side: so they are one request, not one each [chosen]."""


@contextmanager
def open_parquet(
    entry: storage.FileEntry, *, remedy: str = "remove or replace the file", buffer_bytes: int = 0
) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose footer has been read, for a `with` block that does nothing but read it.

    Not through pyarrow's own S3: it tries three times, and after many failures only once; small ranges never again.
    And its errors look like those of a damaged file.

    Args:
        entry: the file; its size must be what `list_files` found, for the footer is sought at its end.
        remedy: what to do about a damaged file.
        buffer_bytes: of each column so much is read at once; 0: all that a row group has of it.

    Raises:
        StorageError: the store says no, or a connection breaks again and again; whether to try again stands in the
            message. In the block, too.
        DataError: the file is no whole Parquet, or a page of it that the block reads is damaged.
    """
    with _opened(entry, remedy, buffer_bytes) as (file, _):
        yield file


@contextmanager
def _opened(
    entry: storage.FileEntry, remedy: str, buffer_bytes: int = 0
) -> Iterator[tuple[pq.ParquetFile, "_Ranges"]]:
    ranges = _Ranges(entry)
    try:
        source = io.BufferedReader(ranges, _READ_AHEAD_BYTES)
        with pq.ParquetFile(source, buffer_size=buffer_bytes) as file:
            yield file, ranges
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        # Arrow says of a damaged file either, as the damage will have it. What the system says has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{entry.uri} is not readable as Parquet ({one_line(error)}); {remedy}") from None


def read_footer(entry: storage.FileEntry) -> tuple[pq.FileMetaData, pa.Schema, bool]:
    """The footer of a file, the schema in it, and whether some columns are encrypted though it is not.

    Errors as of `open_parquet`.

    To ask Arrow for the metadata of an encrypted column of such a file ends the process; to read it is an error.
    """
    with _opened(entry, "remove or replace the file") as (file, ranges):
        length = int.from_bytes(ranges.tail[:4], "little")
        signed = length == file.metadata.serialized_size + _SIGNATURE_BYTES
        # Not the metadata's own: it does not know extension types, such as UUIDs.
        return file.metadata, file.schema_arrow, signed


class _Ranges(io.RawIOBase):
    """A file of known size, of which every read is a request of its own, with the retries of `storage`."""

    def __init__(self, entry: storage.FileEntry) -> None:
        super().__init__()
        self._entry = entry
        self._position = 0
        self.tail = b""
        """The last eight bytes of the file, once they have been read: the length of the footer, and PAR1."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._entry.size)
        data = storage.read_range(self._entry.uri, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        if self._position == self._entry.size and len(data) >= 8:
            self.tail = bytes(data[-8:])
        return len(data)
