"""What is seen of processes and CPUs while something runs."""

import time

from mnerqg.benchmark.processes import Cpus, watched


def test_a_cpu_that_works_is_seen_to_be_busy() -> None:
    with watched(set()) as (memory, cpus):
        began = time.time()
        while time.time() - began < 0.7:
            pass
        worked = time.time()
    busy = cpus.busy(began, worked)
    assert busy is not None
    assert 0 < busy <= 1
    assert memory.driver > 1


def test_the_share_is_that_between_the_looks_around_two_times() -> None:
    cpus = Cpus()
    cpus._looks = [(0.0, 0, 0), (1.0, 100, 100), (2.0, 150, 200), (3.0, 150, 300), (4.0, 250, 400)]
    assert cpus.busy(1.0, 3.0) == 0.25
    assert cpus.busy(1.5, 1.9) == 0.5
    assert cpus.busy(-1.0, 9.0) == 0.625
    assert cpus.busy(9.0, 9.0) is None
