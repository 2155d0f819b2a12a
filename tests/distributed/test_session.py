"""What of Ray's words comes into the log of a job."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from ray.exceptions import ActorDiedError

from mnerqg.distributed import session
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.session import IDLE_WORKERS, Causes, _Briefly, _is_worth_a_line, connect

TRACEBACK = """Task MapWorker.get_location failed. It will be retried. Error: Traceback (most recent call last):

  File "stages.py", line 83, in __init__
    self._tagger = load(uri)

RuntimeError: no kernel image
"""


def died(message: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = message
    return error


def record(level: int, message: str, error: Exception | None = None) -> logging.LogRecord:
    info: Any = None
    if error is not None:
        try:
            raise error
        except Exception:
            info = sys.exc_info()
    return logging.LogRecord("ray.data", level, "f.py", 1, message, None, info)


@pytest.mark.parametrize(
    ("level", "message", "shown"),
    [
        (logging.INFO, "Starting execution of Dataset", False),
        (logging.ERROR, "Full stack trace:", False),
        (logging.WARNING, "Token authentication is enabled for this Ray cluster.", False),
        (logging.WARNING, "Progress bars disabled. To enable, set", False),
        (
            logging.WARNING,
            "Specifying both num_cpus and num_gpus for map tasks is experimental, and may",
            False,
        ),
        (logging.WARNING, "Token authentication is disabled: anyone can run code", True),
        (logging.WARNING, "Cluster resources are not enough to run any task", True),
    ],
)
def test_warnings_that_somebody_can_act_on(level: int, message: str, shown: bool) -> None:
    assert _is_worth_a_line(record(level, message)) is shown


def test_a_cause_is_said_once_and_first() -> None:
    causes = Causes()
    printed: list[Any] = []
    show = causes.printer(lambda data, ignore_prefix: printed.append((data["lines"], ignore_prefix)[0]))
    show({"pid": "raylet", "lines": [TRACEBACK]}, ignore_prefix=False)
    show({"pid": "raylet", "lines": [TRACEBACK]}, ignore_prefix=False)
    show({"pid": 8, "actor_name": "SplitCoordinator", "lines": ["Execution plan"]}, ignore_prefix=False)
    show({"pid": 7, "lines": ["Traceback (most recent call last)"]}, ignore_prefix=False)
    for _ in range(2):
        show({"pid": "raylet", "lines": ["a node is out of memory"]}, ignore_prefix=False)
    show(
        {"pid": "raylet", "lines": ["logging.cc: Set ray log level from environment variable X"]},
        ignore_prefix=False,
    )
    assert printed == [
        ["RuntimeError: no kernel image (Task MapWorker.get_location failed. It will be retried.)"],
        ["Traceback (most recent call last)"],
        ["a node is out of memory"],
    ]
    error = died(f"The actor died because of an error raised in its creation task\n{TRACEBACK}")
    assert not causes.is_new(record(logging.WARNING, "an actor died", error))
    other = record(logging.WARNING, "an actor\ndied", ValueError("bad"))
    assert causes.is_new(other)
    assert not causes.is_new(other)
    assert causes.is_new(record(logging.WARNING, "no cause"))
    line = _Briefly().format(other)
    assert line.endswith("WARNING ValueError: bad (an actor died)")


def test_an_actor_that_died_as_it_began_is_named_by_what_killed_it() -> None:
    error = died(f"The actor died because of an error raised in its creation task\n{TRACEBACK}")
    assert first_cause(error) == "RuntimeError: no kernel image"
    assert first_cause(died("The node is gone.")) == "ActorDiedError: The node is gone."


def test_a_cluster_of_its_own_has_the_dashboard_where_ray_train_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["include_dashboard"]))
    connect()
    connect(dashboard=True)
    assert asked == [False, True]


def test_workers_that_are_idle_for_a_while_are_kept(tmp_path: Path) -> None:
    """Ray by itself ends those beyond one a CPU, and has others import everything again."""
    script = """
import os, pathlib, sys, time, ray
from mnerqg.distributed.session import connect, hush
hush()
connect()
cpus = ray.cluster_resources()["CPU"]
workers = int(cpus) + 4
folder = pathlib.Path(sys.argv[1])
@ray.remote(num_cpus=cpus / workers / 2)
def at_once():
    pid = os.getpid()
    (folder / str(pid)).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.1)
    return pid
pids = ray.get([at_once.remote() for _ in range(workers)], timeout=90)
time.sleep(4)
print(workers, sum(pathlib.Path("/proc", str(pid)).exists() for pid in pids))
"""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    environment.pop(IDLE_WORKERS[0], None)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    workers, kept = done.stdout.split() or ("none", done.stderr)
    assert kept == workers


@pytest.mark.parametrize("hushed", [True, False])
def test_memory_of_which_nobody_can_reserve_more_is_no_warning(
    hushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(session._manner, "hushed", hushed)
    context = ray.data.DataContext()
    with ray.data.DataContext.current(context):
        connect()
        every_s = context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s
    assert (every_s == -1) is hushed
