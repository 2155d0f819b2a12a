"""One job at a time in a run's directory: on a file system, and in S3 over HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mnerqg.errors import RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE, locked
from tests.servers import LOST_ANSWER, faults

HOLDER = """
import sys, time
from mnerqg.io.lock import locked
with locked(sys.argv[1], renew_s=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "tags")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/tags"


def not_lost() -> None:
    os._exit(9)


def take(output: str, silent_s: float) -> None:
    with locked(output, not_lost, renew_s=0.1, silent_s=silent_s):
        holder = json.loads(storage.read_text(storage.join(output, LOCK_FILE)))
        assert holder["process"]["pid"] == os.getpid()


@contextmanager
def held_elsewhere(output: str) -> Iterator[subprocess.Popen[str]]:
    """By another process, which a test may kill."""
    command = [sys.executable, "-c", HOLDER, output]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_one_after_the_other(output: str) -> None:
    for _ in range(2):
        take(output, silent_s=3600)


def test_a_second_job_is_refused(output: str) -> None:
    with (
        held_elsewhere(output),
        pytest.raises(RunError, match=r"another job, on \S+, is writing into .*tags \(last sign of it: 20"),
    ):
        take(output, silent_s=60)


def test_a_job_of_this_machine_that_is_dead_is_not_waited_for(output: str) -> None:
    with held_elsewhere(output) as holder:
        holder.kill()
        holder.wait()
        take(output, silent_s=3600)


def test_a_dead_job_whose_parent_has_not_noticed_is_not_waited_for(s3_bucket: str) -> None:
    with held_elsewhere(s3_bucket) as holder:
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        take(s3_bucket, silent_s=3600)


@pytest.mark.parametrize(
    ("change", "silent_s"),
    [
        ({"machine": "another"}, 0.3),  # nothing is known of it: its silence has to be waited for
        ({"pid": -1}, 0.3),
        ({"pid": None}, 0.3),
        ({"started": "0"}, 3600),  # another process has its pid now
    ],
)
def test_who_held_a_lock_is_told_by_machine_pid_and_start(
    s3_bucket: str, change: dict[str, Any], silent_s: float
) -> None:
    uri = storage.join(s3_bucket, LOCK_FILE)
    with locked(s3_bucket, not_lost):
        holder = json.loads(storage.read_text(uri))
    holder["process"] |= change
    storage.write_text(uri, json.dumps(holder))
    take(s3_bucket, silent_s)


def test_a_job_that_stands_still_is_succeeded_and_ends(s3_bucket: str) -> None:
    """As when its machine was suspended: after a minute it counts as dead, and when it wakes it learns of that."""
    with held_elsewhere(s3_bucket) as holder:
        holder.send_signal(signal.SIGSTOP)
        with locked(s3_bucket, not_lost, renew_s=0.1, silent_s=1):
            holder.send_signal(signal.SIGCONT)
            assert holder.wait(60) == RunError.exit_code
            assert holder.stderr is not None
            assert "another job has taken over" in holder.stderr.read()


def test_the_lock_of_who_has_taken_over_is_left_alone(s3_bucket: str) -> None:
    uri = storage.join(s3_bucket, LOCK_FILE)
    lost = threading.Event()
    with locked(s3_bucket, lost.set, renew_s=0.1):
        storage.write_text(uri, "another's")
        assert lost.wait(60)
    assert storage.read_text(uri) == "another's"


def test_a_job_whose_lock_was_taken_and_given_back_is_told(s3_bucket: str) -> None:
    lost = threading.Event()
    with locked(s3_bucket, lost.set, renew_s=0.1):
        storage.delete_file(storage.join(s3_bucket, LOCK_FILE))
        assert lost.wait(60)


@pytest.mark.parametrize("kinds", [("internal_error", "drop", "cut"), (LOST_ANSWER,)])
def test_a_store_that_fails_now_and_then(s3_endpoint: str, s3_bucket: str, kinds: tuple[str, ...]) -> None:
    """A request is repeated where its answer was lost: the lock that it finds is its own."""
    with (
        faults(s3_endpoint, share=0.2, kinds=kinds) as proxy,
        locked(s3_bucket, not_lost, renew_s=0.02),
    ):
        deadline = time.monotonic() + 60
        while sum(proxy.faults.values()) < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert sum(proxy.faults.values()) >= 10


def test_a_store_that_is_away_for_a_while(s3_endpoint: str, s3_bucket: str) -> None:
    with (
        faults(s3_endpoint, share=0, kinds=("drop",)) as proxy,
        locked(s3_bucket, not_lost, renew_s=0.02),
    ):
        proxy.share = 1.0
        time.sleep(3)
        proxy.share = 0.0
        before = storage.read_text(storage.join(s3_bucket, LOCK_FILE))
        deadline = time.monotonic() + 60
        while storage.read_text(storage.join(s3_bucket, LOCK_FILE)) == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert proxy.faults["drop"] > 1
    assert not storage.exists(storage.join(s3_bucket, LOCK_FILE))


@pytest.mark.parametrize("contents", ["", "[]", "{}", "\0"])
def test_a_damaged_lock_is_one_of_a_dead_job(output: str, contents: str) -> None:
    storage.write_text(storage.join(output, LOCK_FILE), contents)
    take(output, silent_s=0.3)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"_lock.json cannot be written: .*; check the path"):
        take(str(tmp_path / "file" / "tags"), silent_s=1)


@pytest.mark.real_s3
def test_the_same_on_ceph(ceph_s3: str) -> None:
    with held_elsewhere(ceph_s3) as holder:
        with pytest.raises(RunError, match="another job, on"):
            take(ceph_s3, silent_s=60)
        holder.kill()
        holder.wait()
        take(ceph_s3, silent_s=1)
