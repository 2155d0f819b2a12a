"""Our jobs sent to a cluster with a token, as cluster/README.md says it: submitted, stopped, gone on with."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnerqg.archive.run import SUCCESS_FILE
from tests.archives import finished_writes, read_tags, write_cheap_archive
from tests.cluster.heads import RAY, Head, head, wait_until
from tests.tiny_training import write_dataset, write_recipe

ROOT = Path(__file__).parents[2]
POSTS = 2000
EPOCHS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Client:
    """The command line of somebody with or without the token."""

    def __init__(self, home: Path, dashboard: str) -> None:
        self.home, self.dashboard = home, dashboard

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        variables = {"HOME": str(self.home), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": self.dashboard}
        return subprocess.run(
            [*RAY, *command],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def submit(self, *job: str, wait: bool = True, name: str) -> subprocess.CompletedProcess[str]:
        options = ["--working-dir", ".", "--submission-id", name, *([] if wait else ["--no-wait"])]
        return self("job", "submit", *options, "--", *job)

    def stop(self, name: str) -> None:
        done = self("job", "stop", name)
        assert done.returncode == 0, done.stderr
        assert "was stopped" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head that asks for a token, and the home directory of somebody who has it."""
    home = tmp_path_factory.mktemp("home")
    with_token = {"HOME": str(home), "RAY_AUTH_MODE": "token"}
    subprocess.run([*RAY, "get-auth-token", "--generate"], env={**os.environ, **with_token}, check=True)
    with head(home / "log", "--num-cpus=4", environment=with_token) as running:
        yield running, home


@pytest.fixture
def client(cluster: tuple[Head, Path]) -> Client:
    running, home = cluster
    return Client(home, running.dashboard)


def test_nobody_without_the_token(cluster: tuple[Head, Path], tmp_path: Path) -> None:
    stranger = Client(tmp_path, cluster[0].dashboard)
    done = stranger.submit("touch", str(tmp_path / "done"), name="stranger")
    assert done.returncode != 0
    assert "token" in done.stderr
    assert not (tmp_path / "done").exists()


def test_tagging_is_stopped_and_goes_on(client: Client, tiny_model: Path, tmp_path: Path) -> None:
    archive, tags = str(tmp_path / "archive"), str(tmp_path / "tags")
    write_cheap_archive(archive, POSTS, files=4)
    job = ["python", "jobs/tag.py", "--model", str(tiny_model), "--input", archive, "--output", tags]
    job += ["--min_rows_per_file", "100", "--batch_posts", "4", "--actors", "1"]
    submitted = client.submit(*job, wait=False, name="night")
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: finished_writes(tags) >= 2, 300)
    client.stop("night")
    assert not Path(tags, SUCCESS_FILE).exists()

    again = client.submit(*job, name="night-again")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert json.loads(Path(tags, "_manifest.json").read_text())["rows_this_time"] < POSTS
    ids = read_tags(tags)["post_id"].to_pylist()
    assert len(ids) == len(set(ids)) == POSTS
    assert "already done" in client.submit(*job, name="night-once-more").stdout


def test_the_log_of_a_night_can_be_read(client: Client, tiny_model: Path, tmp_path: Path) -> None:
    archive, tags = str(tmp_path / "archive"), str(tmp_path / "tags")
    write_cheap_archive(archive, 5000, files=4)
    job = ["python", "jobs/tag.py", "--model", str(tiny_model), "--input", archive, "--output", tags]
    done = client.submit(*job, "--batch_posts", "1", "--actors", "1", name="logged")
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-3000:]
    assert len(log.splitlines()) <= 80, log
    assert re.search(
        r"[\d,]+ of 5,000 posts \([\d.]+%\), [\d.,]+ posts/s, \d+ (s|min) left, 0 with an error", log
    ), log
    assert "WARNING" not in done.stdout, done.stdout  # on stderr the client speaks


def test_training_is_stopped_and_goes_on(client: Client, tiny_model: Path, tmp_path: Path) -> None:
    output, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    write_dataset(tmp_path / "data", train=40, valid=10)
    recipe = write_recipe(
        tmp_path / "tiny.yaml", tiny_model, epochs=EPOCHS, posts_per_step=8, cpus_per_worker=1
    )
    job = ["python", "jobs/train.py", "--config", str(recipe), "--data", str(tmp_path / "data")]
    job += ["--output", str(output)]
    submitted = client.submit(*job, wait=False, name="training")
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1, 600)
    client.stop("training")
    done = metrics.read_text().splitlines()
    assert len(done) < EPOCHS

    again = client.submit(*job, name="training-again")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    lines = metrics.read_text().splitlines()
    assert lines[: len(done)] == done
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


def test_a_wrong_command_says_so(client: Client, tmp_path: Path) -> None:
    done = client.submit(
        *("python", "jobs/tag.py", "--model", str(tmp_path / "none"), "--input", "a", "--output", "b"),
        name="wrong",
    )
    assert done.returncode == 1  # of either of our codes, says docs/operations.md
    assert "error: " in done.stdout
    assert "exit code 2" in done.stdout + done.stderr
