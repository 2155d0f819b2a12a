"""A spot machine that is reclaimed during training, on local nodes: notice, checkpoint, on with the rest, and with
the machine that replaces it.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.cluster.heads import drain
from tests.tiny_training import write_dataset, write_recipe

TRAIN_JOB = Path(__file__).parents[2] / "jobs" / "train.py"
SECONDS_OF_NOTICE = 300  # it goes sooner: once it is seen to have been heard
EPOCHS = 50  # more than come to an end: Ray looks for new nodes once a minute


def wait_for(
    log: Path, pattern: str, process: subprocess.Popen[bytes], seconds: float = 500
) -> re.Match[str]:
    deadline = time.monotonic() + seconds
    while (found := re.search(pattern, log.read_text())) is None:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.3)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_reclaimed_node_costs_no_more_than_the_last_steps_and_is_replaced(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    write_dataset(tmp_path / "data", train=300, valid=10)
    output, log = tmp_path / "run", tmp_path / "log"
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        tiny_model,
        epochs=EPOCHS,
        posts_per_step=4,
        cpus_per_worker=2,
        workers=[1, 2],
        minutes_between_checkpoints=0.2,
        max_failures=0,
    )
    # Workers fit on the two nodes of two CPUs only, one on each; Ray Data has the third.
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=cpus, object_store_memory=150_000_000) for cpus in (2, 2, 1)]
        environment = {
            **os.environ,
            "RAY_ADDRESS": cluster.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        }
        command = [sys.executable, str(TRAIN_JOB), "--config", str(recipe)]
        command += ["--data", str(tmp_path / "data"), "--output", str(output)]
        with log.open("wb") as file:
            driver = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_for(log, rf"epoch 1/{EPOCHS}: ", driver)
            reclaimed = nodes[0]
            drain(cluster.address, reclaimed.node_id, SECONDS_OF_NOTICE)
            saved = wait_for(log, r"reclaimed: saving epoch (\d+), step (\d+)", driver)
            time.sleep(3)
            cluster.remove_node(reclaimed, allow_graceful=False)
            resumed = wait_for(log, r"resuming after epoch (\d+), step (\d+): 1 worker", driver)
            cluster.add_node(num_cpus=2, object_store_memory=150_000_000)
            grown = wait_for(log, r"resuming after epoch (\d+), step (\d+): 2 worker", driver)
            wait_for(log, rf"epoch {int(grown[1]) + 2}/{EPOCHS}: ", driver)
        finally:
            driver.kill()
            driver.wait()
    finally:
        cluster.shutdown()
    # In the same epoch, at the same step: a step has as many posts with one worker as with two.
    assert int(resumed[1]) == int(saved[1]) - 1
    assert int(saved[2]) > 0
    assert int(resumed[2]) == pytest.approx(int(saved[2]), abs=1)
    # Ray takes the new node in by starting all workers again, wherever they are in an epoch.
    assert (int(grown[1]), int(grown[2])) > (int(resumed[1]), int(resumed[2]))
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    assert history[0]["workers"] == history[-1]["workers"] == 2
    assert all(record["posts"] == 10 for record in history)
