"""Arrow lists as counts and values."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def listed(counts: Iterable[int], values: pa.Array) -> pa.ListArray:
    """Lists of so many of the values each, in order."""
    offsets = np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def counts(lists: pa.ListArray) -> NDArray[np.int64]:
    """How many values each list has; none may be null."""
    lengths: Any = lists.value_lengths().to_numpy()
    return np.asarray(lengths, np.int64)
