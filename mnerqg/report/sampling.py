"""A sample of the rows of tags, drawn from strata in one pass and in bounded memory."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

ROW = np.dtype([("order", np.uint64), ("file", np.int32), ("place", np.int64), ("row_hash", np.uint64)])
"""A row of tags: where it stands in the order of the seed, in which file and at which place, and its name."""

Rows = npt.NDArray[np.void]
Mask = npt.NDArray[np.bool_]

ANY = "any"
_FAILURES_SHARE = 4
"""A quarter of the sample at the most are posts with a failure, so that the others are not crowded out [chosen]."""


class StratifiedSample:
    """Keeps of each stratum the rows that come first in the order of the seed.

    A row's place in that order is its `row_hash` xor a number of the seed. The hashes are spread evenly, so any seed
    gives an even draw, and the same one whatever order the files are read in.

    Args:
        size: rows wanted.
        seed: another one draws others.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self._kept: dict[str, Rows] = {}
        self._failures: set[str] = set()

    def add(
        self,
        file: int,
        start: int,
        row_hashes: npt.NDArray[np.uint64],
        strata: Mapping[str, Mask],
        failures: Mapping[str, Mask],
    ) -> None:
        """Rows of a file, and which of them belong to which strata; all of them belong to `ANY`.

        Args:
            file: its number.
            start: the place of the first row.
            row_hashes: of the rows.
            strata: masks of the rows.
            failures: further strata, which together give a quarter of the sample at the most.
        """
        rows = np.empty(len(row_hashes), ROW)
        rows["order"] = row_hashes ^ self._key
        rows["file"], rows["row_hash"] = file, row_hashes
        rows["place"] = np.arange(start, start + len(rows))
        self._failures.update(failures)
        everything = np.ones(len(rows), np.bool_)
        for name, mask in {ANY: everything, **strata, **failures}.items():
            mine = rows[mask]
            if name in self._kept:
                mine = np.concatenate([self._kept[name], mine])
            if len(mine) > self.size:
                mine = mine[np.argpartition(mine["order"], self.size - 1)[: self.size]]
            self._kept[name] = mine

    def chosen(self) -> Rows:
        """At most `size` different rows in the order of the seed: by turns one of each stratum, then of all rows."""
        failures = sorted(self._failures)
        others = sorted(self._kept.keys() - self._failures - {ANY})
        picked: dict[int, Rows] = {}
        self._take_turns(failures, max(len(failures), self.size // _FAILURES_SHARE), picked)
        self._take_turns(others, self.size, picked)
        self._take_turns([ANY] if ANY in self._kept else [], self.size, picked)
        rows = np.asarray(list(picked.values()), ROW)
        return rows[np.argsort(rows["order"], kind="stable")]

    def _take_turns(self, names: list[str], limit: int, picked: dict[int, Rows]) -> None:
        """Add rows to `picked`, by their name, until there are `limit` or no more."""
        queues = [iter(np.sort(self._kept[name], order="order")) for name in names]
        limit = min(limit, self.size)
        while queues and len(picked) < limit:
            going = []
            for queue in queues:
                row = next((row for row in queue if int(row["row_hash"]) not in picked), None)
                if row is not None and len(picked) < limit:
                    picked[int(row["row_hash"])] = row
                    going.append(queue)
            queues = going
