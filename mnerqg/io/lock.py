"""Keeps a second job, of whatever cluster, from writing into a run's folder.

Of two tagging jobs in one folder, each would take the other's half-written files for what a death has left, and delete
them; two trainings would write over each other's checkpoints. On a file system the lock is the kernel's (`flock`) and
goes with the process. In S3 it is an object that its holder writes anew every few seconds, by conditional requests (a
lease). Its holder counts as dead when it has been silent for a minute, or at once where it was a process of this
machine that is gone.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from mnerqg.errors import RunError, StorageError
from mnerqg.io import storage

LOCK_FILE = "_lock.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def locked(
    folder: str,
    when_lost: Callable[[], None] | None = None,
    *,
    renew_s: float = 10,
    silent_s: float = 60,
) -> Iterator[None]:
    """The right to write into `folder`, until the end of the `with` block.

    Args:
        folder: URI of the run's folder.
        when_lost: of locks in S3: called in another thread when another job has taken the lock over, which it may
            after `silent_s` without a sign of life: this process was suspended, or cut off from the store. Two jobs
            would write from then on, so it must end the writing. None ends this process, and with it what Ray runs
            for it, with the exit code of a RunError.
        renew_s: seconds between two signs of life.
        silent_s: seconds without a sign of life after which a holder on another machine counts as dead.

    Raises:
        RunError: another job holds the lock.
        StorageError: the lock cannot be read or written.
    """
    uri = storage.join(folder, LOCK_FILE)
    place = storage.locate(uri)
    if isinstance(place, Path):
        with _locked_file(place, folder):
            yield
        return
    lease = _Lease(uri, folder, when_lost or partial(_end_process, folder), renew_s)
    lease.take(silent_s)
    try:
        yield
    finally:
        lease.give_back()


def _end_process(folder: str) -> None:
    print(
        f"error: another job has taken over {folder}, since this one gave no sign of life; leave it to that one",
        file=sys.stderr,
        flush=True,
    )
    # Not an exception: this is another thread than the one that writes, and whatever a death leaves can be mended.
    os._exit(RunError.exit_code)


def _contents(token: str) -> str:
    now = datetime.now(UTC).isoformat()
    holder = {"token": token, "host": socket.gethostname(), "process": _this_process(), "alive": now}
    return json.dumps(holder) + "\n"


def _refusal(folder: str, contents: str) -> RunError:
    remedy = "wait for it, or stop it with `ray job stop`"
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(contents)
        who = f"on {holder['host']}, is writing into {folder} (last sign of it: {holder['alive'][:19]} UTC)"
        return RunError(f"another job, {who}; {remedy}")
    return RunError(f"another job is writing into {folder}; {remedy}")


# ---- whether a process of this machine is gone -----------------------------------------------------


def _this_process() -> dict[str, Any] | None:
    """What tells this process from every other one; None where the system does not say."""
    pid = os.getpid()
    try:
        return {"machine": _machine(), "pid": pid, "started": _state_and_start(pid)[1]}
    except (OSError, ValueError, IndexError):
        return None


def _machine() -> str:
    """The table of processes that a pid is looked up in: of one boot of one machine, in it of one container."""
    if str(Path("/proc/self").readlink()) != str(os.getpid()):
        raise OSError(errno.ENOENT, "/proc tells of another container's processes")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _state_and_start(pid: int) -> tuple[str, str]:
    """A process's state (a letter) and when it was started: pids are used again (proc(5), /proc/pid/stat)."""
    fields = (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )
    return fields[0], fields[19]


def _is_gone(contents: str) -> bool:
    """Whether the holder was a process of this machine that has ended; False where that cannot be known."""
    try:
        holder = json.loads(contents)["process"]
        if holder["machine"] != _machine():
            return False
        os.kill(holder["pid"], 0)  # sends nothing; the error says whether there is such a process
        state, started = _state_and_start(holder["pid"])
        return state in ("Z", "X") or started != holder["started"]
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError):
        return False


# ---- on a file system ------------------------------------------------------------------------------


@contextmanager
def _locked_file(path: Path, folder: str) -> Iterator[None]:
    """The file stays: were it removed, two jobs could hold locks on two files of the same name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}; check the path") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refusal(folder, file.read()) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise StorageError(f"{path} cannot be locked: {error.strerror}; check the path") from error
            logger.warning(
                "%s cannot be locked (%s): a job of another cluster is not noticed", path, error.strerror
            )
        file.truncate(0)
        file.write(_contents(uuid.uuid4().hex))
        file.flush()
        yield


# ---- in S3 -----------------------------------------------------------------------------------------


class _Lease:
    """The lock in S3: an object whose ETag, known to its holder alone, is the condition of every new sign of life."""

    def __init__(self, uri: str, folder: str, when_lost: Callable[[], None], renew_s: float) -> None:
        self._uri, self._folder, self._when_lost, self._renew_s = uri, folder, when_lost, renew_s
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._etag: str | None = None

    def take(self, silent_s: float) -> None:
        """Raises RunError where another job is alive there."""
        there = storage.read_with_etag(self._uri)
        if there is not None and not _is_gone(there[0]):
            there = self._wait_for_silence(there, silent_s)
        self._etag = self._write(None if there is None else there[1])
        if self._etag is None:
            there = storage.read_with_etag(self._uri)
            raise _refusal(self._folder, there[0] if there else "")
        self._thread.start()

    def give_back(self) -> None:
        """Removes the lock if it is still ours."""
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):  # it goes silent, which is as good
            if self._etag_of_ours() is not None:
                storage.delete_file(self._uri)

    def _wait_for_silence(self, there: tuple[str, str], silent_s: float) -> tuple[str, str] | None:
        logger.info(
            "%s is locked; waiting %g s for a sign of life of the job that holds it",
            self._folder,
            silent_s,
        )
        deadline = time.monotonic() + silent_s
        now: tuple[str, str] | None = there
        while time.monotonic() < deadline:
            time.sleep(self._renew_s / 2)
            now = storage.read_with_etag(self._uri)
            if now is None:
                break
            if now[1] != there[1]:
                raise _refusal(self._folder, now[0])
        return now

    def _keep(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                etag = self._write(self._etag)
            except Exception as error:
                # The store may be away. Whether the lock is lost, its next answer says.
                logger.warning("no sign of life in %s: %s", self._uri, error)
                continue
            if etag is None:
                self._when_lost()
                return
            self._etag = etag

    def _write(self, etag: str | None) -> str | None:
        """The new ETag where the lock was as expected, and is ours now."""
        written = storage.write_if_etag(self._uri, _contents(self._token), etag)
        # Also where the client repeated a request whose first answer was lost.
        return written or self._etag_of_ours()

    def _etag_of_ours(self) -> str | None:
        there = storage.read_with_etag(self._uri)
        return there[1] if there is not None and self._token in there[0] else None
