"""A folder belongs to one run, on a file system and in S3."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnerqg.errors import RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE, locked
from mnerqg.io.run_folder import RunFolder

ASKED: dict[str, Any] = {
    "model": "m",
    "config": {"lr": 5e-05, "boxes": None, "roots": ("a", "b")},
    "queries": [{"type": "PER", "query": "Person"}, {"type": "LOC", "query": "Place"}],
}


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    base = request.getfixturevalue("s3_bucket") if request.param == "s3" else str(tmp_path)
    return RunFolder(f"{base}/run", "cooking", result_file="dish.json", mark="_SUCCESS", restartable=True)


def names(folder: RunFolder) -> list[str]:
    """All that lies there, hidden files too."""
    place = storage.locate(folder.uri)
    if isinstance(place, Path):
        return sorted(path.name for path in place.iterdir())
    found = storage.s3_client().list_objects_v2(Bucket=place.bucket, Prefix=place.prefix).get("Contents", [])
    return sorted(entry["Key"].removeprefix(place.prefix) for entry in found)


def test_it_begins_goes_on_and_is_finished(folder: RunFolder) -> None:
    assert folder.begun() is None
    assert not folder.check(ASKED)
    for note in ("first", "second"):
        with folder.writing(ASKED, {"note": note}) as run:
            assert run["note"] == "first"
            assert folder.check(ASKED)
            assert folder.result() is None
            folder.finish({"salt": 0}, failed=True)
            assert folder.result() is None
    with folder.writing(ASKED):
        folder.finish({"salt": 1})
    assert folder.result() == {"salt": 1}
    assert {"_SUCCESS", "_run.json", "dish.json"} == set(names(folder)) - {LOCK_FILE}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "z"}, r"\(model: m there, z now\)"),
        ({"config": {**ASKED["config"], "lr": 0.1}}, r"\(config\.lr: 5e-05 there, 0\.1 now\)"),
        ({"config": {**ASKED["config"], "boxes": "weak"}}, r"\(config\.boxes: null there, weak now\)"),
        (
            {"config": {**ASKED["config"], "roots": ["a"]}},
            r'\(config\.roots: \["a", "b"\] there, \["a"\] now\)',
        ),
        ({"more": True}, r"\(more: null there, true now\)"),
        ({"model": ""}, r'\(model: m there, "" now\)'),
        (
            {"queries": [ASKED["queries"][0], {"type": "LOC", "query": "x" * 100}]},
            rf"\(queries\.1\.query: Place there, {'x' * 80} now\)",
        ),
    ],
)
def test_another_run_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    folder = RunFolder(str(tmp_path), "cooking", result_file="dish.json", mark="dish.json", restartable=True)
    with folder.writing(ASKED):
        pass
    other = ASKED | change
    with pytest.raises(
        StorageError, match=rf"^--output \S+ holds another cooking {difference}; .* --restart$"
    ):
        folder.check(other)
    with pytest.raises(StorageError, match=difference), folder.writing(other):
        pass
    with pytest.raises(StorageError, match=r"another folder$"):
        replace(folder, restartable=False).check(other)
    assert folder.check(other, restart=True)
    folder.finish({})
    with pytest.raises(StorageError, match=r"another folder$"):
        folder.check(other)
    with pytest.raises(StorageError, match="a finished cooking, which --restart never touches"):
        folder.check(ASKED, restart=True)


def test_a_restart_leaves_the_lock_and_nothing_else(folder: RunFolder) -> None:
    with folder.writing(ASKED, {"note": "first"}):
        storage.write_text(storage.join(folder.uri, "part", "a.parquet"), "")
    with folder.writing({"model": "z"}, {"note": "second"}, restart=True) as run:
        assert run == {"note": "second", "asked": {"model": "z"}}
        assert names(folder) == [LOCK_FILE, "_run.json"]


def test_a_restart_of_nothing_leaves_what_is_hidden(tmp_path: Path) -> None:
    (tmp_path / ".keep").write_text("mine")
    with RunFolder(str(tmp_path), "cooking").writing(ASKED, restart=True):
        assert (tmp_path / ".keep").read_text() == "mine"


def test_a_folder_of_something_else_is_left_alone(folder: RunFolder) -> None:
    storage.write_text(storage.join(folder.uri, "notes.txt"), "mine")
    for restart in (False, True):
        with (
            pytest.raises(StorageError, match="holds files of no cooking; choose an empty or new folder"),
            folder.writing(ASKED, restart=restart),
        ):
            pass
    assert set(names(folder)) - {LOCK_FILE} == {"notes.txt"}


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"asked": 1}', "\0"])
def test_a_damaged_run_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "_run.json").write_text(text)
    with pytest.raises(
        StorageError, match=r"_run\.json is damaged, .*; restore it, or choose another folder"
    ):
        RunFolder(str(tmp_path), "cooking").check(ASKED)


def test_a_damaged_result(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "cooking", result_file="dish.json", mark="_SUCCESS")
    with folder.writing(ASKED):
        folder.finish({})
    (tmp_path / "dish.json").write_text("{")
    with pytest.raises(StorageError, match=r"dish\.json is damaged"):
        folder.result()


def test_one_job_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "cooking")
    with locked(folder.uri), pytest.raises(RunError, match="is writing into"), folder.writing(ASKED):
        pass
    assert names(folder) == [LOCK_FILE]


def test_a_store_that_fails_under_way_is_no_fault_of_the_command(tmp_path: Path) -> None:
    """Before, the exit code depended on what the driver was doing: 2, as it listed what was written."""
    folder = RunFolder(str(tmp_path / "run"), "cooking")
    with pytest.raises(RunError, match="the store is away; run the same command again") as caught:  # noqa: SIM117
        with folder.writing({"dish": "soup"}):
            raise StorageError("the store is away; run the same command again")
    assert caught.value.exit_code == 1
