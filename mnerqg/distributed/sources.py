"""What Ray Data reads: the splits of a prepared dataset and the posts of an archive.

Both formats of an archive get the column `row_hash`, by which a continued run leaves out what is done.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, FileBasedDatasource, ReadTask
from ray.exceptions import RayError

from mnerqg.archive.jsonlines import Layout, read_tables
from mnerqg.archive.parquet_files import PIECE_BYTES, ParquetLayout, Piece
from mnerqg.archive.parquet_files import read_tables as read_piece
from mnerqg.archive.reading import Archive
from mnerqg.datasets.prepared import split_files
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.session import connect
from mnerqg.errors import MnerqgError, RunError
from mnerqg.io import storage

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Ray reads the footers of Parquet in actors that it starts for this one purpose, 32 whatever there is to read; each
# imports Ray Data first, which took a machine of two cores seconds. One reads a hundred files at a time.
_FOOTER_READERS = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
_FILES_PER_FOOTER_READER = 100
_MOST_FOOTER_READERS = 32
_FEW_TASKS = 1000


def read_split(data: str, split: str) -> ray.data.Dataset:
    """The rows of a split.

    Raises:
        StorageError: the store does not give them.
        DataError: there are no files. Whether they are whole is not looked at: `count_posts` does that.
    """
    return _read_parquet(split_files(data, split))


def _read_parquet(files: Sequence[storage.FileEntry]) -> ray.data.Dataset:
    filesystem, _ = storage.filesystem(files[0].uri)
    paths = [storage.path_of(entry.uri) for entry in files]
    # Ray looks at some files here and now, through pyarrow's own S3, which soon gives up.
    with storage.reported(files[0].uri.rpartition("/")[0]), _footer_readers(len(files)):
        return ray.data.read_parquet(paths, filesystem=filesystem)


@contextmanager
def _footer_readers(files: int) -> Iterator[None]:
    """How many actors Ray starts to read the footers of so many files, unless the user has set it."""
    if _FOOTER_READERS in os.environ:
        yield
        return
    os.environ[_FOOTER_READERS] = str(min(-(-files // _FILES_PER_FOOTER_READER), _MOST_FOOTER_READERS))
    try:
        yield
    finally:
        del os.environ[_FOOTER_READERS]


def work_in_tasks(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """`reading.work_here` with a task for each item, on the session's cluster or, without one, on one of its own.

    Raises:
        MnerqgError: what the function raises; of several the first one's.
        RunError: a task was lost more often than Ray repeats it.
    """
    connect()
    logger.info("reading %s file(s), or pieces of some, before tagging begins", f"{len(items):,}")
    task = ray.remote(num_cpus=1)(_call)
    call = ray.put(function)
    pending = [task.remote(call, item) for item in items]
    try:
        return [ray.get(one) for one in pending]
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MnerqgError):
            raise cause from None
        raise RunError(
            f"the archive was not read through: {first_cause(error)}; run the same command again"
        ) from error


def _call(function: Callable[[Any], T], item: Any) -> T:
    return function(item)


def read_archive(archive: Archive, *, num_cpus: float) -> ray.data.Dataset:
    """The posts of an archive, with the columns of `archive.layout.schema`.

    Args:
        archive: from `open_archive`.
        num_cpus: that each task takes.
    """
    # A task a file or a few pieces: a retry repeats no more, and the blocks are not cut any smaller than they come.
    if isinstance(archive.layout, ParquetLayout):
        groups = group_pieces(archive.pieces)
        source: Datasource = ParquetPosts(groups, archive.layout)
        tasks = len(groups)
    else:
        filesystem, _ = storage.filesystem(archive.files[0].uri)
        paths = [storage.path_of(entry.uri) for entry in archive.files]
        source = JsonLinesDatasource(paths, archive.layout, filesystem)
        tasks = len(paths)
    return ray.data.read_datasource(source, num_cpus=num_cpus, override_num_blocks=tasks)


class ParquetPosts(Datasource):
    """The posts of Parquet files, one task for each group of pieces, in blocks of `layout.schema`.

    Not `ray.data.read_parquet`: it wants all columns of all files to have one type, used or not, and says of a damaged
    page neither file nor row group.
    """

    def __init__(self, groups: Sequence[Sequence[Piece]], layout: ParquetLayout) -> None:
        super().__init__()
        self._groups = groups
        self._layout = layout

    def estimate_inmemory_data_size(self) -> int:
        return sum(piece.bytes for group in self._groups for piece in group)

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read_pieces, tuple(group), self._layout),
                BlockMetadata(
                    sum(piece.rows for piece in group),
                    sum(piece.bytes for piece in group),
                    None,
                    input_files=tuple(dict.fromkeys(piece.entry.uri for piece in group)),
                ),
                self._layout.schema,
                per_task_row_limit,
            )
            for group in self._groups
        ]


def group_pieces(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """What each task reads: a piece, or of many small files so many that they are 64 MiB together.

    A hundred thousand files would otherwise be as many tasks, which the driver has to keep.
    """
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        size += piece.bytes
        if not groups or len(pieces) <= _FEW_TASKS or size > PIECE_BYTES:
            groups.append([])
            size = piece.bytes
        groups[-1].append(piece)
    return groups


def _read_pieces(pieces: Sequence[Piece], layout: ParquetLayout) -> Iterator[pa.Table]:
    for piece in pieces:
        yield from read_piece(piece, layout)


class JsonLinesDatasource(FileBasedDatasource):
    """The posts of JSON Lines files, one task a file, in blocks of `layout.schema`.

    Where a read fails for a reason that may pass, Ray opens the file anew and skips the blocks it already has,
    which are the same in every attempt.
    """

    def __init__(self, paths: list[str], layout: Layout, filesystem: pyarrow.fs.FileSystem) -> None:
        super().__init__(paths, filesystem=filesystem)
        self._layout = layout

    def resolve_compression(self, path: str, open_args: dict[str, Any]) -> str | None:  # noqa: ARG002
        """None: `read_tables` decompresses, as it did when the posts were counted."""
        return None

    def _read_stream(self, f: pa.NativeFile, path: str) -> Iterator[pa.Table]:
        yield from read_tables(f, path, self._layout)
