import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from backports import zstd
from ray.data._internal.datasource_v2.common.synthesized_columns import _compute_row_hashes

from mnerqg.archive import reading
from mnerqg.archive.jsonlines import LINE_ERROR, Layout, read_tables, row_hashes, scan
from mnerqg.archive.parquet_files import ParquetLayout
from mnerqg.archive.reading import open_archive, work_here
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.datasets.prepared import split_files, write_split
from mnerqg.distributed import sources
from mnerqg.distributed.sources import (
    JsonLinesDatasource,
    ParquetPosts,
    group_pieces,
    read_archive,
    read_split,
    work_in_tasks,
)
from mnerqg.errors import DataError, StorageError
from mnerqg.io import storage
from mnerqg.schema import Post
from tests.servers import faults

COLUMNS = ColumnsConfig(pass_through=("lang",))
FILES = ("a b%20#1.jsonl", "c/d;e?.ndjson.gz", "c/f[1]*.json.zst", "empty.jsonl.gz", "blank.jsonl")


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return (
        request.getfixturevalue("s3_bucket") if request.param == "s3" else str(tmp_path_factory.mktemp("a"))
    )


def lines(file: int, count: int) -> bytes:
    """Posts whose ids say where they stand; every seventh line is no JSON and every eleventh blank."""
    made = []
    for row in range(count):
        post = json.dumps(
            {"post_id": f"{file}-{row}", "text": "the city " * 20, "lang": None if file else "en"}
        )
        made.append("{" if row % 7 == 3 else post)
        made += [" "] * (row % 11 == 0)
    return "\r\n".join(made).encode()


def write(base: str, count: int) -> None:
    """Appended in two parts each, as nightly jobs do."""
    packs = (bytes, gzip.compress, zstd.compress)
    for number, (name, pack) in enumerate(zip(FILES, packs, strict=False)):
        data = lines(number, count)
        packed = pack(data[: len(data) // 3]) + pack(data[len(data) // 3 :])
        storage.write_bytes(storage.join(base, *name.split("/")), packed)
    storage.write_bytes(storage.join(base, FILES[3]), b"")
    storage.write_bytes(storage.join(base, FILES[4]), b"\n\n")


def test_row_hash_is_ray_s() -> None:
    for path in ("bucket/posts/a.jsonl", "/data/ü.jsonl.gz"):
        for start, count in ((0, 5), (123_456, 3), (7, 0)):
            assert row_hashes(path, start, count).tolist() == _compute_row_hashes(path, start, count).tolist()


@pytest.mark.usefixtures("ray_cluster")
def test_every_post_comes_once(base: str) -> None:
    count = 5000  # several tables a file
    write(base, count)
    archive = open_archive(base, COLUMNS)
    assert (archive.rows, len(archive.files)) == (3 * count, 5)
    assert isinstance(archive.layout, Layout)
    posts = read_archive(archive, num_cpus=0.5).materialize()
    blocks = [ray.get(ref) for ref in posts.to_arrow_refs()]
    assert {str(block.schema.remove_metadata()) for block in blocks} == {str(archive.layout.schema)}
    table = pa.concat_tables(blocks)
    found: dict[int, dict[str, Any]] = {row["row_hash"]: row for row in table.to_pylist()}
    assert len(found) == len(table) == archive.rows
    for number, name in enumerate(FILES[:3]):
        path = storage.path_of(storage.join(base, *name.split("/")))
        for row, row_hash in enumerate(_compute_row_hashes(path, 0, count).tolist()):
            post = found.pop(row_hash)
            if row % 7 == 3:
                assert (post["post_id"], post["text"], post["lang"]) == (None, None, None)
                line = row + row // 11 + 1 + (row % 11 > 0)
                assert post[LINE_ERROR].startswith(f"line {line} is not valid JSON: Expecting property")
                assert post[LINE_ERROR].endswith(f"({path})")
            else:
                expected = (f"{number}-{row}", "the city " * 20, None if number else "en", None)
                assert (post["post_id"], post["text"], post["lang"], post[LINE_ERROR]) == expected
    assert not found


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_find_what_this_process_finds(base: str) -> None:
    write(base, 500)
    files = open_archive(base, COLUMNS).files
    function = partial(scan, columns=COLUMNS)
    assert work_in_tasks(function, files) == work_here(function, files)


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_say_what_this_process_says(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage beyond the head of a file, so that only the scan comes across it: of two files the first one's."""
    write(base, 100)
    monkeypatch.setattr(reading, "_READ_HERE_BYTES", 0)
    long = b"".join(
        b'{"post_id": "%s"}\n' % random.Random(n).randbytes(999).hex().encode() for n in range(2000)
    )
    for name in ("c/x.jsonl.gz", "d.jsonl.gz"):
        storage.write_bytes(storage.join(base, *name.split("/")), gzip.compress(long, 1)[:-9])
    said = []
    for work in (work_here, work_in_tasks):
        with pytest.raises(DataError) as caught:
            open_archive(base, COLUMNS, work)
        assert type(caught.value) is DataError
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert re.search(r"/c/x\.jsonl\.gz is damaged or cut short after line \d{4} \([^\n]*$", said[0])


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a thread of Ray's
def test_a_store_that_is_away_when_a_split_is_to_be_read(
    s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split([Post("1", "text")], storage.join(s3_bucket, "train"))
    files = split_files(s3_bucket, "train")
    monkeypatch.setattr(sources, "split_files", lambda *_: files)
    with (
        faults(s3_endpoint, share=1.0, kinds=["slow_down"]),
        pytest.raises(
            StorageError, match=rf"^{s3_bucket}/train: .*; that may pass: run the same command again$"
        ),
    ):
        read_split(s3_bucket, "train")


@pytest.mark.usefixtures("ray_cluster")
def test_how_many_actors_read_footers_is_the_user_s_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split([Post("1", "text")], str(tmp_path / "train"))
    seen: list[str | None] = []
    monkeypatch.setattr(ray.data, "read_parquet", lambda *_, **__: seen.append(os.environ.get(name)))
    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    monkeypatch.delenv(name, raising=False)
    read_split(str(tmp_path), "train")
    assert name not in os.environ
    monkeypatch.setenv(name, "5")
    read_split(str(tmp_path), "train")
    assert (seen, os.environ[name]) == (["1", "5"], "5")


def test_many_small_files_are_few_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        table = pa.table({"post_id": [f"{number}-{row}" for row in range(3)], "text": ["x"] * 3})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    archive = open_archive(str(tmp_path), ColumnsConfig())
    assert isinstance(archive.layout, ParquetLayout)
    assert [len(group) for group in group_pieces(archive.pieces)] == [1] * 10
    monkeypatch.setattr(sources, "_FEW_TASKS", 9)
    assert [len(group) for group in group_pieces(archive.pieces)] == [10]
    monkeypatch.setattr(sources, "PIECE_BYTES", 4 * archive.pieces[0].bytes)
    groups = group_pieces(archive.pieces)
    assert [len(group) for group in groups] == [4, 4, 2]
    tasks = ParquetPosts(groups, archive.layout).get_read_tasks(1)
    assert [task.metadata.num_rows for task in tasks] == [12, 12, 6]
    rows = pa.concat_tables(table for task in tasks for table in task())
    assert rows["post_id"].to_pylist() == [f"{number}-{row}" for number in range(10) for row in range(3)]


class BreakingOnce(JsonLinesDatasource):
    """Its connection breaks after the first table, once."""

    broken = False

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        assert self._layout is not None
        for table in read_tables(f, path, self._layout, rows_per_table=100):
            yield table
            if not self.broken:
                self.broken = True
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")


@pytest.mark.usefixtures("ray_cluster")
def test_a_broken_connection_doubles_nothing(base: str) -> None:
    write(base, 1000)
    archive = open_archive(f"{base}/c/*.gz", COLUMNS)
    assert isinstance(archive.layout, Layout)
    filesystem, path = storage.filesystem(archive.files[0].uri)
    source = BreakingOnce([path], archive.layout, filesystem)
    (task,) = source.get_read_tasks(1)
    table = pa.concat_tables(task())
    assert source.broken
    assert table["row_hash"].to_pylist() == row_hashes(path, 0, 1000).tolist()
    assert table["post_id"].to_pylist()[-1] == "1-999"
