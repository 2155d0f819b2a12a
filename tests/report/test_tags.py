"""Tags in bulk: what is read at once does not grow with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.errors import DataError
from mnerqg.report.tags import look_through, open_tags, read_rows
from tests.noisy_tags import Night, write_night

_MEASURE = """
import resource, sys
from mnerqg.config_jobs import ReportConfig
from mnerqg.report.report import Asked, write_report
written = write_report(Asked((sys.argv[1],)), sys.argv[2], ReportConfig())
assert (written.shown, written.posts) == (200, int(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return write_night(str(tmp_path_factory.mktemp("night")), 60)


def copied(night: Night, folder: Path, files: int, copies: int) -> Path:
    """Tags in so many files, each with the night's rows so many times under new names."""
    rng = np.random.default_rng(0)
    rows = pa.concat_tables(
        [pq.read_table(file) for file in sorted((Path(night.tags) / "tags").glob("*.parquet"))] * copies
    )
    folder.mkdir(parents=True)
    for number in range(files):
        hashes = pa.array(rng.integers(0, 2**64, len(rows), np.uint64))
        place = rows.schema.get_field_index("row_hash")
        pq.write_table(
            rows.set_column(place, "row_hash", hashes), folder / f"{number}.parquet", row_group_size=900
        )
    return folder


def test_the_rows_of_the_sample_are_those_of_the_files(night: Night, tmp_path: Path) -> None:
    tags = open_tags(str(copied(night, tmp_path / "tags", files=3, copies=40)))
    looked = look_through(tags, 50, seed=2)
    assert looked.summary.counts.rows == 3 * 40 * 60
    rows = read_rows(tags, looked.sample)
    assert list(rows) != []
    assert set(rows) == {int(name) for name in looked.sample["row_hash"]}
    assert len(rows) == 50
    types = {entity["type"] for row in rows.values() for entity in row["entities"]}
    assert types == {"PER", "LOC", "ORG", "OTHER"}
    again = look_through(tags, 50, seed=2)
    assert (again.sample == looked.sample).all()


def test_a_damaged_file_of_a_finished_run_is_told(night: Night, tmp_path: Path) -> None:
    other = write_night(str(tmp_path), 20)
    (Path(other.tags) / "tags" / "w-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is not readable as Parquet"):
        look_through(open_tags(other.tags), 5, seed=0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tags(night: Night, tmp_path: Path) -> None:
    peaks = []
    for name, files in (("few", 2), ("many", 20)):
        tags = copied(night, tmp_path / name, files, copies=500)
        command = [sys.executable, "-c", _MEASURE, str(tags), str(tmp_path / "out"), str(files * 500 * 60)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.15 * peaks[0], peaks
