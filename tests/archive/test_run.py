"""What a death leaves behind, in every shape, is put right by `reconcile`."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.archive.counts import TagCounts
from mnerqg.archive.run import (
    CHECKPOINT_FOLDER,
    RunIdentity,
    check_base,
    check_state,
    claim,
    finish,
    judge,
    read_state,
    reconcile,
    retryable_rows,
    take_over,
)
from mnerqg.errors import DataError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE
from mnerqg.schema import tags_schema

IDENTITY = RunIdentity(model_id="m", archive="a", digest="d", rows=6)


def tags(ids: list[int], **columns: Any) -> pa.Table:
    """Rows of tags with these ids."""
    row = {
        "entities": [],
        "regions": [],
        "existence": [{"type": "PER", "score": 0.5}],
        "image_status": "none",
        "text_status": "ok",
        "retryable": False,
    }
    rows = [
        row | {"row_hash": one} | {key: value[n] for key, value in columns.items()}
        for n, one in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, schema=tags_schema())


def put(uri: str, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue().to_pybytes())


def write(output: str, name: str, ids: list[int], *, files: int = 1, state: str = "committed") -> None:
    """One write of Ray's in one of the states that a death can leave it in."""
    id_table = pa.table({"row_hash": pa.array(ids, pa.uint64())})
    checkpoint = storage.join(output, CHECKPOINT_FOLDER)
    if state in ("committed", "twin", "no tags", "cut tags", "lost file"):
        put(storage.join(checkpoint, f"{name}.parquet"), id_table)
    if state in ("pending", "twin", "pending only"):
        put(storage.join(checkpoint, f"{name}.pending.parquet"), id_table)
    for number, part in enumerate(np.array_split(ids, files)):
        uri = storage.join(output, f"{name}-{number}.parquet")
        if state not in ("pending only", "no tags") and not (state == "lost file" and number == 0):
            put(uri, tags([int(one) for one in part]))
    if state == "cut tags":
        uri = storage.join(output, f"{name}-0.parquet")
        storage.write_bytes(uri, storage.read_bytes(uri)[:-9])


STATES = ("committed", "pending", "twin", "pending only", "orphan", "no tags", "cut tags", "lost file")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(STATES), st.integers(1, 3), st.integers(1, 5)), max_size=6))
def test_what_counts_is_whole(writes: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as output:
        safe: list[int] = []
        for number, (state, files, rows) in enumerate(writes):
            ids = [100 * number + row for row in range(max(rows, files))]
            write(output, f"w{number}_000000", ids, files=files, state=state)
            safe += ids if state in ("committed", "twin") else []
        for _ in range(2):  # and a second look finds nothing to do
            assert reconcile(output).tolist() == sorted(safe)
            left = [pq.read_table(entry.uri) for entry in storage.list_files(output, ".parquet")]
            assert sorted(one for table in left for one in table["row_hash"].to_pylist()) == sorted(safe)
            assert not list(Path(output).rglob("*pending*"))


def test_reconcile_on_s3(s3_bucket: str) -> None:
    output = f"{s3_bucket}/tags"
    for number, state in enumerate(STATES):
        write(output, f"w{number}_000000", [10 * number, 10 * number + 1], files=2, state=state)
    assert reconcile(output).tolist() == [0, 1, 20, 21]
    names = [entry.uri.rpartition("/")[2] for entry in storage.list_files(output, ".parquet")]
    assert names == [f"w{number}_000000-{part}.parquet" for number in (0, 2) for part in (0, 1)]


def test_of_two_writes_with_a_row_in_common_one_counts(tmp_path: Path) -> None:
    output = str(tmp_path)
    for name, ids in (("a", [1, 2, 3]), ("b", [4, 5]), ("c", [3, 6]), ("d", [6, 7]), ("e", [5, 8])):
        write(output, f"{name}_000000", ids)
    assert reconcile(output).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(path.name[0] for path in tmp_path.glob("*.parquet")) == ["a", "b", "d"]


def test_claim_resume_and_restart(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    first = claim(output, IDENTITY, {"model": "x"}, restart=False)
    assert claim(output, IDENTITY, {}, restart=False) == first
    assert json.loads((tmp_path / "tags" / "_run.json").read_text())["request"] == {"model": "x"}
    for name, words in (
        ("model_id", "model: m there, z now"),
        ("digest", r"files of the archive, columns or pictures\.\* settings"),
    ):
        other = replace(IDENTITY, **{name: "z"})
        with pytest.raises(StorageError, match=f"something else .{words}.; choose .* --restart"):
            claim(output, other, {}, restart=False)
    write(output, "w_000000", [1, 2])
    (tmp_path / "tags" / LOCK_FILE).write_text("held by this job")
    second = claim(output, replace(IDENTITY, model_id="z"), {}, restart=True)
    assert second != first
    assert {path.name for path in (tmp_path / "tags").iterdir()} == {"_run.json", LOCK_FILE}


def test_restart_of_nothing_leaves_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / ".keep").write_text("mine")
    claim(str(tmp_path), IDENTITY, {}, restart=True)
    assert (tmp_path / ".keep").read_text() == "mine"


def test_finish(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    claim(output, IDENTITY, {}, restart=False)
    write(output, "w_000000", [1, 2, 3], files=2)
    with pytest.raises(RunError, match=r"holds 3 rows \(0 of them double\) for the 6 posts"):
        finish(output, IDENTITY, {}, max_failed=0)
    write(output, "x_000000", [3, 4, 5])
    with pytest.raises(RunError, match=r"holds 6 rows \(1 of them double\) for the 6 posts"):
        finish(output, IDENTITY, {}, max_failed=0)
    assert sorted(path.name for path in (tmp_path / "tags").glob("_*")) == ["_checkpoint", "_run.json"]
    write(output, "x_000000", [4, 5, 6])
    manifest = finish(output, IDENTITY, {"run_id": "r"}, max_failed=0)
    assert (manifest["rows"], manifest["run_id"], manifest["failure"]) == (6, "r", None)
    assert [(file["name"], file["rows"]) for file in manifest["files"]] == [
        ("w_000000-0.parquet", 2), ("w_000000-1.parquet", 1), ("x_000000-0.parquet", 3),
    ]  # fmt: skip
    state = read_state(output)
    assert state.manifest == manifest
    assert not (tmp_path / "tags" / "_checkpoint").exists()
    with pytest.raises(StorageError, match="which --restart never touches"):
        check_state(output, state, IDENTITY, restart=True)
    with pytest.raises(StorageError, match="holds a finished run"):
        claim(output, IDENTITY, {}, restart=False)


def test_damaged_run_file(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"run_id": "x", "identity": {"a": 1}}'):
        (tmp_path / "_run.json").write_text(text)
        with pytest.raises(StorageError, match=r"_run\.json .* is damaged"):
            read_state(str(tmp_path))


def failed(ids: list[int], statuses: list[str], retryable: list[bool]) -> pa.Table:
    errors = [
        f"{status} {number}" if status not in ("ok", "none") else None
        for number, status in enumerate(statuses)
    ]
    return tags(ids, image_status=statuses, retryable=retryable, error=errors)


def test_too_many_failures_then_accepted(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    identity = replace(IDENTITY, rows=4)
    claim(output, identity, {}, restart=False)
    put(
        f"{output}/kept-a-0.parquet",
        failed([1, 2, 3, 4], ["ok", "missing", "missing", "none"], [False, True, False, False]),
    )
    words = r"2 of 3 pictures failed \(66\.7%, more than 50\.0%\): 2 x missing N; all rows .*--retry-failed"
    with pytest.raises(RunError, match=words):
        finish(output, identity, {}, max_failed=0.5)
    assert not (tmp_path / "tags" / "_SUCCESS").exists()
    assert json.loads((tmp_path / "tags" / "_manifest.json").read_text())["failure"].startswith("2 of 3")
    assert not read_state(output).finished
    check_base(output, replace(identity, base=None))
    assert retryable_rows(output).tolist() == [2]
    target = str(tmp_path / "again")
    take_over(output, target)
    take_over(output, target)
    assert pq.read_table(f"{target}/kept-kept-a-0.parquet")["row_hash"].to_pylist() == [1, 3, 4]
    assert finish(output, identity, {}, max_failed=0.7)["failure"] is None
    with pytest.raises(StorageError, match=r"something else .model: m there, z now"):
        check_base(output, replace(identity, model_id="z"))


def test_nothing_to_retry(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    with pytest.raises(StorageError, match="is no tagging run"):
        check_base(output, IDENTITY)
    claim(output, IDENTITY, {}, restart=False)
    with pytest.raises(StorageError, match="is not complete"):
        check_base(output, IDENTITY)
    write(output, "w_000000", [1, 2, 3, 4, 5, 6])
    finish(output, IDENTITY, {}, max_failed=0)
    with pytest.raises(DataError, match="no rows that failed for a passing reason"):
        check_base(output, IDENTITY)


def test_a_model_that_answers_no_existence_has_tagged_its_posts_all_the_same(tmp_path: Path) -> None:
    """BERT, FA-VG and an ablation without the existence loss have nothing to say in that column."""
    errors = [None, "the model raised X: y", "no picture there; the model raised X: y", "no picture there"]
    put(f"{tmp_path}/w-0.parquet", tags([1, 2, 3, 4], existence=[[]] * 4, error=errors))
    (entry,) = storage.list_files(str(tmp_path), ".parquet")
    counts = TagCounts.of_file(entry)
    assert (counts.rows, counts.errors, counts.untagged) == (4, 3, 2)


def test_model_that_raises_on_many_posts() -> None:
    counts = TagCounts(rows=10, untagged=1)
    assert judge(counts, 0.1) is None
    counts.reasons["the model raised X"] = 2
    counts.untagged = 2
    assert judge(counts, 0.1) == (
        "the model could not tag 2 of 10 posts (20.0%, more than 10.0%): 2 x the model raised X"
    )
