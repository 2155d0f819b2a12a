"""What Ray Data reads: the splits of a prepared dataset and the posts of an archive (DESIGN §5, §6).

Both formats of an archive have the column `row_hash`, by which a continued run leaves out what is done.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.data
from ray.data.datasource import FileBasedDatasource
from ray.exceptions import RayError

from mnerqg.archive.jsonlines import Layout, Scan, read_tables, scan
from mnerqg.archive.reading import Archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.datasets.prepared import split_files
from mnerqg.distributed.failures import first_cause
from mnerqg.errors import MnerqgError, RunError
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH

logger = logging.getLogger(__name__)

# Ray reads the footers of Parquet in actors that it starts for this one purpose, 32 whatever there is to read; each
# imports Ray Data first, which took a machine of two cores seconds. One reads a hundred files at a time.
_FOOTER_READERS = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
_FILES_PER_FOOTER_READER = 100
_MOST_FOOTER_READERS = 32


def read_split(data: str, split: str) -> ray.data.Dataset:
    """The rows of a split.

    Raises:
        StorageError: the store does not give them.
        DataError: there are no files. Whether they are whole is not looked at: `count_posts` does that.
    """
    return _read_parquet(split_files(data, split))


def _read_parquet(files: Sequence[storage.FileEntry], **options: Any) -> ray.data.Dataset:
    filesystem, _ = storage.filesystem(files[0].uri)
    paths = [storage.path_of(entry.uri) for entry in files]
    readers = min(-(-len(files) // _FILES_PER_FOOTER_READER), _MOST_FOOTER_READERS)
    os.environ[_FOOTER_READERS] = str(readers)  # read by `read_parquet`
    # Ray looks at some files here and now, through pyarrow's own S3, which soon gives up.
    with storage.reported(files[0].uri.rpartition("/")[0]):
        return ray.data.read_parquet(paths, filesystem=filesystem, **options)


def scan_in_tasks(files: Sequence[storage.FileEntry], columns: ColumnsConfig) -> list[Scan]:
    """`jsonlines.scan` of each file in a task of its own, on the cluster that `ray.init()` finds.

    Raises:
        StorageError, DataError: as `scan`; of several files the first one's.
        RunError: a task was lost more often than Ray repeats it.
    """
    if not ray.is_initialized():
        ray.init()
    size = sum(entry.size for entry in files) / 2**20
    logger.info("counting the posts of %s file(s), %s MiB", f"{len(files):,}", f"{size:,.0f}")
    task = ray.remote(num_cpus=1)(scan)
    pending = [task.remote(entry, columns) for entry in files]
    try:
        return [ray.get(one) for one in pending]
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MnerqgError):
            raise cause from None
        raise RunError(
            f"the posts were not counted: {first_cause(error)}; run the same command again"
        ) from error


def read_archive(archive: Archive, columns: ColumnsConfig, *, num_cpus: float) -> ray.data.Dataset:
    """The posts of an archive: the columns that tagging needs, what is passed through, and `row_hash`.

    Those of JSON Lines have the columns of `archive.layout.schema`.

    Args:
        archive: from `open_archive`.
        columns: with which it was opened.
        num_cpus: that each task takes.
    """
    if archive.layout is not None:
        filesystem, _ = storage.filesystem(archive.folder)
        paths = [storage.path_of(entry.uri) for entry in archive.files]
        source = JsonLinesDatasource(paths, archive.layout, filesystem)
        # A task a file: a retry repeats one file only, and the blocks are not cut any smaller than they come.
        return ray.data.read_datasource(source, num_cpus=num_cpus, override_num_blocks=len(paths))
    names = [columns.post_id, columns.text, *columns.pass_through, ROW_HASH]
    if picture := archive.picture_column(columns):
        names.append(picture)
    posts = _read_parquet(
        archive.files, partitioning=None, file_extensions=None, include_row_hash=True, num_cpus=num_cpus
    )
    return posts.select_columns(list(dict.fromkeys(names)))


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
