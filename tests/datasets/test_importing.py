import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mnerqg.datasets.importing import (
    check_output,
    choose_splits,
    index_pictures,
    is_picture_id,
    read_lines,
    read_picture,
    write_dataset,
)
from mnerqg.datasets.refusals import DatasetSummary, SplitFigures
from mnerqg.errors import DataError, StorageError
from mnerqg.io import storage
from mnerqg.schema import Post
from tests.builders import jpeg

FILES = {"train": "train.txt", "valid": "val.txt"}


def posts(count: int, figures: SplitFigures | None = None) -> Iterator[Post]:
    for number in range(count):
        if figures is not None:
            figures.posts += 1
        yield Post(str(number), "text")


def interrupted() -> Iterator[Post]:
    yield Post("1", "text")
    raise KeyboardInterrupt


def write(output: str, counts: dict[str, int], rows_per_file: int = 1000) -> DatasetSummary[SplitFigures]:
    """A dataset of so many posts a split, as an importer writes it."""
    check_output(output, overwrite=True)
    summary = DatasetSummary("test", {split: SplitFigures() for split in counts}, ["test"])
    streams = {split: posts(count, summary.splits[split]) for split, count in counts.items()}
    write_dataset(streams, summary, output, rows_per_file)
    return summary


# ---- reading --------------------------------------------------------------------------------------------


def test_lines_without_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\n\r\nb\u2028c\x85\nd".encode())
    assert read_lines(tmp_path / "a.txt") == ["a", "", "b\u2028c\x85", "d"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        read_lines(path)
    path.write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError) as caught:
        read_lines(path)
    assert str(caught.value) == f"{path}:2: byte 0xff is not UTF-8; convert the file"


@pytest.mark.parametrize(
    ("text", "expected"), [("16_05.jpg", True), ("", False), ("../1", False), (".", False), ("a b", False)]
)
def test_ids_lead_nowhere_else(text: str, expected: bool) -> None:
    assert is_picture_id(text) == expected


def test_the_splits_there_are_or_those_named(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("")
    assert choose_splits(tmp_path, FILES) == (["valid"], ["train"])
    (tmp_path / "train.txt").write_text("")
    assert choose_splits(tmp_path, FILES) == (["train", "valid"], [])
    assert choose_splits(tmp_path, FILES, ["valid"]) == (["valid"], [])


def test_splits_that_are_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of train\.txt, val\.txt"):
        choose_splits(tmp_path, FILES)
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(DataError, match=r"val\.txt: missing; put it there or leave 'valid' out of --splits"):
        choose_splits(tmp_path, FILES, ["train", "valid"])
    with pytest.raises(DataError, match="'val' is no split; choose from train, valid"):
        choose_splits(tmp_path, FILES, ["val"])
    with pytest.raises(DataError, match="no such directory"):
        choose_splits(tmp_path / "nowhere", FILES)


def test_pictures_by_their_name(tmp_path: Path) -> None:
    for name in ("a_images/1.png", "a_images/1.jpg", "a_images/2.JPG", "a_images/x.txt", "b_images/2.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "c_images").write_text("no directory")
    found = index_pictures(tmp_path, "*_images")
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {
        "1": "a_images/1.jpg",
        "2": "a_images/2.JPG",
    }


def test_no_directory_of_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no directory \*_images"):
        index_pictures(tmp_path, "*_images")


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".JPG"])
def test_other_suffixes_are_found(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "t_images").mkdir()
    (tmp_path / "t_images" / f"1{suffix}").write_bytes(jpeg())
    figures = SplitFigures()
    assert read_picture(index_pictures(tmp_path, "*_images"), "1", figures) == (jpeg(), (40, 30))
    assert figures.pictures_found == 1


def test_pictures_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg()[:200])
    figures = SplitFigures()
    assert read_picture({"1": tmp_path / "1.jpg"}, "1", figures) is None
    assert read_picture({}, "2", figures) is None
    assert (figures.pictures_found, figures.pictures_unreadable, figures.pictures_missing) == (0, 1, 1)
    unreadable, missing = figures.picture_problems
    assert unreadable.startswith("1.jpg: ")
    assert missing == "2: no such picture"


# ---- writing --------------------------------------------------------------------------------------------


def test_shards_and_the_summary_that_the_streams_fill(tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary = write(str(output), {"train": 1, "valid": 7}, rows_per_file=3)
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "summary.json",
        "train/part-00000.parquet",
        "valid/part-00000.parquet",
        "valid/part-00001.parquet",
        "valid/part-00002.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert pq.read_table(output / "valid" / "part-00002.parquet").num_rows == 1
    stored = json.loads((output / "summary.json").read_text())
    assert stored == summary.to_dict()
    assert stored["source"] == "test"
    assert stored["absent_splits"] == ["test"]
    assert stored["splits"]["valid"]["posts"] == 7


def test_an_import_that_fails_half_way_leaves_the_earlier_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(str(output), {"train": 2})
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        write_dataset(
            {"train": posts(3), "valid": interrupted()},
            DatasetSummary[SplitFigures]("test", {}, []),
            str(output),
        )
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_has_to_be_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(str(output), {"train": 1, "valid": 1})
    with pytest.raises(DataError, match="--overwrite"):
        check_output(str(output), overwrite=False)
    write(str(output), {"train": 1})
    assert not (output / "valid").exists()


@pytest.mark.parametrize("name", ["notes.txt", "summary.json"])
def test_a_directory_of_something_else_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="no prepared dataset"):
        write(str(tmp_path), {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        check_output(str(tmp_path / "out"), overwrite=True)


def test_writing_to_an_object_store(s3_bucket: str) -> None:
    output = f"{s3_bucket}/sets/t15"

    def names() -> list[str]:
        return [entry.uri.removeprefix(f"{output}/") for entry in storage.list_files(s3_bucket)]

    write(output, {"train": 1})
    assert names() == ["summary.json", "train/part-00000.parquet"]
    with pytest.raises(DataError, match="--overwrite"):
        check_output(output, overwrite=False)
    write(output, {"valid": 1})
    assert names() == ["summary.json", "valid/part-00000.parquet"]
    with pytest.raises(KeyboardInterrupt):
        write_dataset(
            {"train": posts(3), "valid": interrupted()},
            DatasetSummary[SplitFigures]("test", {}, []),
            f"{s3_bucket}/new",
        )
    assert names() == ["summary.json", "valid/part-00000.parquet"]


def test_what_a_killed_import_left_is_replaced(s3_bucket: str) -> None:
    storage.write_text(f"{s3_bucket}/set/_unfinished/marker.txt", "")
    storage.write_text(f"{s3_bucket}/set/train/part-00009.parquet", "")
    write(f"{s3_bucket}/set", {"train": 1})
    files = storage.list_files(f"{s3_bucket}/set", ".parquet")
    assert [Path(entry.uri).name for entry in files] == ["part-00000.parquet"]


def test_a_missing_bucket_is_one_line(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="bucket") as caught:
        write("s3://no-such-bucket-here/set", {"train": 1})
    assert "\n" not in str(caught.value)
