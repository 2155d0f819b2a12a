"""Pictures in Parquet itself: every way in which writers lay them out is one column, over all files of an archive."""

import base64
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as for_any
from hypothesis import settings
from hypothesis import strategies as st

from mnerqg.archive.jsonlines import LINE_ERROR, PICTURE_ERRORS
from mnerqg.archive.lookup import picture_values
from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from tests.any_archive import any_column
from tests.archives import read_archive_here

BYTES = b"\xff\xd8\xff" * 20
TEXT = base64.encodebytes(BYTES).decode()
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FILES: dict[str, pa.Array] = {
    "binary": pa.array([BYTES, None], pa.binary()),
    "categories": pa.array([BYTES, None], pa.large_binary()).dictionary_encode(),
    "views": pa.array([BYTES, None], pa.binary_view()),
    "text-views": pa.array([TEXT, None], pa.string_view()),
    "fixed": pa.array([BYTES, None], pa.binary(60)),
    "text": pa.array([TEXT, " "]),
    "text-categories": pa.array([TEXT, None], pa.large_string()).dictionary_encode(),
    "nulls": pa.nulls(2),
    "structs": pa.array([{"bytes": BYTES, "path": "name.jpg"}, {"bytes": None, "path": "b.jpg"}], STRUCT),
    "large-structs": pa.array(
        [{"path": None, "bytes": BYTES}, None],
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
    ),
    "text-structs": pa.array([{"bytes": TEXT}, {"bytes": ""}]),
    "path-structs": pa.array(
        [{"bytes": None, "path": "a.jpg"}] * 2, pa.struct([("bytes", pa.null()), ("path", pa.string())])
    ),
}
GIVEN: dict[str, list[bytes | str | None]] = {name: [BYTES, None] for name in FILES} | {
    "nulls": [None, None],
    "structs": [BYTES, "b.jpg"],
    "path-structs": ["a.jpg", "a.jpg"],
}


def write(path: Path, image: pa.Array, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{path.stem} {row}" for row in range(len(image))]
    pq.write_table(pa.table({"post_id": names, "text": names, "image": image, **columns}), path)


def given(folder: Path, columns: ColumnsConfig | None = None) -> dict[str, list[bytes | str | None]]:
    """The pictures by file, and that no row has an error."""
    columns = columns or ColumnsConfig()
    archive = open_archive(str(folder), columns)
    rows = read_archive_here(archive)
    assert rows.schema == archive.layout.schema
    assert rows[LINE_ERROR].null_count == rows[PICTURE_ERRORS].null_count == len(rows) == archive.rows
    found: dict[str, list[bytes | str | None]] = {}
    pictures = picture_values(archive, columns, rows)
    for post_id, (picture,) in zip(rows["post_id"].to_pylist(), pictures, strict=True):
        found.setdefault(post_id.split()[0], []).append(picture)
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_kind(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.parquet", FILES[name])
    assert given(tmp_path) == {name: GIVEN[name]}
    pictures = open_archive(str(tmp_path), ColumnsConfig()).pictures
    assert pictures == ("structs" if "structs" in name else "bytes")


def test_all_kinds_in_one_archive(tmp_path: Path) -> None:
    for name, image in FILES.items():
        write(tmp_path / f"{name}.parquet", image)
    pq.write_table(pa.table({"post_id": ["none 0"], "text": ["x"]}), tmp_path / "none.parquet")
    assert given(tmp_path) == GIVEN | {"none": [None]}
    for name in FILES:
        if "structs" in name:
            (tmp_path / f"{name}.parquet").unlink()
    assert open_archive(str(tmp_path), ColumnsConfig()).pictures == "bytes"
    assert given(tmp_path) == {name: own for name, own in GIVEN.items() if "structs" not in name} | {
        "none": [None]
    }


def test_passed_through_they_are_the_same_every_night(tmp_path: Path) -> None:
    columns = ColumnsConfig(pass_through=("image",))
    for name, kind in (
        ("text", pa.large_binary()),
        ("structs", pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
    ):
        write(tmp_path / name / f"{name}.parquet", FILES[name])
        assert open_archive(str(tmp_path / name), columns).pass_through == (pa.field("image", kind),)
        assert given(tmp_path / name, columns) == {name: GIVEN[name]}


def test_what_is_no_picture_says_so_for_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"\xff\xfe", TEXT.encode()], pa.binary()).cast(pa.string(), safe=False)
    write(path, pa.concat_arrays([broken, pa.array(["no picture at all"])]))
    rows = read_archive_here(open_archive(str(path), ColumnsConfig()))
    assert rows["image"].to_pylist() == [None, BYTES, None]
    assert rows[LINE_ERROR].null_count == 3
    assert rows[PICTURE_ERRORS].to_pylist() == [
        [f"image is not base64: it has '\ufffd' at digit 1, in row 0 ({path})"],
        None,
        [f"image is not base64, but words, in row 2 ({path})"],
    ]


@pytest.mark.parametrize("other", ["binary", "structs"])
def test_a_value_of_a_folder_is_text(tmp_path: Path, other: str) -> None:
    write(tmp_path / "x.parquet", FILES[other])
    folder = tmp_path / "image=no picture at all"
    folder.mkdir()
    pq.write_table(pa.table({"post_id": ["1"], "text": ["x"]}), folder / "b.parquet")
    rows = read_archive_here(open_archive(str(tmp_path), ColumnsConfig()))
    words = f"image is not base64, but words, in row 0 ({folder}/b.parquet)"
    assert rows.filter(pa.compute.equal(rows["post_id"], "1"))[PICTURE_ERRORS].to_pylist() == [[words]]


@settings(deadline=None, max_examples=60, derandomize=True)
@for_any(st.lists(st.sampled_from(list(FILES.values())) | any_column(2), min_size=1, max_size=3))
def test_any_columns_are_read_or_refused(images: list[pa.Array]) -> None:
    """What is given becomes a picture or has a reason; only what is blank or null is neither."""
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            write(Path(folder) / f"f{number}.parquet", image)
        try:
            archive = open_archive(folder, ColumnsConfig())
        except DataError as error:
            said = str(error)
            assert f"{folder}/f" in said
            assert "the column image holds" in said
            return
        rows = read_archive_here(archive)
        assert (len(rows), rows.schema) == (2 * len(images), archive.layout.schema)
        given_values = [value for image in images for value in image.to_pylist()]
        pictures = picture_values(archive, ColumnsConfig(), rows)
        for value, (picture,), errors in zip(
            given_values, pictures, rows[PICTURE_ERRORS].to_pylist(), strict=True
        ):
            blank = value is None or (isinstance(value, str) and not value.strip())
            empty = isinstance(value, dict) and not any(value.values())
            assert (picture is None and errors is None) == (blank or empty)
            assert picture is None or errors is None
