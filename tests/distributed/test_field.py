"""Runs over archives as people have them, with what is read of their tags by other tools."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from mnerqg.archive.run import tags_of
from mnerqg.config_jobs import ColumnsConfig, TagConfig
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import plan_tagging
from mnerqg.errors import DataError
from mnerqg.io import storage
from tests.any_archive import ANY_ARCHIVE, write_tables
from tests.archive.test_field import TEXT, write, write_damaged
from tests.archives import read_tags
from tests.cheap_tagger import CheapTagger

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(
    model: Path, archive: Path | list[str], output: Path, config: TagConfig | None = None, **options: Any
) -> dict[str, Any]:
    """A run with the cheap model."""
    places = archive if isinstance(archive, list) else str(archive)
    plan = plan_tagging(config or TagConfig(), str(model), places, str(output), **options)
    return tag_archive(plan, load_tagger=CheapTagger.load)  # type: ignore[arg-type]


def test_an_archive_of_many_writers(tmp_path: Path, tiny_model: Path) -> None:
    """Kinds of text, columns that drift, nulls, Hive folders and leavings in two places; all readers take the tags."""
    hours = tmp_path / "day=1"
    for name, kind in (("a", pa.string()), ("b", pa.large_string()), ("c", pa.string_view())):
        write(hours, **{name: {"lang": pa.array(["en"], kind), "likes": [{"n": 1}] if name == "b" else [1]}})
    write(hours, d={"lang": pa.nulls(1), "likes": ["1"]})
    duckdb.sql(f"copy (select 'e' post_id, '{TEXT}' as text, 'pt' lang, uuid() id) to '{hours}/e.parquet'")
    write(tmp_path / "day=2" / "lang=de", f={})
    (hours / "pictures").mkdir()
    (hours / "pictures" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(hours / "pipe")
    columns = ColumnsConfig(pass_through=("lang", "id", "day"), partition_by=("day",))
    output = tmp_path / "tags"
    run(tiny_model, [f"{hours}/", f"file://{tmp_path}//day=2"], output, TagConfig(columns=columns))

    folder = tags_of(str(output))
    frames = {
        "pandas": pd.read_parquet(folder),
        "polars": pl.read_parquet(folder).to_pandas(),
        "DuckDB": duckdb.sql(f"select * from '{folder}/**/*.parquet'").df(),
        "pyarrow": pads.dataset(folder, partitioning="hive").to_table().to_pandas(),
    }
    for reader, frame in frames.items():
        langs = {row.post_id: None if pd.isna(row.lang) else row.lang for row in frame.itertuples()}
        assert langs == {"a": "en", "b": "en", "c": "en", "d": None, "e": "pt", "f": "de"}, reader
        assert {row.post_id: int(row.day) for row in frame.itertuples()} == dict.fromkeys("abcde", 1) | {
            "f": 2
        }
        assert len(frame.set_index("post_id").id["e"]) == 36, reader
    # Spark passes names over that begin with _ or a dot; whatever else it finds must be a Parquet file of a partition.
    seen = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert {(path.parent.name, path.suffix) for path in seen} == {
        ("day=1", ".parquet"),
        ("day=2", ".parquet"),
    }


def test_a_damaged_page_stops_a_run_that_goes_on_without_the_file(tmp_path: Path, tiny_model: Path) -> None:
    archive, output = tmp_path / "archive", tmp_path / "tags"
    write(archive, a={}, c={})
    write_damaged(archive / "b.parquet")
    with pytest.raises(
        DataError, match=r"/b\.parquet: row group 2 cannot be read \(.*--skip-damaged; run \S+ is not"
    ):
        run(tiny_model, archive, output)
    manifest = run(tiny_model, archive, output, skip_damaged=True)
    assert sorted(read_tags(str(output))["post_id"].to_pylist()) == ["a", "c"]
    (left_out,) = manifest["files_left_out"]
    assert (left_out["file"], left_out["rows"]) == (str(archive / "b.parquet"), 400)
    assert left_out["reason"].startswith(f"{archive}/b.parquet: row group 2 cannot be read (")
    assert json.loads(storage.read_text(f"{output}/_manifest.json")) == manifest


@settings(
    deadline=None,
    max_examples=3,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ANY_ARCHIVE)
def test_any_archive_is_tagged_or_refused(tiny_model: Path, tables: list[pa.Table]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "archive"
        archive.mkdir()
        write_tables(archive, tables)
        config = TagConfig(columns=ColumnsConfig(pass_through=("lang",)), max_failed=1)
        try:
            plan_tagging(config, str(tiny_model), str(archive), f"{folder}/tags")
        except DataError:  # in words that tests/archive/test_any_archive.py looks at
            with pytest.raises(DataError):
                run(tiny_model, archive, Path(folder) / "tags", config)
            assert not (Path(folder) / "tags").exists()
            return
        manifest = run(tiny_model, archive, Path(folder) / "tags", config)
        assert manifest["rows"] == sum(map(len, tables))
        files = [pq.read_table(path) for path in Path(tags_of(f"{folder}/tags")).iterdir()]
        assert sum(map(len, files)) == manifest["rows"]
