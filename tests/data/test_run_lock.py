"""One job at a time in a run's directory: on a file system, and in S3 over HTTP."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnerqg import storage
from mnerqg.data.run_lock import LOCK_FILE, locked
from mnerqg.errors import RunError, StorageError
from tests.servers import faults

FAST = {"renew_s": 0.1, "silent_s": 1.0}
HOLDER = """
import sys, time
from mnerqg.data.run_lock import locked
with locked(sys.argv[1], "other", renew_s=0.1, silent_s=1.0):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "tags")
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/tags"


def take(output: str) -> None:
    with locked(output, "here", **FAST):
        pass


@contextmanager
def held_elsewhere(output: str) -> Iterator[subprocess.Popen[str]]:
    """By another process, which a test may kill."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_one_after_the_other(output: str) -> None:
    for _ in range(2):
        with locked(output, "here", **FAST):
            assert json.loads(storage.read_text(storage.join(output, LOCK_FILE)))["node"] == "here"
        assert not storage.exists(storage.join(output, LOCK_FILE))


def test_a_second_job_is_refused(output: str) -> None:
    with (
        held_elsewhere(output),
        pytest.raises(RunError, match=r"another job, on \S+, is writing into .*tags"),
    ):
        take(output)


def test_a_dead_job_is_succeeded(output: str) -> None:
    with held_elsewhere(output) as holder:
        holder.kill()
        holder.wait()
        take(output)


def test_what_the_cluster_knows_to_be_dead_is_not_waited_for(s3_bucket: str) -> None:
    with held_elsewhere(s3_bucket) as holder:
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with locked(s3_bucket, "here", lambda node: node == "other", renew_s=0.1, silent_s=3600):
            assert time.monotonic() - started < 60


def test_of_two_successors_one_is_refused(s3_bucket: str) -> None:
    uri = storage.join(s3_bucket, LOCK_FILE)
    storage.write_text(uri, json.dumps({"token": "t", "host": "gone", "node": "n", "alive": "2026-11-01"}))
    held, refused = [], []
    release = threading.Event()

    def succeed(name: str) -> None:
        try:
            with locked(s3_bucket, name, **FAST):
                held.append(name)
                release.wait(30)
        except RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=succeed, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 2


def test_a_job_that_stood_still_is_ended(s3_bucket: str) -> None:
    """As when its machine was suspended: another one has taken over."""
    uri = storage.join(s3_bucket, LOCK_FILE)

    def stand_still() -> None:
        with locked(s3_bucket, "here", **FAST):
            storage.write_text(uri, "another's")
            time.sleep(30)

    with pytest.raises(RunError, match="another job has taken over"):
        stand_still()
    assert storage.read_text(uri) == "another's"


def test_an_interrupt_is_not_a_loss(s3_bucket: str) -> None:
    with pytest.raises(KeyboardInterrupt), locked(s3_bucket, "here", **FAST):
        raise KeyboardInterrupt
    assert not storage.exists(storage.join(s3_bucket, LOCK_FILE))


def test_a_store_that_fails_now_and_then(s3_endpoint: str, s3_bucket: str) -> None:
    """A request is repeated where its answer was lost: the lock that it finds is its own."""
    with faults(s3_endpoint, share=0.3) as proxy, locked(s3_bucket, "here", renew_s=0.02, silent_s=1.0):
        deadline = time.monotonic() + 30
        while sum(proxy.faults.values()) < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert sum(proxy.faults.values()) >= 10


@pytest.mark.parametrize("contents", ["", "[]", "{}", "\0"])
def test_a_damaged_lock_is_one_of_a_dead_job(output: str, contents: str) -> None:
    storage.write_text(storage.join(output, LOCK_FILE), contents)
    take(output)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be locked: .*; check the file system"):
        take(str(tmp_path / "file" / "tags"))


@pytest.mark.real_s3
def test_the_same_on_ceph(ceph_s3: str) -> None:
    with held_elsewhere(ceph_s3) as holder:
        with pytest.raises(RunError, match="another job, on"):
            take(ceph_s3)
        holder.kill()
        holder.wait()
        with locked(ceph_s3, "here", **FAST), pytest.raises(RunError, match="another job, on"):
            take(ceph_s3)
