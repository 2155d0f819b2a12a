"""JSON Lines archives as a source of Ray Data: one task a file, which streams its posts (DESIGN §6).

It stands beside `ray.data.read_parquet(include_row_hash=True)`: a source with the same `row_hash`, by which a
continued run leaves out what is done.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray.data
from ray.data.datasource import FileBasedDatasource

from mnerqg.archive.jsonlines import Layout, read_tables
from mnerqg.archive.reading import Archive
from mnerqg.io import storage


class JsonLinesDatasource(FileBasedDatasource):
    """The posts of JSON Lines files, in blocks of `layout.schema`.

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


def read_json_lines(archive: Archive, *, num_cpus: float) -> ray.data.Dataset:
    """The posts of a JSON Lines archive with the columns of `archive.layout.schema`.

    Args:
        archive: from `open_archive`, with the format "jsonl".
        num_cpus: that each file's task takes.
    """
    assert archive.layout is not None, archive.format
    filesystem, _ = storage.filesystem(archive.files[0].uri)
    source = JsonLinesDatasource(
        [storage.path_of(entry.uri) for entry in archive.files], archive.layout, filesystem
    )
    # A task a file: a retry repeats one file only, and the blocks are not cut any smaller than they come.
    return ray.data.read_datasource(source, num_cpus=num_cpus, override_num_blocks=len(archive.files))
