from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.datasets import prepared
from mnerqg.datasets.prepared import count_posts, fingerprint, read_posts, split_files, write_split
from mnerqg.errors import DataError, StorageError
from mnerqg.schema import TRAINING_SCHEMA, Box, Phrase, Post, Span
from tests.servers import faults

Look = Callable[[str, str], object]


def read_all(data: str, split: str) -> list[Post]:
    return list(read_posts(data, split))


LOOKS: list[Look] = [count_posts, read_all]
"""All that looks into the files of a split."""


def write(folder: Path, name: str, ids: list[int], schema: pa.Schema = TRAINING_SCHEMA) -> None:
    rows = [
        {
            "post_id": str(number),
            "text": f"post {number}",
            "image": bytes([number % 256]) if number % 2 else None,
            "entities": [{"start": 0, "end": 4, "type": "PER"}] if number % 3 else [],
            "boxes": [
                {
                    "type": "PER",
                    "x_min": 1,
                    "y_min": 2,
                    "x_max": 3,
                    "y_max": 4,
                    "source": "weak",
                    "score": 0.5,
                }
            ],
            "boxes_annotated": bool(number % 2),
        }
        for number in ids
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """100 posts of a split in two files, in the order of their numbers."""
    write(tmp_path / "train", "part-0.parquet", list(range(70)))
    write(tmp_path / "train", "part-1.parquet", list(range(70, 100)))
    return tmp_path


def test_posts_come_back_as_written(data: Path) -> None:
    posts = list(read_posts(str(data), "train"))
    assert [post.post_id for post in posts] == [str(number) for number in range(100)]
    box = Box("PER", 1, 2, 3, 4, "weak", 0.5)
    assert posts[1] == Post("1", "post 1", b"\x01", (Span(0, 4, "PER"),), (box,), boxes_annotated=True)
    assert posts[0] == Post("0", "post 0", None, (), (box,))
    assert count_posts(str(data), "train") == 100


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 64, 99, 150])
def test_shares_are_disjoint_and_complete(data: Path, shares: int) -> None:
    parts = [
        [post.post_id for post in read_posts(str(data), "train", share=share, shares=shares)]
        for share in range(shares)
    ]
    assert sorted(int(post) for part in parts for post in part) == list(range(100))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_null_lists_are_empty(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    row = dict.fromkeys(TRAINING_SCHEMA.names) | {"post_id": "1"}
    pq.write_table(pa.Table.from_pylist([row], schema=TRAINING_SCHEMA), tmp_path / "train" / "a.parquet")
    assert list(read_posts(str(tmp_path), "train")) == [Post("1", None)]


@pytest.mark.parametrize("empty_folder", [False, True])
def test_a_missing_split_is_named_with_the_remedy(data: Path, empty_folder: bool) -> None:
    if empty_folder:
        (data / "valid").mkdir()
    with pytest.raises(
        DataError, match=r"^\S*/valid holds no Parquet files; write them with: jobs/prepare.py"
    ):
        split_files(str(data), "valid")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (TRAINING_SCHEMA.remove(1), "column text is missing, not string"),
        (
            TRAINING_SCHEMA.set(0, pa.field("post_id", pa.large_string())),
            "column post_id is large_string, not string",
        ),
        (
            TRAINING_SCHEMA.append(TRAINING_SCHEMA.field("text")),
            "column text is string and string, not string",
        ),
    ],
)
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["part-.parquet", "part-2.parquet"], ids=["first", "last"])
def test_wrong_columns_are_named(data: Path, name: str, look: Look, schema: pa.Schema, message: str) -> None:
    pq.write_table(
        pa.table([pa.nulls(2, kind) for kind in schema.types], schema=schema), data / "train" / name
    )
    with pytest.raises(DataError, match=f"train/{name}: {message}; prepare the dataset again") as caught:
        look(str(data), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no Parquet", "empty", "cut", "footer"])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["part-0.parquet", "part-1.parquet"])
def test_every_file_that_cannot_be_read_is_named(data: Path, name: str, look: Look, damage: str) -> None:
    path = data / "train" / name
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    contents = {
        "no Parquet": b"PAR? no",
        "empty": b"",
        "cut": whole[:-100],
        # Of this pyarrow says OSError, not ArrowInvalid.
        "footer": whole[: -8 - length] + b"\xff" * length + whole[-8:],
    }
    path.write_bytes(contents[damage])
    with pytest.raises(
        DataError, match=rf"train/{name} is not readable as Parquet \(.+\); prepare the dataset again"
    ) as caught:
        look(str(data), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("look", LOOKS)
def test_a_footer_is_read_once(data: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Counted(pq.ParquetFile):
        def __init__(self, source: Any, **options: Any) -> None:
            opened.append(source)
            super().__init__(source, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    look(str(data), "train")
    assert len(opened) == 2


@pytest.mark.parametrize("look", LOOKS)
def test_a_store_that_is_away_is_no_reason_to_prepare_again(
    s3_bucket: str, s3_endpoint: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away after the files were found, as their footers are read."""
    write_split([Post("1", "text")], f"{s3_bucket}/train")
    files = split_files(s3_bucket, "train")
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(prepared, "split_files", lambda *_: files)
    with (
        faults(s3_endpoint, share=1.0, kinds=["internal_error"]),
        pytest.raises(
            StorageError,
            match=r"part-00000\.parquet: the store answers 500 InternalError again and again; "
            r"that may pass: run the same command again$",
        ),
    ):
        look(s3_bucket, "train")


def test_the_fingerprint_follows_the_files_not_their_place(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    write(copy / "train", "part-0.parquet", list(range(70)))
    write(copy / "train", "part-1.parquet", list(range(70, 100)))
    assert fingerprint(str(copy), "train") == fingerprint(str(data), "train")
    write(copy / "train", "part-1.parquet", list(range(70, 130)))
    assert fingerprint(str(copy), "train") != fingerprint(str(data), "train")


def test_row_groups_are_small(tmp_path: Path) -> None:
    assert write_split((Post(str(number), "text") for number in range(250)), str(tmp_path / "train")) == 250
    file = pq.ParquetFile(tmp_path / "train" / "part-00000.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [100, 100, 50]


def test_rows_have_the_training_schema(tmp_path: Path) -> None:
    boxed = Post(
        "1",
        "A man",
        boxes=(Box("7", 1, 2, 3, 4),),
        boxes_annotated=True,
        phrases=(Phrase("7", "A man"), Phrase("7#2", "the guy")),
    )
    write_split([boxed, Post("2", "text")], str(tmp_path))
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.schema == TRAINING_SCHEMA
    first, second = table.to_pylist()
    assert first["phrases"] == [{"id": "7", "phrase": "A man"}, {"id": "7#2", "phrase": "the guy"}]
    assert (second["phrases"], second["boxes"], second["image"]) == ([], [], None)
