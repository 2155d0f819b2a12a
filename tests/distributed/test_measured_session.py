import os
import signal

import numpy as np
import pytest
import ray

from mnerqg.benchmark.rounds import Work
from mnerqg.distributed.measured_session import (
    Faults,
    device_busy,
    pace_together,
    raylets_here,
    session_faults,
)
from tests.cluster.heads import wait_until


def lost() -> int:
    return sum(session_faults().lost.values())


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_is_killed_is_counted() -> None:
    """The kernel kills as this does where memory runs out before Ray's own watch sees it."""
    before = lost()
    killed = ray.remote(lambda: os.kill(os.getpid(), signal.SIGKILL)).options(max_retries=0).remote()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(killed)
    wait_until(lambda: lost() > before, 30)


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_spilled_is_counted() -> None:
    before = session_faults()
    kept = [ray.put(np.zeros(90_000_000, np.uint8)) for _ in range(3)]  # the store holds 200 MB
    wait_until(lambda: session_faults().since(before).spilled_bytes >= 90_000_000, 30)
    assert "Ray spilled" in session_faults().since(before).in_words()[-1]
    del kept


@pytest.mark.usefixtures("ray_cluster")
def test_the_raylet_of_this_machine() -> None:
    (pid,) = raylets_here()
    with open(f"/proc/{pid}/comm") as name:  # noqa: PTH123
        assert name.read().strip() == "raylet"


def test_faults_since_the_beginning() -> None:
    before, after = Faults(10, {"for memory": 1}), Faults(10, {"for memory": 3, "or ended by themselves": 1})
    assert after.since(before) == Faults(0, {"for memory": 2, "or ended by themselves": 1})
    assert after.since(before).in_words() == [
        "2 process(es) of Ray were killed for memory",
        "1 process(es) of Ray were killed or ended by themselves",
    ]
    assert after.since(after).in_words() == []


def test_devices_are_busy_between_their_first_batch_and_their_last() -> None:
    work = [
        ("a", Work(1, 1.0, 0.0, 1.0)),
        ("a", Work(1, 1.0, 3.0, 4.0)),
        ("b", Work(1, 6.0, 10.0, 16.0)),
    ]
    assert device_busy(work) == 8 / 10
    assert device_busy([]) is None


def test_the_pace_while_all_models_work() -> None:
    """The second one starts when the first one has answered twice, and ends before it."""
    work = [("a", Work(10, 1.0, ended - 1.0, ended)) for ended in (1.0, 2.0, 4.0, 9.0)]
    work += [("b", Work(10, 1.0, ended - 1.0, ended)) for ended in (3.0, 5.0, 6.0)]
    assert pace_together(work) == 30 / 3
    assert pace_together(work[:4]) == 30 / 8
    assert pace_together(work[:1]) is None
    assert pace_together([]) is None
