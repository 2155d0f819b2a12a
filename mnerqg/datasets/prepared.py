"""Prepared training Parquet: one folder a split, one row a post (`schema.TRAINING_SCHEMA`)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg.errors import DataError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.schema import TRAINING_SCHEMA, Box, Phrase, Post, Span

SPLITS = ("train", "valid", "test")

ROWS_PER_FILE = 1000
ROWS_PER_GROUP = 100
_FOOTERS_IN_FLIGHT = 16

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
    """The Parquet files of a split, sorted; none is opened. Raises DataError where there are none."""
    uri = storage.join(data, split)
    files = storage.list_files(uri, ".parquet") if storage.exists(uri) else []
    if not files:
        raise DataError(f"{uri} holds no Parquet files; write them with: jobs/prepare.py … --output {data}")
    return files


def count_posts(data: str, split: str) -> int:
    """Posts of a split, from the footers of its files: every one is looked at, for what else reads them then.

    Raises:
        StorageError: the store does not give them.
        DataError: there are no files, or one is damaged or does not have the columns of training Parquet.
    """
    with ThreadPoolExecutor(_FOOTERS_IN_FLIGHT) as pool:
        return sum(pool.map(_count_rows, split_files(data, split)))


def _count_rows(entry: storage.FileEntry) -> int:
    with _opened(entry) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _opened(entry: storage.FileEntry) -> Iterator[pq.ParquetFile]:
    """A file of training Parquet, of which the footer has been read and checked; errors as of `count_posts`."""
    with open_parquet(entry, remedy="prepare the dataset again") as file:
        _check_columns(entry.uri, file.schema_arrow)
        yield file


def _check_columns(uri: str, schema: pa.Schema) -> None:
    for wanted in TRAINING_SCHEMA:
        there = [field.type for field in schema if field.name == wanted.name]
        if there != [wanted.type]:
            kinds = " and ".join(map(str, there)) or "missing"
            raise DataError(
                f"{uri}: column {wanted.name} is {kinds}, not {wanted.type}; prepare the dataset again"
            )


def read_posts(
    data: str, split: str, *, share: int = 0, shares: int = 1, limit: int | None = None, pictures: bool = True
) -> Iterator[Post]:
    """The posts of a split (of its first `limit`), or every `shares`-th of them from `share` on.

    The shares are disjoint and together complete, so that workers score every post exactly once. Without `pictures`
    `image` is None, and not read. A file is checked when its turn comes, so that its footer is read only once.

    Raises:
        StorageError, DataError: as `count_posts`.
    """
    posts = (post for entry in split_files(data, split) for post in _read_posts(entry, pictures=pictures))
    return islice(islice(posts, limit), share, None, shares)


def read_file(uri: str) -> Iterator[Post]:
    """The posts of one file of a split, in their order; errors as of `count_posts`."""
    (entry,) = storage.list_files(uri)
    return _read_posts(entry)


def _read_posts(entry: storage.FileEntry, *, pictures: bool = True) -> Iterator[Post]:
    columns = [name for name in TRAINING_SCHEMA.names if pictures or name != "image"]
    with _opened(entry) as file:
        for batch in file.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                yield post_from_row({"image": None, **row})


def write_split(posts: Iterable[Post], uri: str, rows_per_file: int = ROWS_PER_FILE) -> int:
    """Write posts as `part-00000.parquet`, … under `uri`, each file at once; the number of rows written.

    Raises:
        StorageError: if `uri` cannot be written.
    """
    rows = 0
    for number, part in enumerate(batches(posts, rows_per_file)):
        write_file(part, storage.join(uri, f"part-{number:05d}.parquet"))
        rows += len(part)
    return rows


def write_file(posts: Iterable[Post], uri: str) -> None:
    """Write one file of a split, the whole file or none. Raises StorageError."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, TRAINING_SCHEMA, compression="zstd") as writer:
        for group in batches(posts, ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist([asdict(post) for post in group], schema=TRAINING_SCHEMA))
    storage.write_bytes(uri, bytes(sink.getvalue()))


def batches(posts: Iterable[Post], size: int) -> Iterator[list[Post]]:
    """The posts in lists of `size`; the last one may be shorter."""
    remaining = iter(posts)
    while batch := list(islice(remaining, size)):
        yield batch


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
