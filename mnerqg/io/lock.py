"""Keeps a second job, of whatever cluster, from writing into a run's directory.

Of two tagging jobs in one run, the one that ends last would take the other's finished tags for what a death has left,
and delete them; two trainings would write over each other's checkpoints. On a file system the lock is the kernel's
(`flock`) and goes with the process. In S3 it is an object that its holder writes anew every few seconds, by conditional
requests: a holder that is silent for a minute is dead.
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

from mnerqg.errors import RunError, StorageError
from mnerqg.io import storage

LOCK_FILE = "_lock.json"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def locked(
    output: str,
    node: str,
    on_loss: Callable[[], None] | None = None,
    is_known: Callable[[str], bool] | None = None,
    *,
    renew_s: float = 10,
    silent_s: float = 60,
) -> Iterator[None]:
    """The right to write into `output`, until the end of the `with` block.

    Args:
        output: URI of the run's directory.
        node: of this job; told to those who are refused.
        on_loss: called in another thread when the lock in S3 is lost: this process gave no sign of life for longer than
            `silent_s`, since it stood still or was cut off, and another job took over. It must end the writing; None
            ends the process, with the exit code of a RunError and whatever Ray runs for it.
        is_known: whether a node belongs to this job's own cluster, where it is known by other means that the holder is
            dead. The silence of others has to be waited for.
        renew_s: seconds between two signs of life.
        silent_s: seconds without one after which a holder counts as dead.

    Raises:
        RunError: another job holds the lock.
        StorageError: the lock cannot be read or written.
    """
    uri = storage.join(output, LOCK_FILE)
    place = storage.locate(uri)
    if isinstance(place, Path):
        with _locked_file(place, output, node):
            yield
        return
    lease = _Lease(uri, output, node, on_loss or partial(_end_process, output), renew_s)
    lease.take(is_known, silent_s)
    try:
        yield
    finally:
        lease.give_back()


def _end_process(output: str) -> None:
    """After a death everything can go on; two writers are what must not be."""
    print(
        f"error: another job has taken over {output}, since this one gave no sign of life; leave it to that one",
        file=sys.stderr,
        flush=True,
    )
    os._exit(RunError.exit_code)


def _contents(token: str, node: str) -> str:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"token": token, "host": socket.gethostname(), "node": node, "alive": now}) + "\n"


def _refusal(output: str, contents: str) -> RunError:
    remedy = "wait for it, or stop it with `ray job stop`"
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(contents)
        who = f"on {holder['host']}, is writing into {output} (last sign of it: {holder['alive'][:19]} UTC)"
        return RunError(f"another job, {who}; {remedy}")
    return RunError(f"another job is writing into {output}; {remedy}")


# ---- on a file system ------------------------------------------------------------------------------


@contextmanager
def _locked_file(path: Path, output: str, node: str) -> Iterator[None]:
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
            raise _refusal(output, file.read()) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise StorageError(f"{path} cannot be locked: {error.strerror}; check the path") from error
            logger.warning(
                "%s cannot be locked (%s): a job of another cluster is not noticed", path, error.strerror
            )
        file.truncate(0)
        file.write(_contents(uuid.uuid4().hex, node))
        file.flush()
        yield


# ---- in S3 -----------------------------------------------------------------------------------------


class _Lease:
    def __init__(self, uri: str, output: str, node: str, on_loss: Callable[[], None], renew_s: float) -> None:
        self._uri, self._output, self._node = uri, output, node
        self._on_loss, self._renew_s = on_loss, renew_s
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._etag: str | None = None

    def take(self, is_known: Callable[[str], bool] | None, silent_s: float) -> None:
        """Raises RunError where another job is alive there."""
        there = storage.read_with_etag(self._uri)
        if there is not None and not (is_known and is_known(_node_of(there[0]))):
            there = self._wait_for_silence(there, silent_s)
        self._etag = self._write(None if there is None else there[1])
        if self._etag is None:
            there = storage.read_with_etag(self._uri)
            raise _refusal(self._output, there[0] if there else "")
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
            "%s is locked by a job that is not of this cluster; waiting %g s for a sign of it",
            self._output,
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
                raise _refusal(self._output, now[0])
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
                self._on_loss()
                return
            self._etag = etag

    def _write(self, etag: str | None) -> str | None:
        """The new ETag where the lock was as expected, and is ours now."""
        written = storage.write_if_etag(self._uri, _contents(self._token, self._node), etag)
        # Also where the client repeated a request whose first answer was lost.
        return written or self._etag_of_ours()

    def _etag_of_ours(self) -> str | None:
        there = storage.read_with_etag(self._uri)
        return there[1] if there is not None and self._token in there[0] else None


def _node_of(contents: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(contents)["node"])
    return ""
