"""Tagging on a cluster that is only a head at first: nodes come because actors ask, and go when they are idle."""

import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.archives import finished_writes, read_tags, write_cheap_archive
from tests.cheap_tagger import DELAY
from tests.cluster.fake_nodes import autoscaling_cluster, nodes, reclaim
from tests.cluster.heads import wait_until
from tests.tag_driver import driver

POSTS = 3000
SECONDS = 400

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def tagging(
    model: Path, folder: Path, address: str, **environment: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A driver that wants one or two actors with a GPU each."""
    arguments = [str(model), str(folder / "archive"), str(folder / "tags")]
    options = (
        "--autoscaling=true",
        "--actors=[1,2]",
        "--gpus_per_actor=1",
        "--min_rows_per_file=200",
        "--batch_posts=8",
    )
    return driver(*arguments, *options, log=folder / "log", RAY_ADDRESS=address, **environment)


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def check(folder: Path, job: subprocess.Popen[bytes]) -> None:
    assert job.returncode == 0, (folder / "log").read_text()[-3000:]
    ids = read_tags(str(folder / "tags"))["post_id"].to_pylist()
    assert len(ids) == len(set(ids)) == POSTS


def test_nodes_come_and_go(tiny_model: Path, tmp_path: Path) -> None:
    write_cheap_archive(str(tmp_path / "archive"), POSTS, files=4)
    with autoscaling_cluster(tmp_path) as address:
        assert nodes(address) == {}
        seen: set[str] = set()
        with tagging(tiny_model, tmp_path, address) as job:
            deadline = time.monotonic() + SECONDS
            while job.poll() is None and time.monotonic() < deadline:
                seen |= set(nodes(address).values())
                time.sleep(0.3)
        check(tmp_path, job)
        wait_until(lambda: nodes(address) == {}, 120)
    assert "gpu" in seen


def test_a_machine_that_is_reclaimed_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    write_cheap_archive(str(tmp_path / "archive"), POSTS, files=4)
    with autoscaling_cluster(tmp_path, idle_seconds=60) as address:
        with tagging(tiny_model, tmp_path, address, **{DELAY: "0.3"}) as job:
            wait_until(lambda: finished_writes(str(tmp_path / "tags")) >= 2, SECONDS)
            lost = reclaim(address, seconds=3)
            job.wait(timeout=SECONDS)
            left = nodes(address)
        check(tmp_path, job)
    assert "gpu" in lost.values()
    assert "gpu" in left.values()
    assert not set(lost) & set(left)
