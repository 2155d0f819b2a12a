"""A few posts of an archive by name. That row_hash is Ray's own is held by tests/distributed/test_sources.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.lookup import ArchivedPost, find_by_hash, find_by_id
from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.io import storage

ROWS = 700
STRUCTS = ({"bytes": b"data", "path": "name.jpg"}, {"bytes": None, "path": "a.jpg"}, None)


def columns_of(picture: str) -> dict[str, list[Any]]:
    numbers = range(ROWS)
    pictures = {
        "image_uri": [f"{n}.jpg" if n % 3 else None for n in numbers],
        "image_uris": [[f"{n}.jpg", None][: n % 3] for n in numbers],
        "image": [b"%d" % n if n % 3 else None for n in numbers],
        "structs": [STRUCTS[n % 3] for n in numbers],
        "none": [],
    }
    columns: dict[str, list[Any]] = {
        "post_id": [f"p{n % 600}" for n in numbers],
        "text": [f"text {n}" for n in numbers],
    }
    name = "image" if picture == "structs" else picture
    return columns | ({name: pictures[picture]} if picture != "none" else {})


def expected(picture: str, number: int) -> tuple[bytes | str | None, ...]:
    name = f"{number}.jpg"
    return {
        "image_uri": (name if number % 3 else None,),
        "image_uris": (name, None)[: number % 3],
        "image": (b"%d" % number if number % 3 else None,),
        "structs": (b"data", "a.jpg", None)[number % 3 : number % 3 + 1],
        "none": (),
    }[picture]


def found_by_hash(folder: Path, file: Path, numbers: list[int]) -> list[ArchivedPost]:
    hashes = row_hashes(storage.path_of(str(file)), 0, ROWS)
    archive = open_archive(str(folder), ColumnsConfig())
    found = list(find_by_hash(archive, ColumnsConfig(), hashes[numbers]))
    assert [post.row_hash for post in found] == hashes[sorted(numbers)].tolist()
    return found


@pytest.mark.parametrize("picture", ["image_uri", "image_uris", "image", "structs", "none"])
def test_parquet(tmp_path: Path, picture: str) -> None:
    file = tmp_path / "b.parquet"
    pq.write_table(pa.table(columns_of(picture)), file, row_group_size=300)
    pq.write_table(pa.table(columns_of(picture)), tmp_path / "a.parquet")
    numbers = [699, 0, 299, 300, 5]
    for post, number in zip(found_by_hash(tmp_path, file, numbers), sorted(numbers), strict=True):
        assert (post.post_id, post.text) == (f"p{number % 600}", f"text {number}")
        assert post.pictures == expected(picture, number)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    columns = columns_of("image_uris")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for post, number in zip(found_by_hash(tmp_path, file, [650, 1, 2]), (1, 2, 650), strict=True):
        assert (post.text, post.pictures) == (f"text {number}", expected("image_uris", number))


def test_a_moved_archive_is_searched_by_id(tmp_path: Path) -> None:
    pq.write_table(pa.table(columns_of("image_uri")), tmp_path / "posts.parquet")
    archive = open_archive(str(tmp_path), ColumnsConfig())
    here = row_hashes("somewhere/else.parquet", 0, ROWS)
    assert list(find_by_hash(archive, ColumnsConfig(), here[:5])) == []
    found = list(find_by_id(archive, ColumnsConfig(), {"p7", "p599", "unknown"}))
    assert [(post.post_id, post.text) for post in found] == [("p7", "text 7"), ("p599", "text 599")]


def test_texts_and_uris_that_are_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9", b"ok"])
    broken = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(
        pa.table({"post_id": ["1", "2"], "text": broken, "image_uri": broken}), tmp_path / "p.parquet"
    )
    archive = open_archive(str(tmp_path), ColumnsConfig())
    found = list(find_by_hash(archive, ColumnsConfig(), row_hashes(str(tmp_path / "p.parquet"), 0, 2)))
    assert [post.text for post in found] == ["caf\ufffd", "ok"]
    assert [post.pictures for post in found] == [("caf\ufffd",), ("ok",)]
    assert np.unique([post.row_hash for post in found]).size == 2
