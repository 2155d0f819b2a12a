import hashlib
import importlib.util
import random
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnerqg.config import ImageLimits
from mnerqg.datasets import flickr30k
from mnerqg.datasets.twitter import SplitSummary, parse_conll, read_split
from mnerqg.inputs.images import ImageProblem, decode

JOB = Path(__file__).resolve().parents[2] / "jobs" / "demo_posts.py"


def write(output: Path, seed: int = 7) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), "--output", str(output), "--seed", str(seed)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load_job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_posts", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def digest(directory: Path) -> str:
    """Of all text and pictures; posts.parquet is left out, since it holds absolute paths."""
    files = sorted(path for path in directory.rglob("*") if path.suffix in (".txt", ".xml", ".jpg"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "posts"
    done = write(output)
    assert done.returncode == 0, done.stderr
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


def test_the_same_seed_writes_the_same_and_replaces_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_job()
    monkeypatch.setattr(job, "SPLIT_POSTS", {"train": 6, "valid": 2, "test": 2})
    monkeypatch.setattr(job, "ARCHIVE_POSTS", 20)
    digests = {}
    for name, seed in (("a", 7), ("b", 8), ("b", 7)):
        job.write_demo(tmp_path / name, seed)
        digests[name, seed] = digest(tmp_path / name)
        (tmp_path / name / "demo_images" / "stale.jpg").write_bytes(b"")
    assert digests["a", 7] == digests["b", 7] != digests["b", 8]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = write(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: holds files")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_phrases_in_the_layout_of_flickr30k_entities(tmp_path: Path) -> None:
    job = load_job()
    names, _ = job.make_names(random.Random(1))
    job.write_phrases(random.Random(1), tmp_path / "phrases", names, 24)
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
