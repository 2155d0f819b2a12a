import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

JOB = Path(__file__).resolve().parents[2] / "jobs" / "prepare.py"


def prepare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
    assert "  5.xml: Nobody 5\n" in done.stdout
    assert "  … and 5 more in summary.json" in done.stdout
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())["splits"]["train"]
    assert len(stored["unmatched_names"]) == stored["boxes_unmatched"] == 25


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
    assert prepare("facebook", "--root", "x", "--output", "y").returncode == 2
