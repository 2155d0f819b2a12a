"""The splits of a prepared dataset as Ray Data."""

import ray.data

from mnerqg.datasets.prepared import split_files
from mnerqg.io import storage


def read_split(data: str, split: str) -> ray.data.Dataset:
    """The rows of a split.

    Raises:
        DataError: there are no files. What is in them is not looked at: `count_posts` does that.
    """
    files = [entry.uri for entry in split_files(data, split)]
    filesystem, _ = storage.filesystem(files[0])
    return ray.data.read_parquet([storage.filesystem(uri)[1] for uri in files], filesystem=filesystem)
