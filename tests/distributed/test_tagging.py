import datetime
import gzip
import io
import json
import os
import pydoc
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import torch

from mnerqg.archive import reading
from mnerqg.config_jobs import ColumnsConfig, PicturesConfig, TagConfig
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import plan_tagging
from mnerqg.distributed.tagging_resources import plan_resources
from mnerqg.distributed.tagging_stages import load
from mnerqg.errors import ConfigError, DataError, ModelError, RunError, StorageError
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.sentences import Sentences
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE, locked
from mnerqg.model.files import publish_model
from mnerqg.model.finder import Finder
from mnerqg.model.found import Found
from mnerqg.schema import Post, TaggedPost, tags_schema
from mnerqg.tagger import Tagger
from tests.archives import MAX_BYTES, PICTURES, TEXTS, assert_same_rows, encoded, photo, read_tags
from tests.cheap_tagger import CheapFinder, CheapTagger
from tests.servers import ScriptedServer
from tests.stages import Stages, texts_table

WORDS = ["the", "city", "of", "Lisbon", "and", "Ada", "Lovelace", "in", "an", "Organization", "Names"]
DAY = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


SMALL = TagConfig(
    batch_posts=8,
    min_rows_per_file=1,
    max_rows_per_file=25,
    max_failed=1.0,
    pictures=PicturesConfig(max_bytes=MAX_BYTES, attempts=1),
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


def read_finished(uri: str) -> pa.Table:
    """All rows of a run, after a look at what lies there."""
    assert storage.exists(storage.join(uri, "_SUCCESS"))
    manifest = json.loads(storage.read_text(storage.join(uri, "_manifest.json")))
    tags = read_tags(uri)
    assert sum(file["rows"] for file in manifest["files"]) == manifest["rows"] == len(tags)
    return tags


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
    assert (row["text_status"], row["text_read"]) == (expected.text_status, expected.text_read)


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
        publish_model(tiny_model, model)
    columns = ColumnsConfig(pass_through=("row", "lang", "at", "tags", "text"))
    plan = plan_tagging(SMALL.model_copy(update={"columns": columns}), model, archive, output)
    manifest = tag_archive(plan)

    tags = read_finished(output)
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
    assert sum(len(out["entities"]) for out in found) > 10
    assert sum(len(out["regions"]) for out in found) > 5
    statuses = [out["image_status"] for out in found]
    assert manifest["image_status"] == {status: statuses.count(status) for status in manifest["image_status"]}
    assert sum(manifest["image_status"].values()) == sum(manifest["text_status"].values()) == len(rows)
    assert manifest["rows_with_error"] == sum(out["error"] is not None for out in found)
    assert sum(manifest["entities"].values()) == sum(len(out["entities"]) for out in found)


POISON = "poison"


class PoisonedFinder(Finder):
    """Raises on every batch that has a post with the pieces of the word poison."""

    poison: bytes

    def answer(self, batch: Batch, sentences: Sentences) -> Found:
        posts = (sentences.pieces(np.array([post]))[2] for post in range(len(sentences)))
        if any(self.poison in sentences.ids[places].astype(np.int64).tobytes() for places in posts):
            raise ValueError("a kernel\nthat does not like poison")
        return super().answer(batch, sentences)


def load_poisoned(uri: str, device: str | None = None) -> Tagger:
    tagger = Tagger.load(uri, device)
    tagger.finder.__class__ = PoisonedFinder
    tagger.finder.poison = np.asarray(tagger.text_encoder.encode(POISON).token_ids, np.int64).tobytes()  # type: ignore[attr-defined]
    return tagger


@pytest.mark.usefixtures("ray_cluster")
def test_archive_with_pictures_inside_and_poison(tmp_path: Path, tiny_model: Path, tagger: Tagger) -> None:
    schema = pa.schema([("id", pa.int64()), ("body", pa.large_string()), ("picture", pa.large_binary())])
    rows = [{"id": number, "body": post(number), "picture": encoded()} for number in range(40)]
    rows[3]["body"] = rows[20]["body"] = f"{POISON} in the city"
    rows[3]["picture"] = b""
    rows[5]["picture"] = None
    write_archive(str(tmp_path / "archive"), rows, schema)
    columns = ColumnsConfig(post_id="id", text="body", image="picture")
    config = SMALL.model_copy(update={"columns": columns, "actors": 2, "cpus_per_actor": 0.5})
    plan = plan_tagging(config, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    assert plan.archive.pictures == "bytes"
    manifest = tag_archive(plan, load_tagger=load_poisoned)
    found = {int(row["post_id"]): row for row in read_finished(str(tmp_path / "tags")).to_pylist()}
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
    with pytest.raises(RunError, match=r"holds 1 rows \(0 of them double\) for the 2 posts.*not marked"):
        tag_archive(plan, load_tagger=CheapTagger.load)  # type: ignore[arg-type]
    assert not (tmp_path / "tags" / "_SUCCESS").exists()
    assert not (tmp_path / "tags" / "_manifest.json").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_other_queries_than_the_models_own(tmp_path: Path, tiny_model: Path) -> None:
    archive, output = str(tmp_path / "archive"), str(tmp_path / "tags")
    texts = [post(number) for number in range(11)] + ["Ada met Linus in the city. " * 90]
    write_archive(archive, [{"post_id": str(number), "text": text} for number, text in enumerate(texts)])
    queries = tmp_path / "queries.yaml"
    queries.write_text("- {type: Product, query: a product}\n- {type: Event, query: an event}\n")
    # And of a long text all is read, in windows.
    config = SMALL.model_copy(update={"queries": str(queries), "long_texts": "windows"})
    plan = plan_tagging(config, str(tiny_model), archive, output)
    manifest = tag_archive(plan)
    tags = read_tags(output)
    assert [[one["type"] for one in row] for row in tags["existence"].to_pylist()] == [
        ["Product", "Event"]
    ] * 12
    read = dict(zip(tags["post_id"].to_pylist(), tags["text_read"].to_pylist(), strict=True))
    assert read == {str(number): len(text) for number, text in enumerate(texts)}
    (long,) = (row["entities"] for row in tags.to_pylist() if row["post_id"] == "11")
    assert max(entity["end"] for entity in long) > 1000
    assert all(texts[11][one["start"] : one["end"]] == one["text"] for one in long)
    assert set(tags["model_id"].to_pylist()) == {plan.model_id} == {manifest["model_id"]}
    assert set(manifest["entities"]) == {"Product", "Event"}
    with pytest.raises(StorageError, match=r"holds another tagging run \(model_id: \S+ there, \S+ now\)"):
        plan_tagging(SMALL, str(tiny_model), archive, output)
    for changes in ({"long_texts": "truncate"}, {"max_windows": 2}):
        with pytest.raises(StorageError, match=r"\(long_texts: up to 64 windows there, .* now\)"):
            plan_tagging(config.model_copy(update=changes), str(tiny_model), archive, output)


def test_queries_that_cannot_be_asked(tmp_path: Path, tiny_model: Path) -> None:
    archive = str(tmp_path / "archive")
    write_archive(archive, [{"post_id": "1", "text": "the city"}])
    long = tmp_path / "long.yaml"
    long.write_text(f"- {{type: Product, query: {'a product ' * 40}}}\n")
    config = SMALL.model_copy(update={"queries": str(long)})
    with pytest.raises(ModelError, match="longest query leaves"):
        plan_tagging(config, str(tiny_model), archive, str(tmp_path / "tags"))
    with pytest.raises(ConfigError, match="give a query style"):
        plan_tagging(
            SMALL.model_copy(update={"queries": "no such"}), str(tiny_model), archive, str(tmp_path / "tags")
        )


def cheap(config: TagConfig, model: Path, archive: str, output: str, **options: Any) -> dict[str, Any]:
    """A run with the cheap model."""
    plan = plan_tagging(config, str(model), archive, output, **options)
    return tag_archive(plan, load_tagger=CheapTagger.load)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_cluster")
def test_json_lines_with_several_pictures_in_folders(tmp_path: Path, tiny_model: Path) -> None:
    """The same posts as JSON Lines and as Parquet give the same tags; every picture gives its regions."""
    pictures = [f"images/{number}.jpg" for number in range(6)]
    for number, name in enumerate(pictures):
        storage.write_bytes(str(tmp_path / name), photo(number, (80 + 16 * number, 64)))
    posts: list[dict[str, Any]] = [
        {
            "post_id": str(number),
            "text": post(number),
            "image_uris": [*pictures[: number % 5], *(["images/gone.jpg"] if number % 4 == 3 else [])],
            "lang": ["en", "pt", None][number % 3],
            "likes": number,
        }
        for number in range(60)
    ]
    posts[7]["image_uris"] = None
    posts[8]["image_uris"] = [None, pictures[0], *pictures * 3]
    lines = [json.dumps(one).encode() for one in posts]
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl" / "a.jsonl").write_bytes(b"\n".join([*lines[:30], b'{"post_id": "bad', b""]))
    (tmp_path / "jsonl" / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[30:])))
    (tmp_path / "parquet").mkdir()
    schema = pa.schema(
        [
            ("post_id", pa.string()),
            ("text", pa.string()),
            ("image_uris", pa.list_(pa.string())),
            ("lang", pa.string()),
            ("likes", pa.int64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(posts, schema=schema), tmp_path / "parquet" / "a.parquet")
    config = SMALL.model_copy(
        update={
            "columns": ColumnsConfig(pass_through=("lang", "likes"), partition_by=("lang",)),
            "pictures": PicturesConfig(roots=(str(tmp_path),), max_per_post=16, attempts=1),
        }
    )
    typed = config.columns.model_copy(update={"types": {"likes": "int64"}})  # what Parquet says itself
    of_lines = config.model_copy(update={"columns": typed})
    manifest = cheap(of_lines, tiny_model, str(tmp_path / "jsonl" / "*"), str(tmp_path / "tags"))
    cheap(config, tiny_model, str(tmp_path / "parquet"), str(tmp_path / "tags2"))

    folders = {path.name for path in (tmp_path / "tags" / "tags").iterdir()}
    assert folders == {"lang=en", "lang=pt", "lang=__HIVE_DEFAULT_PARTITION__"}
    tags, others = (pa.table(pads.dataset(tmp_path / name / "tags", format="parquet", partitioning="hive").to_table())
                    for name in ("tags", "tags2"))  # fmt: skip
    (bad,) = tags.filter(pc.is_null(tags["post_id"])).to_pylist()
    assert bad["error"].startswith("line 31 is not valid JSON")
    assert (bad["text_status"], bad["image_status"], bad["images"], bad["lang"]) == (
        "empty",
        "none",
        [],
        None,
    )
    tags = tags.filter(pc.is_valid(tags["post_id"])).drop_columns(["row_hash"])
    order = [("likes", "ascending")]
    assert tags.sort_by(order).to_pylist() == others.drop_columns(["row_hash"]).sort_by(order).to_pylist()
    rows = tags.sort_by(order).to_pylist()
    for row, one in zip(rows, posts, strict=True):
        uris = one["image_uris"] or []
        assert (row["lang"], row["likes"], len(row["images"])) == (one["lang"], one["likes"], len(uris))
        for region in row["regions"]:
            picture = row["images"][region["image_index"]]
            assert picture["status"] == "ok"
            assert region["x_max"] <= picture["width"]
        for entity in row["entities"]:
            if entity["region"] is not None:
                assert row["regions"][entity["region"]]["type"] == entity["type"]
    assert {region["image_index"] for row in rows for region in row["regions"]} >= {0, 1, 2, 3}
    statuses = [picture["status"] for picture in rows[8]["images"]]
    assert statuses == ["none", *["ok"] * 15, *["too_large"] * 4]
    assert rows[8]["image_width"] == 80
    assert "picture 16: only 16 pictures of a post are read" in rows[8]["error"]
    assert manifest["reasons"]["No such file or directory"] == 14
    assert manifest["image_status"]["missing"] == 14


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_failures_and_their_retry(tmp_path: Path, tiny_model: Path, server: ScriptedServer) -> None:
    """A store that is away: the run fails, with the reasons; when it is back, only those rows are tagged again."""
    picture = photo(1, (90, 60))
    storage.write_bytes(str(tmp_path / "archive" / "here.jpg"), picture)
    rows = [
        {
            "post_id": str(number),
            "text": post(number),
            "image_uri": "here.jpg" if number % 3 else f"{server.url}/{number}",
        }
        for number in range(40)
    ]
    rows[1]["image_uri"] = str(tmp_path / "archive" / "gone.jpg")  # below one root only
    write_archive(str(tmp_path / "archive"), rows)
    pictures = PicturesConfig(
        roots=(str(tmp_path / "archive"), server.url), schemes=("file", "http"), attempts=1
    )
    config = SMALL.model_copy(update={"pictures": pictures, "max_failed": 0.2})
    archive, first, second = (str(tmp_path / name) for name in ("archive", "first", "second"))
    server.script = [(503, {}, b"")]
    words = r"15 of 40 pictures failed \(37\.5%.*\): 14 x 503 after N attempts, 1 x No such file"
    with pytest.raises(RunError, match=words):
        cheap(config, tiny_model, archive, first)
    before = read_tags(first)
    assert before["retryable"].to_pylist().count(True) == 14
    assert not storage.exists(f"{first}/_SUCCESS")
    with pytest.raises(RunError, match=r"37\.5%"):  # the same again is as bad, and tags nothing
        cheap(config, tiny_model, archive, first)
    assert len(server.requests) == 14
    assert cheap(config.model_copy(update={"max_failed": 0.5}), tiny_model, archive, first)["rows"] == 40

    server.script = [(200, {}, picture)]
    manifest = cheap(config, tiny_model, archive, second, retry_failed=first)
    assert (manifest["rows"], manifest["rows_this_time"], manifest["retry_of"]) == (40, 14, first)
    assert manifest["image_status"] == dict.fromkeys(manifest["image_status"], 0) | {"ok": 39, "missing": 1}
    after = read_finished(second)
    kept = pc.invert(before["retryable"])
    assert_same_rows(
        before.filter(kept),
        after.filter(pc.is_in(after["row_hash"], before.filter(kept)["row_hash"])),
    )
    assert len(server.requests) == 28
    assert_same_rows(before, read_tags(first))  # the first run stays as it was
    with pytest.raises(DataError, match="no rows that failed for a passing reason"):
        plan_tagging(config, str(tiny_model), archive, str(tmp_path / "third"), retry_failed=second)


@pytest.mark.usefixtures("ray_cluster")
def test_a_plan_does_not_depend_on_where_posts_are_counted(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run goes on with what it has, though its archive is looked at in another way."""
    (tmp_path / "archive").mkdir()
    lines = [json.dumps({"post_id": number, "text": post(number), "likes": number}) for number in range(40)]
    (tmp_path / "archive" / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "archive" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, "{"]).encode()))
    config = SMALL.model_copy(update={"columns": ColumnsConfig(pass_through=("likes",))})
    arguments = (config, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    small = plan_tagging(*arguments)
    monkeypatch.setattr(reading, "_READ_HERE_BYTES", 0)
    assert plan_tagging(*arguments) == small
    assert small.archive.rows == 81


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_what_is_lost_is_tagged_again(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """A run that stopped before its end, with one of its files lost on the way and one torn."""
    rows = [{"post_id": str(number), "text": post(number), "image_uri": "gone.jpg"} for number in range(120)]
    (tmp_path / "archive").mkdir()
    if kind == "jsonl":
        (tmp_path / "archive" / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    else:
        write_archive(str(tmp_path / "archive"), rows)
    archive, output = str(tmp_path / "archive"), tmp_path / "tags"
    config = SMALL.model_copy(update={"min_rows_per_file": 10, "max_failed": 0.5})
    with pytest.raises(RunError, match=r"120 of 120 pictures failed \(100\.0%"):
        cheap(config, tiny_model, archive, str(output))
    before = read_tags(str(output))
    files = sorted((output / "tags").glob("*.parquet"))
    lost = pq.read_metadata(files[1]).num_rows + pq.read_metadata(files[2]).num_rows
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-9])
    manifest = cheap(SMALL, tiny_model, archive, str(output))
    assert 0 < manifest["rows_this_time"] == lost < 120
    assert manifest["run_id"] == json.loads((output / "_run.json").read_text())["run_id"]
    assert_same_rows(before, read_finished(str(output)))
    kept = {path.name for path in files if path not in (files[1], files[2])}
    assert kept < {path.name for path in (output / "tags").glob("*.parquet")}


class DiesOnce(pyarrow.fs.FSSpecHandler):  # type: ignore[misc]
    """A local file system on which the first task to begin a second file dies, as when its node runs out of memory."""

    def __init__(self, died: Path) -> None:
        super().__init__(fsspec.filesystem("file"))
        self._died = died

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return DiesOnce, (self._died,)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if path.endswith("-1.parquet") and not self._died.exists():
            self._died.touch()
            os._exit(1)
        return super().open_output_stream(path, metadata)


@pytest.mark.usefixtures("ray_cluster")
def test_a_write_that_is_killed_between_two_files_is_tried_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"post_id": str(number), "text": post(number)} for number in range(120)]
    write_archive(str(tmp_path / "archive"), rows)
    output, died = str(tmp_path / "tags"), tmp_path / "died"
    usual = storage.filesystem

    def dying(uri: str) -> tuple[Any, str]:
        filesystem, path = usual(uri)
        return (pyarrow.fs.PyFileSystem(DiesOnce(died)) if uri == f"{output}/tags" else filesystem), path

    monkeypatch.setattr(storage, "filesystem", dying)
    config = SMALL.model_copy(update={"min_rows_per_file": 10, "max_rows_per_file": 10})
    manifest = cheap(config, tiny_model, str(tmp_path / "archive"), output)
    assert died.exists()
    assert (manifest["rows"], manifest["rows_this_time"]) == (120, 120)
    tags = read_finished(output)
    assert sorted(tags["post_id"].to_pylist()) == sorted(row["post_id"] for row in rows)
    # The second try has replaced what the first one left: nothing was double.
    assert len({file["name"].partition("_")[0] for file in manifest["files"]}) == 1


def load_late(late: Path, target: Path, uri: str) -> CheapTagger:
    """Comes with a file of a worker that had outlived its driver until then: the first look has not found it."""
    shutil.copyfile(late, target)
    return CheapTagger.load(uri)


@pytest.mark.usefixtures("ray_cluster")
def test_a_file_that_comes_late_is_put_right_in_the_same_run(tmp_path: Path, tiny_model: Path) -> None:
    """Of the files with rows in common all but one go; their other rows are tagged in a second pass."""
    rows = [{"post_id": str(number), "text": post(number)} for number in range(120)]
    write_archive(str(tmp_path / "archive"), rows)
    config = SMALL.model_copy(update={"min_rows_per_file": 20})
    cheap(config, tiny_model, str(tmp_path / "archive"), str(tmp_path / "before"))
    expected = read_tags(str(tmp_path / "before"))
    late = tmp_path / "late.parquet"
    pq.write_table(expected.take(list(range(0, 120, 40))), late)
    plan = plan_tagging(config, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    load = partial(load_late, late, tmp_path / "tags" / "tags" / "0-late.parquet")
    manifest = tag_archive(plan, load_tagger=load)  # type: ignore[arg-type]
    assert manifest["rows"] == 120 < manifest["rows_this_time"] <= 240
    assert "tags/0-late.parquet" in {file["name"] for file in manifest["files"]}
    assert_same_rows(expected, read_finished(str(tmp_path / "tags")))


@pytest.mark.usefixtures("ray_cluster")
def test_one_run_at_a_time(tmp_path: Path, tiny_model: Path) -> None:
    write_archive(str(tmp_path / "archive"), [{"post_id": "1", "text": "the city"}])
    output = str(tmp_path / "tags")
    with (
        locked(output, print),
        pytest.raises(RunError, match=r"another job, on .* is writing into"),
    ):
        cheap(SMALL, tiny_model, str(tmp_path / "archive"), output)
    assert [path.name for path in Path(output).iterdir()] == [LOCK_FILE]
    plan = plan_tagging(SMALL, str(tiny_model), str(tmp_path / "archive"), output)
    manifest = cheap(SMALL, tiny_model, str(tmp_path / "archive"), output)
    assert tag_archive(plan) == manifest  # finished by another job since it was planned


class OneAtATime(CheapFinder):
    """Stands for a GPU whose memory holds one post: it has no room for a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def answer(self, batch: Any, sentences: Sentences) -> Found:
        self.sizes.append(len(sentences))
        if len(sentences) > 1:
            raise torch.OutOfMemoryError("no room")
        return super().answer(batch, sentences)


def test_out_of_memory_halves_the_batch(tiny_model: Path) -> None:
    tagger = CheapTagger()
    texts = texts_table([f"{'ab ' * number}" for number in range(5)])
    expected = Stages(tiny_model, tagger)(texts)
    tagger.finder = finder = OneAtATime()
    stages = Stages(tiny_model, tagger, batch_posts=5)
    assert stages(texts) == expected
    assert finder.sizes == [1, 5, 2, 1, 1, 3, 1, 2, 1, 1]  # the first to warm up
    assert stages(texts.slice(0, 0)) == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_lanes_find_what_one_batch_after_the_other_finds(tiny_model: Path, device: str) -> None:
    """With a post that costs no other one its row in either."""
    tagger = load_poisoned(str(tiny_model), device)
    assert tagger.finder.lanes == {"cpu": 1, "cuda": 2}[device]
    tagger.finder.lanes = 1
    texts = texts_table([post(number) for number in range(20)] + [POISON, "", "Ada"])
    one_lane = Stages(tiny_model, tagger, batch_posts=4)
    expected = one_lane(texts)
    tagger.finder.lanes = 3
    lanes = Stages(tiny_model, tagger, batch_posts=4)
    assert lanes(texts) == expected
    assert [row["post_id"] for row in expected if row["error"]] == ["20"]
    for stages in (one_lane, lanes):
        assert 0 < stages.reports[-1].busy_s <= stages.reports[-1].ready_s


def test_calls_at_once_find_what_one_after_the_other_finds_and_are_counted_once(tiny_model: Path) -> None:
    """Ray has two calls of an actor at once, whose batches go through the same lanes."""
    tables = [texts_table([post(number) for number in range(start, start + 9)]) for start in range(0, 72, 9)]
    tagger = CheapTagger()
    expected = [Stages(tiny_model, tagger, batch_posts=4)(table) for table in tables]
    tagger.finder.lanes = 2
    stages = Stages(tiny_model, tagger, batch_posts=4)
    with ThreadPoolExecutor(2) as calls:
        assert list(calls.map(stages, tables)) == expected
    assert [report.posts for report in stages.reports] == [9 * (call + 1) for call in range(len(tables))]


def test_the_tagger_of_an_actor_has_a_lane_for_each_core(tiny_model: Path) -> None:
    settings = Stages(tiny_model, CheapTagger()).actor.settings
    threads = torch.get_num_threads()
    try:
        assert load(replace(settings, threads=3)).finder.lanes == 3
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_model_that_cannot_answer_is_found_out_before_the_archive_is_read(tiny_model: Path) -> None:
    tagger = load_poisoned(str(tiny_model))
    tagger.finder.poison = b""  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="does not like poison"):
        Stages(tiny_model, tagger)


@pytest.mark.parametrize(
    "where", ["mnerqg.inputs.text.TextEncoder.windows", "mnerqg.model.decode.Decoder.resolve"]
)
def test_whatever_raises_about_a_post_costs_no_other_row(
    where: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(tiny_model, CheapTagger())
    texts = texts_table([post(number) for number in range(9)])
    expected = stages(texts)
    module, name = where.rsplit(".", 1)
    usual = getattr(pydoc.locate(module), name)
    bad = expected[4]["entities"][0]["text"] if name == "resolve" else texts["text"][4].as_py()

    def raising(self: object, given: Any, *rest: Any) -> Any:
        given = given if isinstance(given, str) else list(given)
        if given == bad or any(getattr(one, "text", None) == bad for one in given):
            raise IndexError("a fault of ours")
        return usual(self, given, *rest)

    monkeypatch.setattr(where, raising)
    found = stages(texts)
    raised = [number for number, row in enumerate(found) if row["error"]]
    assert 4 in raised
    assert len(raised) < 9
    for number, (row, before) in enumerate(zip(found, expected, strict=True)):
        if number in raised:
            assert row["error"] == "the model raised IndexError: a fault of ours"
            assert (row["post_id"], row["entities"], row["row_hash"]) == (str(number), [], number)
        else:
            assert row == before


def test_rows_with_an_error_are_counted_as_they_pass_the_model(tiny_model: Path) -> None:
    """A text that is no UTF-8, a picture that is none, and what the model raises."""
    tagger = Tagger.load(tiny_model, device="cpu")
    poisoned = load_poisoned(str(tiny_model))
    table = pa.table(
        {
            "post_id": ["1", "2", "3", "4"],
            "text": pa.array([b"Ada", b"\xff", POISON.encode(), b"Ada"]).view(pa.string()),
            "image": pa.array([b"", None, None, photo(0, (80, 60))], pa.binary()),
        }
    )
    for one, failed in ((tagger, 2), (poisoned, 3)):
        stages = Stages(tiny_model, one)
        rows = stages(table)
        assert sum(row["error"] is not None for row in rows) == failed
        report = stages.reports[-1]
        assert (report.posts, report.failed) == (4, failed)
        assert 0 < report.busy_s <= report.ready_s


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
    growing = plan_resources(TagConfig(gpus_per_actor=1, autoscaling=True, actors=(1, 8)), {})
    assert (growing.min_actors, growing.max_actors, growing.cpus_per_actor) == (1, 8, 1.0)
    assert (growing.small, growing.cpus_per_task) == (False, 1.0)  # not as on the machine that it is at first
    store = {"CPU": 4.0, "object_store_memory": 64 * 2.0**20}
    assert plan_resources(TagConfig(), store).block_bytes == 2 * 2**20
    assert plan_resources(TagConfig(), {"CPU": 4.0, "object_store_memory": 2.0**34}).block_bytes == 2**25
    with pytest.raises(ConfigError, match="object store holds 64 MiB, but four blocks of 32 MiB must fit"):
        plan_resources(TagConfig(block_bytes=2**25), store)


def test_the_tasks_and_the_driver_do_without_torch(tiny_model: Path) -> None:
    """Each of many processes would pay for it with seconds and hundreds of megabytes."""
    code = (
        "import sys\n"
        "import mnerqg.distributed.tagging, mnerqg.distributed.tagging_plan\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "from mnerqg.model.files import check_model\n"
        "check_model(sys.argv[1]).text_encoder.make().windows('Ada', 1)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_model)], check=True)
