"""The picture stages by themselves, and in runs over archives as people have them."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from mnerqg.archive.jsonlines import PICTURE_ERRORS, make_layout, read_tables
from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig, PicturesConfig, TagConfig
from mnerqg.distributed.picture_stages import DecodePictures, FetchPictures
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import plan_tagging
from mnerqg.errors import RunError
from mnerqg.inputs.prepared import PICTURES
from tests.archives import read_archive_here, read_tags
from tests.cheap_tagger import CheapTagger
from tests.pictures import encode, noisy

SIDE = 32
JPEG = encode(noisy(40, 30), "JPEG")
TEXT = "We just landed in Southville Valley"


def decoded(rows: pa.Table) -> list[list[tuple[str, str | None]]]:
    """Status and error of every picture of every row; a canvas is there exactly where the status is ok."""
    table = DecodePictures(ColumnsConfig(), SIDE, PicturesConfig())(rows)
    assert table.num_rows == rows.num_rows
    assert {"image", PICTURE_ERRORS}.isdisjoint(table.column_names)
    posts: list[list[dict[str, Any]]] = table[PICTURES].to_pylist()
    for picture in (picture for post in posts for picture in post):
        assert (picture["pixels"] is not None) == (picture["status"] == "ok")
        assert picture["pixels"] is None or len(picture["pixels"]) == 3 * SIDE**2
    return [[(picture["status"], picture["error"]) for picture in post] for post in posts]


def fetched(rows: pa.Table, uris: str, folder: Path) -> list[list[tuple[str, str | None]]]:
    config = PicturesConfig(roots=(str(folder),), attempts=1, max_per_post=4)
    return decoded(FetchPictures(ColumnsConfig(), uris, config)(rows))


def parquet(folder: Path, values: pa.Array) -> pa.Table:
    """The rows of a Parquet archive with these in its column image."""
    (folder / "parquet").mkdir()
    texts = [TEXT] * len(values)
    pq.write_table(
        pa.table({"post_id": texts, "text": texts, "image": values}), folder / "parquet" / "a.parquet"
    )
    return read_archive_here(open_archive(str(folder / "parquet"), ColumnsConfig()))


def lines(*posts: dict[str, Any]) -> pa.Table:
    """The rows of JSON Lines with the picture column that they have."""
    (picture,) = {key for post in posts for key in post if key.startswith("image")}
    layout = make_layout(ColumnsConfig(), picture)  # type: ignore[arg-type]
    data = "\n".join(map(json.dumps, posts)).encode()
    return pa.concat_tables(read_tables(io.BytesIO(data), "x.jsonl", layout))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_in_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    encoded = base64.b64encode(JPEG).decode()
    values = [encoded, base64.encodebytes(JPEG).decode(), f"data:image/jpeg;base64,{encoded}", "no picture at all",
              "x.jpg", "", " \n", None]  # fmt: skip
    place = f"({tmp_path}/parquet/a.parquet)"
    assert decoded(parquet(tmp_path, pa.array(values, kind))) == [
        *[[("ok", None)]] * 3,
        [("unreadable", f"image is not base64, but words, in row 3 {place}")],
        [("unreadable", f"image is not base64: it has '.' at digit 2, in row 4 {place}")],
        *[[("none", None)]] * 3,
    ]


def test_structs_of_bytes_and_path(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    values = [
        {"bytes": JPEG, "path": "name.jpg"},
        {"bytes": JPEG, "path": None},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "a.jpg"},
        None,
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    expected = [
        *[[("ok", None)]] * 3,
        [("missing", f"No such file or directory <{tmp_path}/gone.jpg>")],
        [("none", None)],
        [("unreadable", "the picture has no bytes")],
        [("none", None)],
    ]
    assert fetched(parquet(tmp_path, pa.array(values, kind)), "image", tmp_path) == expected


def test_structs_of_text(tmp_path: Path) -> None:
    values = [
        {"bytes": base64.b64encode(JPEG).decode()},
        {"bytes": "no picture at all"},
        {"bytes": " "},
        None,
    ]
    assert fetched(parquet(tmp_path, pa.array(values)), "image", tmp_path) == [
        [("ok", None)],
        [("unreadable", f"image is not base64, but words, in row 1 ({tmp_path}/parquet/a.parquet)")],
        [("none", None)],
        [("none", None)],
    ]


def test_lists_with_some_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    posts = lines(
        {"post_id": "1", "image_uris": ["a.jpg", 5, None, "", {"url": "a.jpg"}, "a.jpg", 7]},
        {"post_id": "2", "image_uris": 5},
        {"post_id": "3", "image_uris": "a.jpg"},
        {"post_id": "4", "image_uris": []},
        {"post_id": "5"},
    )
    first, *others = fetched(posts, "image_uris", tmp_path)
    wrong = "image_uris has a whole number in it, not text, on line 1 (x.jsonl)"
    unread = ("too_large", "only 4 pictures of a post are read")
    assert first == [("ok", None), ("unreadable", wrong), ("none", None), ("none", None), *[unread] * 3]
    words = "image_uris is a whole number, not a list of texts, on line 2 (x.jsonl)"
    assert others == [[("unreadable", words)], [("ok", None)], [], []]


def test_one_uri_of_a_wrong_type(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    posts = lines(
        {"image_uri": 5}, {"image_uri": "a.jpg"}, {"image_uri": {}}, {"image_uri": None}, {"text": ""}
    )
    assert fetched(posts, "image_uri", tmp_path) == [
        [("unreadable", "image_uri is a whole number, not text, on line 1 (x.jsonl)")],
        [("ok", None)],
        [("unreadable", "image_uri is an object, not text, on line 3 (x.jsonl)")],
        [("none", None)],
        [("none", None)],
    ]


# ---- archives as people have them ------------------------------------------------------------------


def tag(model: Path, archive: Path, failure: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the rows by post_id of a run that fails with the words, since so many pictures failed."""
    config = TagConfig(max_failed=0.2, pictures=PicturesConfig(attempts=1))
    plan = plan_tagging(config, str(model), str(archive), f"{archive}-tags")
    with pytest.raises(RunError, match=failure):
        tag_archive(plan, load_tagger=CheapTagger.load)  # type: ignore[arg-type]
    manifest = json.loads((Path(plan.output) / "_manifest.json").read_text())
    return manifest, {row["post_id"]: row for row in read_tags(plan.output).to_pylist()}


@pytest.mark.usefixtures("ray_cluster")
def test_base64_as_encoders_write_it(tmp_path: Path, tiny_model: Path) -> None:
    encoded = base64.b64encode(JPEG).decode()
    images = {
        "plain": encoded,
        "wrapped": base64.encodebytes(JPEG).decode(),
        "url-safe": base64.urlsafe_b64encode(JPEG).decode(),
        "unpadded": encoded.rstrip("="),
        "data-uri": f"data:image/jpeg;base64,{encoded}",
        "not-base64": "no picture at all",
        "number": 5,
        "nothing": None,
    }
    archive = tmp_path / "base64"
    archive.mkdir()
    posts = [{"post_id": name, "text": TEXT, "image": image} for name, image in images.items()]
    (archive / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    manifest, rows = tag(tiny_model, archive, r"2 of 7 pictures failed \(28\.6%, more than 20\.0%\)")
    for name in list(images)[:5]:
        assert (rows[name]["image_status"], rows[name]["error"]) == ("ok", None)
        assert (rows[name]["image_width"], rows[name]["image_height"]) == (40, 30)
        assert rows[name]["regions"] == rows["plain"]["regions"]
    for number, words in ((6, "is not base64, but words"), (7, "is a whole number, not base64 text")):
        row = rows[list(images)[number - 1]]
        assert row["image_status"] == "unreadable"
        assert row["error"] == f"image {words}, on line {number} ({archive}/posts.jsonl)"
    assert (rows["nothing"]["image_status"], rows["nothing"]["error"]) == ("none", None)
    assert manifest["image_status"] == dict.fromkeys(manifest["image_status"], 0) | {
        "ok": 5, "none": 1, "unreadable": 2,
    }  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_the_image_column_of_hugging_face(tmp_path: Path, tiny_model: Path) -> None:
    archive = tmp_path / "structs"
    (archive / "images").mkdir(parents=True)
    (archive / "images" / "a.jpg").write_bytes(JPEG)
    images: dict[str, Any] = {
        "bytes": {"bytes": JPEG, "path": "a.jpg"},
        "path": {"bytes": None, "path": "images/a.jpg"},
        "gone": {"bytes": None, "path": "images/b.jpg"},
        "none": None,
    }
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"post_id": list(images), "text": [TEXT] * 4, "image": pa.array(list(images.values()), kind)}
    pq.write_table(pa.table(columns), archive / "a.parquet")
    _, rows = tag(tiny_model, archive, r"1 of 3 pictures failed \(33\.3%, more than 20\.0%\)")
    found = {name: (row["image_status"], row["error"], row["image_width"]) for name, row in rows.items()}
    assert found == {
        "bytes": ("ok", None, 40),
        "path": ("ok", None, 40),
        "gone": ("missing", f"No such file or directory <{archive}/images/b.jpg>", None),
        "none": ("none", None, None),
    }


@pytest.mark.usefixtures("ray_cluster")
def test_pictures_that_viewers_show(tmp_path: Path, tiny_model: Path) -> None:
    archive = tmp_path / "pictures"
    archive.mkdir()
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", os.urandom(750_000).hex(), zip=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture = noisy(40, 30)
    files = {
        "large-text-chunk.png": encode(picture, "PNG", pnginfo=info),
        "animated.webp": encode(picture, "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "photo.avif": encode(picture, "AVIF"),
        "avif-named.jpg": encode(picture, "AVIF"),
        "progressive.jpg": encode(picture, "JPEG", progressive=True),
        "upright-by-exif.jpg": encode(picture, "JPEG", exif=turned),
        "name with space, %20 # and ?.jpg": JPEG,
        "cut.jpg": JPEG[:-5],
        "half.jpg": JPEG[: len(JPEG) // 3],
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    }
    for name, data in files.items():
        (archive / name).write_bytes(data)
    os.mkfifo(archive / "pipe.jpg")
    uris: dict[str, Any] = {name: name for name in [*files, "pipe.jpg", "gone.jpg"]} | {"number": 5}
    posts = [{"post_id": name, "text": TEXT, "image_uri": uri} for name, uri in uris.items()]
    (archive / "posts.jsonl").write_text("\n".join(map(json.dumps, posts)))
    manifest, rows = tag(tiny_model, archive, r"5 of 13 pictures failed \(38\.5%, more than 20\.0%\)")
    for name in list(files)[:7]:
        assert (rows[name]["image_status"], rows[name]["error"]) == ("ok", None), name
        size = (30, 40) if "exif" in name else (40, 30)
        assert (rows[name]["image_width"], rows[name]["image_height"]) == size, name
    cut = rows["cut.jpg"]
    assert (cut["image_status"], cut["image_width"], cut["image_height"]) == ("ok", 40, 30)
    assert cut["error"] == "the JPEG is damaged or cut short: 30 of 30 rows are there"
    assert cut["regions"]
    for name, status, error in (
        ("half.jpg", "unreadable", "the JPEG is damaged or cut short: "),
        ("drawing.svg", "unreadable", "not a picture that is read, but an SVG drawing"),
        ("pipe.jpg", "forbidden", f"a FIFO, not a regular file <{archive}/pipe.jpg>"),
        ("gone.jpg", "missing", f"No such file or directory <{archive}/gone.jpg>"),
        (
            "number",
            "unreadable",
            f"image_uri is a whole number, not text, on line 13 ({archive}/posts.jsonl)",
        ),
    ):
        assert rows[name]["image_status"] == status, name
        assert rows[name]["error"].startswith(error), name
    assert manifest["image_status"] == dict.fromkeys(manifest["image_status"], 0) | {
        "ok": 8, "unreadable": 3, "forbidden": 1, "missing": 1,
    }  # fmt: skip
    assert manifest["rows_with_error"] == 6


def test_a_column_of_uris_that_is_the_id_too_stays(tmp_path: Path) -> None:
    rows = pa.table({"link": ["gone.jpg"], "text": [TEXT]})
    columns = ColumnsConfig(post_id="link", image_uri="link")
    config = PicturesConfig(roots=(str(tmp_path),), attempts=1)
    assert FetchPictures(columns, "link", config)(rows)["link"].to_pylist() == ["gone.jpg"]
