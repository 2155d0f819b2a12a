"""Tags of any size, local or in S3: once through all rows for the counts and the sample, then the sample's rows."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mnerqg.archive.run import tags_folder, tags_of
from mnerqg.errors import DataError, one_line
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.report.sampling import Mask, Rows, StratifiedSample
from mnerqg.report.summary import COLUMNS, Summary

_FILES_IN_FLIGHT = 4
_ROWS_AT_ONCE = 4096
_ROWS_TAKEN_FROM = 1024


@dataclass(frozen=True)
class Tags:
    """A folder of tags, as it stands.

    Attributes:
        uri: of the folder, absolute.
        place: where in it the files with tags lie.
        files: with tags.
        run: what the run said when it began, None where the folder has no run file.
        manifest: what it said at its end, None where it is not finished.
    """

    uri: str
    place: str
    files: tuple[storage.FileEntry, ...]
    run: dict[str, Any] | None
    manifest: dict[str, Any] | None

    @property
    def request(self) -> dict[str, Any]:
        """The command of the run: model, input, config; empty where nobody knows it."""
        return dict((self.run or {}).get("request") or {})

    @property
    def expected_rows(self) -> int | None:
        """Posts of the archive."""
        rows = ((self.run or {}).get("asked") or {}).get("rows")
        return rows if isinstance(rows, int) else None

    @property
    def model_id(self) -> str | None:
        return ((self.run or {}).get("asked") or {}).get("model_id")


@dataclass
class Looked:
    """What one pass over tags found.

    Attributes:
        summary: over all rows.
        sample: of the rows, as `StratifiedSample.chosen` gives it.
        torn: files that are no whole Parquet, as an unfinished run may have them, and why.
    """

    summary: Summary
    sample: Rows
    torn: list[str] = field(default_factory=list)


Strata = Callable[[pa.RecordBatch], dict[str, Mask]]


def open_tags(uri: str) -> Tags:
    """The folder at `uri`, finished or not.

    Raises:
        StorageError: it cannot be read.
        DataError: there are no tags in it.
    """
    uri = storage.absolute(uri)
    folder = tags_folder(uri, "--tags")
    run, manifest = folder.begun(), folder.result()
    place = uri if run is None else tags_of(uri)
    files = storage.list_files(place, ".parquet") if run is None or storage.exists(place) else []
    if not files:
        begun = " yet: its run has begun, and nothing is written" if run is not None else ""
        raise DataError(f"--tags {uri} holds no tags{begun}; give the --output of jobs/tag.py")
    return Tags(uri, place, tuple(files), run, manifest)


def look_through(tags: Tags, size: int, seed: int, more_strata: Strata | None = None) -> Looked:
    """Read all rows once.

    Args:
        tags: from `open_tags`.
        size: rows of the sample.
        seed: of the sample.
        more_strata: gives further strata of rows with `post_id`, `entities` and `regions`; called by one thread at a
            time.

    Raises:
        StorageError: the tags cannot be read.
        DataError: they are no tags, or none of the files is whole, or one of a finished run is not.
    """
    summary, sample, lock = Summary(), StratifiedSample(size, seed), Lock()

    def look(file: int) -> str | None:
        try:
            for start, rows in _batches(tags.files[file]):
                with lock:
                    strata, failures = summary.add(rows)
                    if more_strata is not None:
                        strata |= more_strata(rows)
                    hashes = rows["row_hash"].to_numpy(zero_copy_only=False)
                    sample.add(file, start, hashes, strata, failures)
        except DataError as error:
            if tags.manifest is not None or "holds no tags" in str(error):
                raise
            return one_line(error)
        return None

    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        torn = [problem for problem in pool.map(look, range(len(tags.files))) if problem is not None]
    if not summary.counts.rows:
        raise DataError(
            f"--tags {tags.uri} holds no rows of tags; {torn[0] if torn else 'its files are empty'}"
        )
    return Looked(summary, sample.chosen(), torn)


def _batches(entry: storage.FileEntry) -> Iterator[tuple[int, pa.RecordBatch]]:
    with open_parquet(entry) as file:
        names = file.schema_arrow.names
        missing = [name for name in ("post_id", *COLUMNS) if name not in names]
        if missing:
            raise DataError(
                f"{entry.uri} holds no tags (no column {missing[0]}); give the --output of jobs/tag.py"
            )
        columns = ["post_id", *COLUMNS, *(["images"] if "images" in names else [])]
        start = 0
        for rows in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            yield start, rows
            start += rows.num_rows


def read_rows(tags: Tags, sample: Rows) -> dict[int, dict[str, Any]]:
    """The rows of the sample with all their columns, by `row_hash`; errors as of `look_through`."""
    files = sorted({int(row["file"]) for row in sample})
    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        found = pool.map(
            lambda file: _rows_at(tags.files[file], np.sort(sample["place"][sample["file"] == file])), files
        )
        return {row["row_hash"]: row for rows in found for row in rows}


def _rows_at(entry: storage.FileEntry, wanted: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows of a file, of which only the row groups that hold them are read."""
    found: list[dict[str, Any]] = []
    with open_parquet(entry) as file:
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if ((wanted >= start) & (wanted < start + count)).any():
                done = start
                for rows in file.iter_batches(_ROWS_TAKEN_FROM, row_groups=[group], use_threads=False):
                    inside = wanted[(wanted >= done) & (wanted < done + rows.num_rows)] - done
                    found += rows.take(pa.array(inside)).to_pylist() if len(inside) else []
                    done += rows.num_rows
            start += count
    return found
