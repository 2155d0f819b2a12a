import datetime
import io
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnerqg import storage
from mnerqg.config import ColumnsConfig, PicturesConfig, TagConfig
from mnerqg.distributed.tag_stages import tag_each
from mnerqg.distributed.tagging import plan_resources, plan_tagging, tag_archive
from mnerqg.errors import ConfigError, RunError
from mnerqg.schema import Post, TaggedPost, tags_schema
from mnerqg.tagger import PreparedPost, Tagger

WORDS = ["the", "city", "of", "Lisbon", "and", "Ada", "Lovelace", "in", "an", "Organization", "Names"]
DAY = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


def encoded(kind: str = "JPEG", size: tuple[int, int] = (90, 60), mode: str = "RGB", **options: Any) -> bytes:
    """A picture with something in it, as a file of `kind`."""
    buffer = io.BytesIO()
    picture = Image.radial_gradient("L").resize(size)
    picture = picture.convert("RGB").quantize(32) if mode == "P" else picture.convert(mode)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    data = bytearray(encoded("PNG", (1, 1)))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def deep() -> bytes:
    """A gray PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# name -> the file (None: there is none), its status, and its upright size.
PICTURES: dict[str, tuple[bytes | None, str, tuple[int, int] | None]] = {
    "plain.jpg": (encoded(), "ok", (90, 60)),
    "with space 100%.jpg": (encoded(size=(64, 64)), "ok", (64, 64)),
    "cmyk.jpg": (encoded(mode="CMYK"), "ok", (90, 60)),
    "palette.png": (encoded("PNG", mode="P"), "ok", (90, 60)),
    "deep.png": (deep(), "ok", (90, 60)),
    "moving.gif": (
        encoded("GIF", save_all=True, append_images=[Image.new("RGB", (90, 60), "red")]), "ok", (90, 60),
    ),
    "turned.jpg": (encoded(exif=exif(6)), "ok", (60, 90)),
    "dot.jpg": (encoded(size=(1, 1)), "ok", (1, 1)),
    "banner.png": (encoded("PNG", (20000, 10)), "ok", (20000, 10)),
    "zero.jpg": (b"", "unreadable", None),
    "cut.jpg": (encoded()[:400], "unreadable", None),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "unreadable", None),
    "bomb.png": (bomb(), "too_large", None),
    "heavy.jpg": (encoded() + b"\0" * 200_000, "too_large", None),
    "gone.jpg": (None, "missing", None),
    "../secret.jpg": (None, "forbidden", None),
    "s3://another-bucket/x.jpg": (None, "forbidden", None),
    "http://169.254.169.254/latest": (None, "forbidden", None),
    "file:///etc/passwd": (None, "forbidden", None),
}  # fmt: skip

TEXTS: list[tuple[str | None, str]] = [
    (None, "empty"),
    ("", "empty"),
    (" \t\n ", "empty"),
    ("word " * 20_000, "truncated"),
    ("👩🏽‍🚀 in 🇵🇹 the city", "ok"),
    ("Cafe\u0301 of Lis\u0301bon", "ok"),
    ("اسمي آدا من لشبونة", "ok"),
    ("a\0b of the city", "ok"),
]

SMALL = TagConfig(
    batch_posts=8,
    min_rows_per_file=1,
    max_rows_per_file=25,
    pictures=PicturesConfig(max_bytes=100_000, attempts=1),
)


def post(number: int) -> str:
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 4 + number % 7))


def write_pictures(folder: str) -> None:
    for name, (data, _, _) in PICTURES.items():
        if data is not None:
            storage.write_bytes(storage.join(folder, *name.split("/")), data)


def archive_rows() -> list[dict[str, Any]]:
    """Posts with every kind of picture, with every kind of text, one without an id and two with the same."""
    rows: list[dict[str, Any]] = [
        {
            "post_id": f"p{number}",
            "text": post(number),
            "image_uri": f"images/{name}" if "//" not in name else name,
        }
        for number, name in enumerate(PICTURES)
    ]
    rows += [
        {"post_id": f"t{number}", "text": text, "image_uri": "images/plain.jpg" if number % 2 else None}
        for number, (text, _) in enumerate(TEXTS)
    ]
    rows += [
        {"post_id": None, "text": post(3), "image_uri": "images/plain.jpg"},
        {"post_id": "p0", "text": post(4), "image_uri": ""},
    ]
    for number, row in enumerate(rows):
        row |= {"row": number, "lang": "pt" if number % 2 else "en", "at": DAY, "tags": ["a"] * (number % 3)}
    return rows


SCHEMA = pa.schema(
    [
        ("post_id", pa.string()),
        ("text", pa.string()),
        ("image_uri", pa.string()),
        ("row", pa.int64()),
        ("lang", pa.dictionary(pa.int8(), pa.string())),
        ("at", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
    ]
)


def write_archive(folder: str, rows: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    """Two files and an empty one."""
    middle = len(rows) // 2
    for name, part in (("a", rows[:middle]), ("b", rows[middle:]), ("empty", [])):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(part), schema=schema), buffer)
        storage.write_bytes(storage.join(folder, f"{name}.parquet"), buffer.getvalue())


def read_tags(uri: str) -> pa.Table:
    """All rows of a run, after a look at what lies there."""
    files = storage.list_files(uri, ".parquet")
    tables = []
    for entry in files:
        filesystem, path = storage.filesystem(entry.uri)
        tables.append(pq.read_table(path, filesystem=filesystem, partitioning=None))
    assert len({str(table.schema) for table in tables}) == 1
    assert storage.exists(storage.join(uri, "_SUCCESS"))
    manifest = json.loads(storage.read_text(storage.join(uri, "_manifest.json")))
    assert sum(file["rows"] for file in manifest["files"]) == sum(len(table) for table in tables)
    return pa.concat_tables(tables)


def assert_equal(row: dict[str, Any], expected: TaggedPost) -> None:
    """A row of the output says what the tagger says by itself, up to the rounding of another batch."""
    for entity, other in zip(row["entities"], expected.entities, strict=True):
        assert entity == asdict(other) | {"score": pytest.approx(other.score, abs=1e-5)}
    assert [region["type"] for region in row["regions"]] == [region.type for region in expected.regions]
    for region, other in zip(row["regions"], expected.regions, strict=True):
        box = [region[name] for name in ("x_min", "y_min", "x_max", "y_max")]
        assert box == pytest.approx(other.xyxy_px, rel=1e-4, abs=1e-2)
        assert region["score"] == pytest.approx(other.score, abs=1e-5)
    assert {pair["type"]: pair["score"] for pair in row["existence"]} == pytest.approx(
        dict(expected.existence), abs=1e-5
    )
    assert (row["image_width"], row["image_height"]) == (expected.image_width, expected.image_height)
    assert row["text_status"] == expected.text_status


@pytest.fixture(scope="module")
def tagger(tiny_model: Path) -> Tagger:
    return Tagger.load(tiny_model, device="cpu")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("place", ["local", "s3"])
def test_every_post_gets_its_row(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path, tagger: Tagger
) -> None:
    base = request.getfixturevalue("s3_bucket") if place == "s3" else str(tmp_path)
    archive, output = storage.join(base, "archive"), storage.join(base, "tags")
    rows = archive_rows()
    write_archive(archive, rows)
    write_pictures(storage.join(archive, "images"))
    model = str(tiny_model)
    if place == "s3":
        model = storage.join(base, "model")
        storage.upload_directory(tiny_model, model)
    columns = ColumnsConfig(pass_through=("row", "lang", "at", "tags", "text"))
    plan = plan_tagging(SMALL.model_copy(update={"columns": columns}), model, archive, output)
    manifest = tag_archive(plan)

    tags = read_tags(output)
    passed = [
        pa.field("row", pa.int64()),
        pa.field("lang", pa.string()),
        SCHEMA.field("at"),
        SCHEMA.field("tags"),
    ]
    assert tags.schema.remove_metadata() == tags_schema([*passed, pa.field("text", pa.string())])
    found = sorted(tags.to_pylist(), key=lambda row: row["row"])
    assert len(found) == len(rows)
    assert len(manifest["files"]) > 1
    pictures = list(PICTURES.values())
    for number, (row, out) in enumerate(zip(rows, found, strict=True)):
        for name in ("post_id", "row", "lang", "at", "tags", "text"):
            assert out[name] == row[name]
        if number < len(pictures):
            data, status, size = pictures[number]
        else:
            data, status, size = pictures[0] if row["image_uri"] else (None, "none", None)
        assert (out["image_status"], row["image_uri"]) == (status, row["image_uri"])
        assert (out["error"] is None) == (status in ("ok", "none")), out["error"]
        assert out["model_id"] == tagger.model_id == manifest["model_id"]
        usable = data if status == "ok" else None
        expected = tagger.tag([Post(row["post_id"], row["text"], usable)])[0]
        assert_equal(out, expected)
        assert size is None or (out["image_width"], out["image_height"]) == size
        for entity in out["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
    assert [out["text_status"] for out in found[len(pictures) :][: len(TEXTS)]] == [
        status for _, status in TEXTS
    ]
    assert sum(len(out["entities"]) for out in found) > 20
    assert sum(len(out["regions"]) for out in found) > 5
    statuses = [out["image_status"] for out in found]
    assert manifest["image_status"] == {status: statuses.count(status) for status in manifest["image_status"]}
    assert sum(manifest["image_status"].values()) == sum(manifest["text_status"].values()) == len(rows)
    assert manifest["rows_with_error"] == sum(out["error"] is not None for out in found)
    assert sum(manifest["entities"].values()) == sum(len(out["entities"]) for out in found)


class PoisonedTagger(Tagger):
    """Raises on every batch that has a post with the word poison."""

    def tag_prepared(self, posts: Sequence[PreparedPost]) -> list[TaggedPost]:
        if any("poison" in (post.text or "") for post in posts):
            raise ValueError("a kernel\nthat does not like poison")
        return super().tag_prepared(posts)


@pytest.mark.usefixtures("ray_cluster")
def test_archive_with_pictures_inside_and_poison(tmp_path: Path, tiny_model: Path, tagger: Tagger) -> None:
    schema = pa.schema([("id", pa.int64()), ("body", pa.large_string()), ("picture", pa.large_binary())])
    rows = [{"id": number, "body": post(number), "picture": encoded()} for number in range(40)]
    rows[3]["body"] = rows[20]["body"] = "poison in the city"
    rows[3]["picture"] = b""
    rows[5]["picture"] = None
    write_archive(str(tmp_path / "archive"), rows, schema)
    columns = ColumnsConfig(post_id="id", text="body", image="picture")
    config = SMALL.model_copy(update={"columns": columns, "actors": 2, "cpus_per_actor": 0.5})
    plan = plan_tagging(config, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    assert plan.archive.pictures == "bytes"
    manifest = tag_archive(plan, load_tagger=PoisonedTagger.load)
    found = {int(row["post_id"]): row for row in read_tags(str(tmp_path / "tags")).to_pylist()}
    reason = "the model raised ValueError: a kernel that does not like poison"
    for number, row in enumerate(rows):
        out = found[number]
        if number in (3, 20):
            assert (out["entities"], out["regions"], out["existence"]) == ([], [], [])
        else:
            assert_equal(out, tagger.tag([Post("", row["body"], row["picture"])])[0])
    assert (found[3]["image_status"], found[3]["error"]) == (
        "unreadable",
        f"the picture has no bytes; {reason}",
    )
    assert (found[20]["image_status"], found[20]["error"]) == ("ok", reason)
    assert (found[20]["image_width"], found[20]["image_height"]) == (90, 60)
    assert found[5]["image_status"] == "none"
    assert manifest["rows_with_error"] == 2


@pytest.mark.usefixtures("ray_cluster")
def test_lost_rows_are_no_success(tmp_path: Path, tiny_model: Path) -> None:
    write_archive(str(tmp_path / "archive"), [{"post_id": "1", "text": "the city"}])
    plan = plan_tagging(SMALL, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    plan = replace(plan, archive=replace(plan.archive, rows=2))
    with pytest.raises(RunError, match=r"holds 1 rows for the 2 posts.*not marked as finished"):
        tag_archive(plan)
    assert not (tmp_path / "tags" / "_SUCCESS").exists()
    assert not (tmp_path / "tags" / "_manifest.json").exists()


class OneAtATime:
    """Stands for a GPU whose memory holds one post: it has no room for a batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def tag_prepared(self, posts: Sequence[PreparedPost]) -> list[TaggedPost]:
        self.sizes.append(len(posts))
        if len(posts) > 1:
            import torch

            raise torch.OutOfMemoryError("no room")
        return [TaggedPost(post.post_id) for post in posts]


def test_out_of_memory_halves_the_batch() -> None:
    tagger = OneAtATime()
    posts = [PreparedPost(str(number), "x") for number in range(5)]
    tagged = tag_each(tagger, posts)  # type: ignore[arg-type]
    assert [one.post_id for one in tagged] == ["0", "1", "2", "3", "4"]
    assert tagger.sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    assert tag_each(tagger, []) == []  # type: ignore[arg-type]


def test_resources() -> None:
    small = plan_resources(TagConfig(), {"CPU": 2.0})
    assert (small.max_actors, small.cpus_per_actor, small.threads_per_actor, small.cpus_per_task) == (
        1,
        0.5,
        2,
        0.5,
    )
    big = plan_resources(TagConfig(), {"CPU": 64.0, "GPU": 4.0})
    assert (big.min_actors, big.max_actors, big.gpus_per_actor, big.cpus_per_actor) == (1, 4, 1.0, 1.0)
    shared = plan_resources(TagConfig(gpus_per_actor=0.25), {"CPU": 64.0, "GPU": 1.0})
    assert (shared.max_actors, shared.threads_per_actor) == (4, 1)
    with pytest.raises(ConfigError, match=r"the cluster has 4 CPUs, but 4 actor\(s\) with 1 each .* take 5"):
        plan_resources(TagConfig(actors=4), {"CPU": 4.0})
    with pytest.raises(ConfigError, match=r"the cluster has 0 GPUs, but 1 actor\(s\) take 1"):
        plan_resources(TagConfig(gpus_per_actor=1), {"CPU": 4.0})
    assert plan_resources(TagConfig(gpus_per_actor=1, autoscaling=True), {}).min_actors == 1
