"""Reading prepared training Parquet: one folder a split, one row a post (`schema.TRAINING_SCHEMA`)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg import storage
from mnerqg.errors import DataError
from mnerqg.schema import TRAINING_SCHEMA, Box, Phrase, Post, Span

LABELS_FILE = "labels.json"
"""What says that a dataset has weak boxes, and whose they are."""


def post_from_row(row: Mapping[str, Any]) -> Post:
    """A row of training Parquet, as `to_pylist` gives it, as a `Post`."""
    return Post(
        post_id=row["post_id"],
        text=row["text"],
        image=row["image"],
        entities=tuple(Span(**span) for span in row["entities"] or ()),
        boxes=tuple(Box(**box) for box in row["boxes"] or ()),
        boxes_annotated=bool(row["boxes_annotated"]),
        phrases=tuple(Phrase(**phrase) for phrase in row["phrases"] or ()),
    )


def split_files(data: str, split: str) -> list[storage.FileEntry]:
    """The Parquet files of a split, sorted.

    Raises:
        DataError: there are none, or they do not have the columns of training Parquet.
    """
    uri = storage.join(data, split)
    files = storage.list_files(uri, ".parquet") if storage.exists(uri) else []
    if not files:
        raise DataError(f"{uri} holds no Parquet files; write them with: jobs/prepare.py … --output {data}")
    filesystem, path = storage.filesystem(files[0].uri)
    try:
        found = pq.read_schema(path, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise DataError(f"{files[0].uri} is not Parquet ({error}); prepare the dataset again") from None
    for field in TRAINING_SCHEMA:
        if field.name not in found.names or found.field(field.name).type != field.type:
            there = found.field(field.name).type if field.name in found.names else "missing"
            raise DataError(
                f"{files[0].uri}: column {field.name} is {there}, not {field.type}; prepare the dataset again"
            )
    return files


def count_posts(data: str, split: str) -> int:
    """Posts of a split, from the Parquet footers."""
    return sum(_open(entry).metadata.num_rows for entry in split_files(data, split))


def read_posts(
    data: str, split: str, *, share: int = 0, shares: int = 1, limit: int | None = None
) -> Iterator[Post]:
    """The posts of a split (of its first `limit`), or every `shares`-th of them from `share` on.

    The shares are disjoint and together complete, so that workers score every post exactly once.
    """
    index = 0
    for entry in split_files(data, split):
        for batch in _open(entry).iter_batches(batch_size=64):
            rows = batch.num_rows if limit is None else min(batch.num_rows, limit - index)
            mine = [number for number in range(rows) if (index + number) % shares == share]
            index += batch.num_rows
            for row in batch.take(pa.array(mine, pa.int64())).to_pylist():
                yield post_from_row(row)


def fingerprint(data: str, *splits: str) -> str:
    """A short digest of the files' names and sizes: the same data gives the same digest wherever it lies."""
    listing = [
        [split, entry.uri.rsplit("/", 1)[-1], entry.size]
        for split in splits
        for entry in split_files(data, split)
    ]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def is_labelled(data: str) -> bool:
    """Whether jobs/label.py wrote the dataset to its end."""
    return storage.exists(storage.join(data, LABELS_FILE))


def _open(entry: storage.FileEntry) -> pq.ParquetFile:
    filesystem, path = storage.filesystem(entry.uri)
    return pq.ParquetFile(path, filesystem=filesystem)
