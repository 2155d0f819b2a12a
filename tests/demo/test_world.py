"""The demo's world: what it holds, that importers read it as it is meant, and that a seed draws it anew."""

import hashlib
import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnerqg.config_jobs import ImageLimits
from mnerqg.datasets import flickr30k
from mnerqg.datasets.twitter import SplitSummary, parse_conll, read_split
from mnerqg.demo import world
from mnerqg.demo.texts import make_names
from mnerqg.errors import DataError
from mnerqg.inputs.images import decode
from mnerqg.inputs.picture_files import ImageProblem


def digest(directory: Path) -> str:
    """Of all text and pictures; posts.parquet is left out, since it holds absolute paths."""
    files = sorted(path for path in directory.rglob("*") if path.suffix in (".txt", ".xml", ".jpg"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "posts"
    world.write_world(output, seed=7)
    return output


@pytest.mark.parametrize(("split", "posts"), [("train", 480), ("valid", 96), ("test", 120)])
def test_the_release_layout_can_be_imported(demo: Path, split: str, posts: int) -> None:
    summary = SplitSummary()
    assert sum(1 for _ in read_split(demo, split, summary)) == posts
    assert summary.pictures_found == posts
    assert summary.boxes_unmatched == summary.boxes_clipped == summary.boxes_dropped == summary.stray_i == 0
    assert summary.size_mismatch == summary.boxes_ambiguous == 0
    assert min(summary.entities.values()) > posts / 8
    assert 0.55 < summary.posts_annotated / posts < 0.8
    assert 0.3 < summary.boxes_joined / sum(summary.entities.values()) < 0.6


def test_boxes_are_of_good_size_and_not_the_background(demo: Path) -> None:
    for post in read_split(demo, "valid"):
        assert post.image is not None
        pixels = decode(post.image, ImageLimits())
        shorter = min(pixels.shape[:2])
        for box in post.boxes:
            x_min, y_min, x_max, y_max = map(int, box.xyxy_px)
            assert 0.25 * shorter < max(x_max - x_min, y_max - y_min) < 0.8 * max(pixels.shape[:2])
            assert np.abs(pixels[y_min:y_max, x_min:x_max].mean((0, 1)) - pixels.mean((0, 1))).max() > 1


def test_some_names_are_held_out(demo: Path) -> None:
    names = {
        split: {
            (post.text[span.start : span.end].lower(), span.type)
            for post in parse_conll(demo / f"{split}.txt")
            for span in post.entities
        }
        for split in ("train", "test")
    }
    assert len(names["test"] - names["train"]) > len(names["test"]) / 3


def test_the_archive_holds_odd_posts(demo: Path) -> None:
    table = pq.read_table(demo / "archive" / "posts.parquet")
    assert table.schema.names == ["post_id", "text", "image_uri", "created_at", "lang"]
    rows = table.to_pylist()
    assert len({row["post_id"] for row in rows}) == len(rows) == 200
    found: dict[str, int] = {}
    modes = set()
    for row in rows:
        path = Path(row["image_uri"]) if row["image_uri"] is not None else None
        status = "none" if path is None else "missing" if not path.exists() else "ok"
        if path is not None and status == "ok":
            data = path.read_bytes()
            try:
                decode(data, ImageLimits())
                picture = Image.open(BytesIO(data))
                modes.add((picture.mode, picture.getexif().get(0x0112)))
            except ImageProblem as problem:
                status = problem.status
        found[status] = found.get(status, 0) + 1
    assert set(found) == {"ok", "none", "missing", "unreadable"}
    assert found["ok"] > 170
    assert {("CMYK", None), ("P", None), ("RGB", 6)} <= modes
    assert {"", None} <= {row["text"] for row in rows}


def test_the_texts_of_seed_7_are_those_that_measured_figures_hang_on(demo: Path) -> None:
    """Of the texts and boxes alone: another version of Pillow may write other bytes of the same picture."""
    files = [*sorted(demo.glob("*.txt")), *sorted((demo / "xml").iterdir())]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert found == "a14786bf3478fb206fe33f1719019274048a55d15ecaaa90106f420abc26d6da"


def test_the_same_seed_writes_the_same_and_replaces_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "SPLIT_POSTS", {"train": 6, "valid": 2, "test": 2})
    monkeypatch.setattr(world, "ARCHIVE_POSTS", 20)
    digests = {}
    for name, seed in (("a", 7), ("b", 8), ("b", 7)):
        world.write_world(tmp_path / name, seed)
        digests[name, seed] = digest(tmp_path / name)
        (tmp_path / name / "demo_images" / "stale.jpg").write_bytes(b"")
    assert digests["a", 7] == digests["b", 7] != digests["b", 8]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that no earlier demo wrote; give --output an empty"):
        world.write_world(tmp_path, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_phrases_in_the_layout_of_flickr30k_entities(tmp_path: Path) -> None:
    names, _ = make_names(random.Random(1))
    world.write_phrases(random.Random(1), tmp_path / "phrases", names, 24)
    summaries = {split: flickr30k.SplitSummary() for split in ("train", "valid")}
    posts = {
        split: list(flickr30k.read_split(tmp_path / "phrases", split, summary))
        for split, summary in summaries.items()
    }
    assert {split: len(found) for split, found in posts.items()} == {"train": 21, "valid": 3}
    for summary in summaries.values():
        assert summary.mentions["boxed"] == sum(summary.mentions.values()) > 0
        assert (summary.unknown_entities, summary.boxes_dropped, summary.boxes_clipped) == ([], 0, 0)
        assert summary.pictures_found == summary.posts
    for post in posts["train"]:
        assert post.phrases
        assert [box.type for box in post.boxes] == [phrase.id for phrase in post.phrases]
