"""Reading tags back (DESIGN §3 "Tags"): what a run wrote, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnerqg import storage
from mnerqg.schema import IMAGE_STATUSES, TEXT_STATUSES

_COLUMNS = ["image_status", "text_status", "error", "entities", "regions"]


@dataclass
class TagCounts:
    """Counts over the rows of tags; every status is there, also with 0."""

    rows: int = 0
    errors: int = 0
    """Rows whose `error` says something: the picture or the post itself could not be used."""
    image_status: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(IMAGE_STATUSES, 0)))
    text_status: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TEXT_STATUSES, 0)))
    entities: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)


def count_tags(files: Sequence[storage.FileEntry]) -> TagCounts:
    """Count the rows of tags files and what they hold, by status and by type."""
    counts = TagCounts()
    for entry in files:
        filesystem, path = storage.filesystem(entry.uri)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for rows in file.iter_batches(columns=_COLUMNS):
                _count(rows, counts)
    return counts


def count_rows(entry: storage.FileEntry) -> int:
    """Rows of a Parquet file, from its footer."""
    filesystem, path = storage.filesystem(entry.uri)
    return int(pq.read_metadata(path, filesystem=filesystem).num_rows)


def _count(rows: pa.RecordBatch, counts: TagCounts) -> None:
    counts.rows += rows.num_rows
    counts.errors += rows.num_rows - rows["error"].null_count
    counts.image_status.update(_values(rows["image_status"]))
    counts.text_status.update(_values(rows["text_status"]))
    counts.entities.update(_values(pc.list_flatten(rows["entities"]).field("type")))
    counts.regions.update(_values(pc.list_flatten(rows["regions"]).field("type")))


def _values(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
