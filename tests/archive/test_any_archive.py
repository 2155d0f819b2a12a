"""Whatever types a Parquet archive has: its rows come as they are, or one line names the file and column in the way."""

import io
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings

from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.schema import tags_schema
from tests.any_archive import ANY_ARCHIVE, USED, write_tables
from tests.archives import read_archive_here

COLUMNS = ColumnsConfig(pass_through=("lang",))
outcomes: Counter[str] = Counter()


@settings(deadline=None, max_examples=100, derandomize=True)
@given(ANY_ARCHIVE)
def check_any_archive(tables: list[pa.Table]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), tables)
        try:
            archive = open_archive(folder, COLUMNS)
        except DataError as error:
            outcomes["refused"] += 1
            said = str(error)
            assert "\n" not in said
            if any(len(table) for table in tables):
                assert f"{folder}/f" in said, said
                assert any(f"column {name}" in said for name in USED), said
            else:
                assert "holds no posts" in said
            return
        outcomes["read"] += 1
        rows = read_archive_here(archive)
        assert len(rows) == archive.rows == sum(map(len, tables))
        assert len(set(rows["row_hash"].to_pylist())) == len(rows)
        full = [table for table in tables if len(table)]
        for name in [name for name in USED if name in rows.column_names]:
            nulls = sum(
                table[name].null_count if name in table.column_names else len(table) for table in full
            )
            unfit = sum(
                f"{name} does not fit" in (error or "") for error in rows["mnerqg:line_error"].to_pylist()
            )
            assert rows[name].null_count == nulls + unfit, name
        passed = rows.select(["lang"])
        assert passed.schema.field("lang") in tags_schema(archive.pass_through)
        buffer = io.BytesIO()
        pq.write_table(passed, buffer)
        assert pq.read_table(buffer)["lang"].to_pylist() == passed["lang"].to_pylist()


def test_any_archive_is_read_or_refused() -> None:
    check_any_archive()
    assert min(outcomes["read"], outcomes["refused"]) > 25, outcomes
