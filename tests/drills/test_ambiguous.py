"""In a world whose texts fit every type the joint model has to read the picture: the measure of whether it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RECIPE = ("--config=demo", "--train.epochs=5", "--train.check_pictures=never")


def job(name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_joint_model_reads_pictures(tmp_path: Path) -> None:
    """With the pictures of other posts it finds the names, and cannot know their types; so with none."""
    world, data, run = (tmp_path / name for name in ("world", "data", "run"))
    job("demo", "--output", world, "--ambiguous", "--world-only")
    job("prepare", "twitter", "--root", world / "posts" / "ambiguous", "--output", data)
    job("train", *RECIPE, "--data", data, "--output", run)
    scores = tmp_path / "scores.json"
    asked = ("--split", "test", "--pictures", "true,shuffled,none", "--output", scores)
    job("evaluate", "--model", run / "best", "--data", data, *asked)
    found = json.loads(scores.read_text())
    assert found["f1"] >= 0.85
    assert found["shuffled"]["f1"] <= 0.4
    assert found["none"]["f1"] <= 0.4
