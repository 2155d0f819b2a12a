"""What a death leaves behind, in every shape, is put right by `reconcile`; what is not there is then tagged again."""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.archive.counts import TagCounts
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.parquet_files import ParquetLayout
from mnerqg.archive.reading import Archive, LeftOut
from mnerqg.archive.run import (
    MANIFEST_FILE,
    asked,
    check_base,
    finish,
    judge,
    keep_good_rows,
    reconcile,
    tags_folder,
    tags_of,
)
from mnerqg.errors import DataError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.schema import tags_schema

ARCHIVE = Archive(
    uris=("a",),
    folders=("a",),
    files=(storage.FileEntry("a/0.parquet", 9),),
    rows=6,
    format="parquet",
    pictures="none",
    pass_through=(),
    layout=ParquetLayout(()),
)
ASKED = asked("m", ARCHIVE, {"pictures": {"max_bytes": 9}}, None)


def tags(ids: list[int], **columns: Any) -> pa.Table:
    """Rows of tags with these ids."""
    row = {
        "entities": [],
        "regions": [],
        "existence": [{"type": "PER", "score": 0.5}],
        "image_status": "none",
        "text_status": "ok",
        "text_read": 0,
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


def write(output: str, _folder: str = "", **files: list[int]) -> None:
    """Files of tags by name; an underscore stands for the dash before a number."""
    for name, ids in files.items():
        put(storage.join(tags_of(output), _folder, f"{name.replace('_', '-')}.parquet"), tags(ids))


def tear(output: str, *names: str) -> None:
    """As a writer that was killed leaves a file, or one that raised ends its upload."""
    for name in names:
        uri = storage.join(tags_of(output), *f"{name}.parquet".split("/"))
        storage.write_bytes(uri, storage.read_bytes(uri)[:-9])


def there(output: str) -> dict[str, list[int]]:
    """The rows of each file."""
    found = {}
    tags = tags_of(output)
    for entry in storage.list_files(tags, ".parquet") if storage.exists(tags) else []:
        filesystem, path = storage.filesystem(entry.uri)
        rows = pq.read_table(path, filesystem=filesystem, partitioning=None)["row_hash"].to_pylist()
        found[entry.uri.removeprefix(tags + "/").removesuffix(".parquet")] = rows
    return found


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    base = request.getfixturevalue("s3_bucket") if request.param == "s3" else str(tmp_path)
    return f"{base}/tags"


# ---- what is done --------------------------------------------------------------------------------

FILE = st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), st.booleans())


@settings(deadline=None, max_examples=60)
@given(st.lists(FILE, max_size=7))
def test_every_row_that_is_done_lies_in_one_whole_file(files: list[tuple[list[int], bool]]) -> None:
    with tempfile.TemporaryDirectory() as output:
        for number, (ids, torn) in enumerate(files):
            write(output, **{f"w_{number}": ids})
            if torn:
                tear(output, f"w-{number}")
        whole = [set(ids) for ids, torn in files if not torn]
        times = Counter(one for ids in whole for one in ids)
        single = {one for ids in whole if all(times[one] == 1 for one in ids) for one in ids}
        for _ in range(2):  # and a second look finds nothing to do
            done = reconcile(output).tolist()
            assert done == sorted(one for ids in there(output).values() for one in ids)
            assert single <= set(done) <= set(times)
            assert len(set(done)) == len(done)
        if whole:  # at least one of those with rows in common stays
            assert done


def test_nothing_yet(output: str) -> None:
    assert reconcile(output).tolist() == []


def test_a_kill_between_two_files_of_a_write(output: str) -> None:
    """Of three files the first was there, the second under way, the third not begun."""
    write(output, w_000003_0=[1, 2], w_000003_1=[3, 4])
    tear(output, "w-000003-1")
    assert reconcile(output).tolist() == [1, 2]
    assert there(output) == {"w-000003-0": [1, 2]}


def test_a_write_that_is_tried_again_and_cuts_its_rows_otherwise(output: str) -> None:
    """The second try has replaced the first file of the first one, and then died as well."""
    write(output, w_0=[1, 2, 3], w_1=[4, 5, 6])
    write(output, w_0=[1, 3, 5])
    assert reconcile(output).tolist() == [1, 3, 5]
    assert there(output) == {"w-0": [1, 3, 5]}


def test_a_write_that_is_tried_again_while_the_first_try_goes_on(output: str) -> None:
    """On a node that counts as lost: its last file comes after those of the second try."""
    write(output, w_0=[1, 3, 5], w_1=[2, 4, 6], v_0=[7, 8])
    write(output, w_1=[4, 5, 6])
    assert reconcile(output).tolist() == [1, 3, 5, 7, 8]
    write(output, x_0=[2, 4, 6])  # which is what is then tagged again
    assert reconcile(output).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_of_files_with_a_row_in_common_one_counts(output: str) -> None:
    write(output, a=[1, 2, 3], b=[4, 5], c=[3, 6], d=[6, 7], e=[5, 8], f=[9, 9])
    assert reconcile(output).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert list(there(output)) == ["a", "b", "d"]


def test_rows_of_files_that_are_left_out_go(output: str) -> None:
    """With the others of their files, which are then tagged again."""
    entry = storage.FileEntry(f"{output}/archive/b.parquet", 9)
    own = row_hashes(storage.path_of(entry.uri), 0, 3).tolist()
    write(output, w_0=[1, 2], w_1=[3, own[2]], w_2=[4])
    assert reconcile(output).tolist() == sorted([1, 2, 3, 4, own[2]])
    assert reconcile(output, [LeftOut(entry, 3, "damaged")]).tolist() == [1, 2, 4]
    assert set(there(output)) == {"w-0", "w-2"}


def test_files_in_hive_folders(output: str) -> None:
    for folder, files in {
        "lang=en": {"w_0": [1, 2], "w_1": [3]},
        "lang=__HIVE_DEFAULT_PARTITION__": {"w_0": [4], "x_0": [3, 5]},
        "lang=a b": {"w_0": [6]},
    }.items():
        write(output, folder, **files)
    tear(output, "lang=en/w-1", "lang=a b/w-0")
    assert reconcile(output).tolist() == [1, 2, 3, 4, 5]
    assert set(there(output)) == {
        "lang=en/w-0", "lang=__HIVE_DEFAULT_PARTITION__/w-0", "lang=__HIVE_DEFAULT_PARTITION__/x-0",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 and no more", b"PAR1" + bytes(100) + b"PAR1"])
def test_torn_files_of_every_kind(output: str, data: bytes) -> None:
    write(output, w_0=[1])
    storage.write_bytes(f"{output}/tags/w-1.parquet", data)
    assert reconcile(output).tolist() == [1]
    assert list(there(output)) == ["w-0"]


def test_a_whole_file_of_something_else_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "tags").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "tags" / "mine.parquet")
    with pytest.raises(
        StorageError, match=r"mine\.parquet holds no tags \(no column row_hash\); move it elsewhere"
    ):
        reconcile(str(tmp_path))
    assert (tmp_path / "tags" / "mine.parquet").exists()


# ---- repairing an earlier run ----------------------------------------------------------------------


def failed(ids: list[int], statuses: list[str], retryable: list[bool]) -> pa.Table:
    errors = [
        f"{status} {number}" if status not in ("ok", "none") else None
        for number, status in enumerate(statuses)
    ]
    return tags(ids, image_status=statuses, retryable=retryable, error=errors)


def test_a_repair_goes_on_where_its_copying_was_killed(output: str) -> None:
    """What was copied is left as it is; the rows worth a retry are then what is not there."""
    base, target = f"{output}/first", f"{output}/second"
    write(base, a=[1, 2])
    write(base, "lang=a b", b=[3], kept_c=[4, 5])
    put(f"{base}/tags/d.parquet", failed([6, 7, 8], ["ok", "missing", "none"], [False, True, False]))
    put(f"{base}/tags/e.parquet", failed([9], ["missing"], [True]))
    keep_good_rows(base, target)
    kept = {"kept-a": [1, 2], "kept-d": [6, 8], "lang=a b/kept-b": [3], "lang=a b/kept-kept-c": [4, 5]}
    assert there(target) == kept
    # Were it copied again, these rows would be those of the first run.
    put(f"{target}/tags/kept-a.parquet", tags([1, 2, 99]))
    storage.delete_file(f"{target}/tags/lang=a b/kept-b.parquet")
    keep_good_rows(base, target)
    assert there(target) == kept | {"kept-a": [1, 2, 99]}
    write(target, a_0=[7, 8])  # of two files with the same row, the one that was taken over stays
    assert reconcile(target).tolist() == [1, 2, 3, 4, 5, 6, 8, 99]


def test_what_can_be_repaired(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    with pytest.raises(StorageError, match=r"--retry-failed .* is no tagging run"):
        check_base(output, ASKED)
    folder = tags_folder(output)
    with folder.writing(ASKED):
        with pytest.raises(StorageError, match="is not complete"):
            check_base(output, ASKED)
        write(output, w_0=[1, 2, 3, 4, 5, 6])
        finish(folder, ARCHIVE, {}, max_failed=0)
    with pytest.raises(DataError, match="no rows that failed for a passing reason"):
        check_base(output, ASKED)
    words = (
        r"^--retry-failed \S+ holds another tagging run \(pictures\.max_bytes: 9 there, 8 now\); .* folder$"
    )
    with pytest.raises(StorageError, match=words):
        check_base(output, ASKED | {"pictures": {"max_bytes": 8}})


# ---- the end -------------------------------------------------------------------------------------


def test_finish(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    folder = tags_folder(output)
    with folder.writing(ASKED):
        write(output, w_0=[1, 2], w_1=[3])
        with pytest.raises(RunError, match=r"holds 3 rows \(0 of them double\) for the 6 posts"):
            finish(folder, ARCHIVE, {}, max_failed=0)
        write(output, x_0=[3, 4, 5])
        with pytest.raises(RunError, match=r"holds 6 rows \(1 of them double\) for the 6 posts"):
            finish(folder, ARCHIVE, {}, max_failed=0)
        assert sorted(path.name for path in (tmp_path / "tags").glob("_*")) == ["_lock.json", "_run.json"]
        write(output, x_0=[4, 5, 6])
        manifest = finish(folder, ARCHIVE, {"run_id": "r"}, max_failed=0)
    assert (manifest["rows"], manifest["run_id"], manifest["failure"]) == (6, "r", None)
    assert [(file["name"], file["rows"]) for file in manifest["files"]] == [
        ("tags/w-0.parquet", 2), ("tags/w-1.parquet", 1), ("tags/x-0.parquet", 3),
    ]  # fmt: skip
    assert folder.result() == manifest


def test_too_many_failures_then_accepted(tmp_path: Path) -> None:
    output = str(tmp_path / "tags")
    folder, archive = tags_folder(output), replace(ARCHIVE, rows=4)
    with folder.writing(ASKED):
        put(
            f"{output}/tags/kept-a-0.parquet",
            failed([1, 2, 3, 4], ["ok", "missing", "missing", "none"], [False, True, False, False]),
        )
        words = (
            r"2 of 3 pictures failed \(66\.7%, more than 50\.0%\): 2 x missing N; all rows .*--retry-failed"
        )
        with pytest.raises(RunError, match=words):
            finish(folder, archive, {}, max_failed=0.5)
        assert json.loads((tmp_path / "tags" / MANIFEST_FILE).read_text())["failure"].startswith("2 of 3")
        assert folder.result() is None
        check_base(output, ASKED)
        check_base(output, ASKED | {"retry_failed": "what is compared with this"})
        assert finish(folder, archive, {}, max_failed=0.7)["failure"] is None
        assert folder.result() is not None


def test_a_model_that_answers_no_existence_has_tagged_its_posts_all_the_same(tmp_path: Path) -> None:
    """BERT, FA-VG and an ablation without the existence loss have nothing to say in that column."""
    errors = [None, "the model raised X: y", "no picture there; the model raised X: y", "no picture there"]
    put(f"{tmp_path}/w-0.parquet", tags([1, 2, 3, 4], existence=[[]] * 4, error=errors))
    (entry,) = storage.list_files(str(tmp_path), ".parquet")
    counts = TagCounts.of_file(entry)
    assert (counts.rows, counts.errors, counts.untagged) == (4, 3, 2)


def test_what_could_not_be_read_counts(tmp_path: Path) -> None:
    errors = [
        None,
        "line 3 is not valid JSON: Expecting value at character 1 (a.jsonl)",
        "missing; line 4: text is a list, not text (a.jsonl)",
        "row 7: likes does not fit double (a.parquet)",
        "mended: line 5 is not UTF-8 at byte 3 (a.jsonl)",
        "mended: line 6: text has half a surrogate pair, now U+FFFD; line 6: id is null, not text (a.jsonl)",
        "no such pipe line 7",
    ]
    put(f"{tmp_path}/w-0.parquet", tags(list(range(7)), error=errors))
    (entry,) = storage.list_files(str(tmp_path), ".parquet")
    counts = TagCounts.of_file(entry)
    assert (counts.unread, counts.summary()["rows_unread"]) == (4, 4)
    assert judge(counts, 4 / 7) is None
    assert (judge(counts, 0.5) or "").startswith(
        "4 of 7 posts could not be read as they stand in the archive (57.1%, "
    )


def test_a_run_that_belongs_to_something_else_says_what_differs(tmp_path: Path) -> None:
    """Left out or not, a damaged file is a part of the archive that was asked for."""
    one, other = storage.FileEntry("a/0.parquet", 9), storage.FileEntry("a/1.parquet", 7)
    folder = tags_folder(str(tmp_path / "tags"))
    whole = replace(ARCHIVE, files=(one, other), rows=8)
    with folder.writing(asked("m", whole, {}, None)):
        pass
    folder.check(
        asked("m", replace(ARCHIVE, files=(one,), rows=6, left_out=(LeftOut(other, 2, "x"),)), {}, None)
    )
    for now, words in (
        (replace(whole, uris=("b",)), "archive.0: a there, b now"),
        (replace(whole, files=(one, replace(other, size=8))), "files.bytes: 16 there, 17 now"),
        (replace(whole, uris=("a", "b")), r'archive: \["a"\] there, \["a", "b"\] now'),
    ):
        with pytest.raises(StorageError, match=words):
            folder.check(asked("m", now, {}, None))


def test_model_that_raises_on_many_posts() -> None:
    counts = TagCounts(rows=10, untagged=1)
    assert judge(counts, 0.1) is None
    counts.reasons["the model raised X"] = 2
    counts.untagged = 2
    assert judge(counts, 0.1) == (
        "the model could not tag 2 of 10 posts (20.0%, more than 10.0%): 2 x the model raised X"
    )
