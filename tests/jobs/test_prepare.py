import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import call

JOB = Path(__file__).resolve().parents[2] / "jobs" / "prepare.py"


def prepare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return call("prepare", *arguments)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    release = tmp_path / "release"
    (release / "t_images").mkdir(parents=True)
    (release / "xml").mkdir()
    blocks = [f"IMGID:{number}\nAda\tB-PER\nsmiles\tO\n" for number in range(30)]
    (release / "train.txt").write_text("\n".join(blocks))
    objects = (
        "<object><name>{}</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    for number in range(30):
        buffer = BytesIO()
        Image.new("RGB", (20, 20)).save(buffer, "JPEG")
        (release / "t_images" / f"{number}.jpg").write_bytes(buffer.getvalue())
        name = "Ada" if number < 5 else f"Nobody {number}"
        (release / "xml" / f"{number}.xml").write_text(f"<annotation>{objects.format(name)}</annotation>")
    return release


def test_prints_and_stores_the_summary(root: Path, tmp_path: Path) -> None:
    done = prepare("twitter", "--root", root, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    figures = {tuple(line.rsplit(maxsplit=1)) for line in done.stdout.splitlines() if line}
    assert {("posts", "30"), ("entities", "30"), ("pictures found", "30"), ("boxes joined", "5")} <= figures
    assert "not in the release: valid, test" in done.stdout
    assert "  5.xml:1: Nobody 5\n" in done.stdout
    assert "  … and 5 more in summary.json" in done.stdout
    assert "boxes dropped (1)" not in done.stdout
    assert "XML files of no post" not in done.stdout
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())["splits"]["train"]
    assert len(stored["unmatched_names"]) == stored["boxes_unmatched"] == 25


def test_names_dropped_boxes_and_xml_files_of_no_post(root: Path, tmp_path: Path) -> None:
    path = root / "xml" / "0.xml"
    path.write_text(path.read_text().replace("<xmin>1<", "<xmin>12<"))
    (root / "xml" / "99.xml").write_text("<broken")
    done = prepare("twitter", "--root", root, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "train: boxes dropped (1):\n  0.xml:1: inverted: xmin 12 is above xmax 9\n" in done.stdout
    assert "XML files of no post of the splits, not read (1):\n  99.xml\n" in done.stdout


def test_bad_input_is_one_line_and_exit_2(root: Path, tmp_path: Path) -> None:
    (root / "valid.txt").write_text("IMGID:1\nAda\tB-NAME\n")
    done = prepare("twitter", "--root", root, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {root / 'valid.txt'}:2: unknown tag 'B-NAME'; "
        "use O, or B- or I- with PER, LOC, ORG, OTHER or MISC\n"
    )
    assert not (tmp_path / "out").exists()


def test_only_the_named_splits(root: Path, tmp_path: Path) -> None:
    done = prepare("twitter", "--root", root, "--output", tmp_path / "out", "--splits", "train, valid")
    assert done.returncode == 2
    assert "valid.txt: missing" in done.stderr
    done = prepare("twitter", "--root", root, "--output", tmp_path / "out", "--splits", "train")
    assert done.returncode == 0, done.stderr
    again = prepare("twitter", "--root", root, "--output", tmp_path / "out")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert prepare("twitter", "--root", root, "--output", tmp_path / "out", "--overwrite").returncode == 0


def test_usage_errors_exit_2() -> None:
    assert prepare("twitter").returncode == 2
    command = [sys.executable, str(JOB), "facebook", "--root", "x", "--output", "y"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


# ---- flickr30k ------------------------------------------------------------------------------------------


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    """Two pictures of Flickr30K Entities; the XML lacks entity 8, and the second picture is missing."""
    release = tmp_path / "entities"
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (release / name).mkdir(parents=True)
    (release / "val.txt").write_text("100\n200\n")
    for number in ("100", "200"):
        (release / "Sentences" / f"{number}.txt").write_text(
            "[/EN#7/people A man] and [/EN#8/other a dog] behind [/EN#0/notvisual it] .\n[/EN#7/people The guy] .\n"
        )
        (release / "Annotations" / f"{number}.xml").write_text(
            "<annotation><size><width>20</width><height>20</height></size><object><name>7</name>"
            "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    buffer = BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG")
    (release / "flickr30k-images" / "100.jpg").write_bytes(buffer.getvalue())
    return release


def test_flickr30k_prints_and_stores_the_summary(entities: Path, tmp_path: Path) -> None:
    done = prepare("flickr30k", "--root", entities, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    figures = {tuple(line.strip().rsplit(maxsplit=1)) for line in done.stdout.splitlines() if line}
    assert {
        ("pictures (one a row)", "2"),
        ("marked phrases", "8"),
        ("with a box", "4"),
        ("left out: not visual", "2"),
        ("left out: unknown to the XML", "2"),
        ("phrases (distinct, with a box)", "4"),
        ("pictures missing", "1"),
    } <= figures
    assert "not in the release: train, test" in done.stdout
    assert "valid: entities of the captions that the XML lacks (2):\n  100.xml: 8 'a dog'\n" in done.stdout
    assert "valid: pictures not read (1):\n  200: no such picture\n" in done.stdout
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert stored["splits"]["valid"]["mentions"]["unknown"] == 2
    assert (tmp_path / "out" / "valid" / "part-00000.parquet").is_file()


def test_flickr30k_names_dropped_boxes(entities: Path, tmp_path: Path) -> None:
    path = entities / "Annotations" / "100.xml"
    path.write_text(
        path.read_text().replace("<xmin>1</xmin>", "<xmin>30</xmin>").replace(">9</xmax>", ">35</xmax>")
    )
    done = prepare("flickr30k", "--root", entities, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (
        "valid: boxes dropped (1):\n  100.xml:1: outside the picture of 20 x 20 pixels: 30, 1, 35, 9\n"
        in done.stdout
    )
    figures = {tuple(line.strip().rsplit(maxsplit=1)) for line in done.stdout.splitlines() if line}
    assert {("left out: box dropped", "2"), ("dropped (inverted, empty or outside)", "1")} <= figures


def test_flickr30k_bad_input_is_one_line_and_exit_2(entities: Path, tmp_path: Path) -> None:
    path = entities / "Sentences" / "200.txt"
    path.write_text("fine .\n[/EN#7 A man] .\n")
    done = prepare("flickr30k", "--root", entities, "--output", tmp_path / "out", "--splits", "valid")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {path}:2: '[/EN#7 A man]' lacks a type; write /<type> after the entity id\n"
    )
    assert not (tmp_path / "out").exists()
    done = prepare("flickr30k", "--root", entities, "--output", tmp_path / "out", "--splits", "train")
    assert (done.returncode, "train.txt: missing" in done.stderr) == (2, True)
