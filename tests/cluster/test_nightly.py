"""cluster/nightly.sh: which night it tags, and what it says when it cannot know."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "nightly.sh"
PLACES = {
    "MNERQG_MODEL": "s3://b/model",
    "MNERQG_ARCHIVE": "s3://b/posts",
    "MNERQG_TAGS": "s3://b/tags",
}


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A `python` that says what it is asked to run, and exits as the job would."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    program.chmod(0o755)
    return program


def run(python: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{python.parent}:{os.environ['PATH']}"
    return subprocess.run(
        [str(SCRIPT), *arguments], env={"PATH": path, **environment}, capture_output=True, text=True
    )


def test_it_tags_yesterday(python: Path) -> None:
    before = datetime.now(UTC)
    found = run(python, "--autoscaling", "true", **PLACES)
    nights = {f"{day - timedelta(days=1):%Y-%m-%d}" for day in (before, datetime.now(UTC))}
    job, *options = found.stdout.splitlines()
    assert Path(job).resolve() == SCRIPT.parents[1] / "jobs" / "tag.py"
    night = options[3].removeprefix("s3://b/posts/date=")
    assert night in nights
    assert options == [
        *("--model", "s3://b/model", "--input", f"s3://b/posts/date={night}"),
        *("--output", f"s3://b/tags/date={night}", "--autoscaling", "true"),
    ]
    assert found.returncode == 7  # the job's own


@pytest.mark.parametrize(
    ("cluster", "night"),
    [
        ("mnerqg-nightly-tagging-29731770-x7k2p", "2026-07-12"),  # planned for 01:30 of the 13th
        ("mnerqg-nightly-tagging-29731679-x7k2p", "2026-07-11"),  # 23:59 of the 12th
        ("mnerqg-nightly-tagging-29731680-x7k2p", "2026-07-12"),  # 00:00 of the 13th
    ],
)
def test_a_try_that_comes_late_is_of_the_same_night(python: Path, cluster: str, night: str) -> None:
    found = run(python, RAY_CLUSTER_NAME=cluster, **PLACES)
    assert f"s3://b/tags/date={night}" in found.stdout.splitlines()
    asked_for = run(python, RAY_CLUSTER_NAME=cluster, NIGHT="2026-02-28", **PLACES)
    assert "s3://b/tags/date=2026-02-28" in asked_for.stdout.splitlines()


@pytest.mark.parametrize("cluster", ["", "mnerqg", "mnerqg-night-2026-11-22-x7k2p-b4c5d"])
def test_other_clusters_tag_yesterday(python: Path, cluster: str) -> None:
    before = datetime.now(UTC)
    found = run(python, RAY_CLUSTER_NAME=cluster, **PLACES)
    nights = {f"s3://b/tags/date={day - timedelta(days=1):%F}" for day in (before, datetime.now(UTC))}
    assert nights & set(found.stdout.splitlines())


def test_a_night_that_was_missed(python: Path) -> None:
    found = run(python, NIGHT="2026-02-28", **PLACES)
    assert "s3://b/tags/date=2026-02-28" in found.stdout.splitlines()


@pytest.mark.parametrize("night", ["2026-2-28", "2026-02-30", "yesterday", "../2026-02-28", "20260228"])
def test_what_is_no_date_is_refused(python: Path, night: str) -> None:
    found = run(python, NIGHT=night, **PLACES)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == f"error: NIGHT is '{night}'; give a date such as 2026-11-22\n"


@pytest.mark.parametrize("name", PLACES)
def test_what_is_not_set_is_named(python: Path, name: str) -> None:
    found = run(python, **{key: value for key, value in PLACES.items() if key != name})
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {name} is not set; ")
