"""The memory of a Ray session's processes on this machine, looked at in /proc while something runs."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.25
_ACTOR = re.compile(r"MapWorker|SplitCoordinator|_WorkerWrapper|RayTrainWorker")


@dataclass
class Memory:
    """The most MiB that a process of each kind held: heaps and stacks, not the pages that processes share.

    Attributes:
        driver: this process; whatever it held before is in it.
        actors, tasks: the largest of Ray's workers that were seen to be the one or the other.
    """

    driver: float = 0.0
    actors: float = 0.0
    tasks: float = 0.0
    _known_actors: set[int] = field(default_factory=set)

    def as_record(self) -> dict[str, float]:
        """For the JSON."""
        return {f"{name}_mib": round(getattr(self, name), 1) for name in ("driver", "actors", "tasks")}

    def look(self, raylets: set[int]) -> None:
        """Raise the peaks to what is held now."""
        self.driver = max(self.driver, _anonymous_mib(os.getpid()))
        for pid in _children(raylets):
            title = _title(pid)
            if not title.startswith("ray::"):
                continue
            if _ACTOR.search(title):
                self._known_actors.add(pid)
            kind = "actors" if pid in self._known_actors else "tasks"
            setattr(self, kind, max(getattr(self, kind), _anonymous_mib(pid)))


@contextmanager
def watched_memory(raylets: set[int]) -> Iterator[Memory]:
    """Look at this process and the children of `raylets` (process ids) until the `with` block ends."""
    memory, ended = Memory(), threading.Event()

    def look() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            memory.look(raylets)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
        memory.look(raylets)


def _children(parents: set[int]) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, ValueError):  # it has ended
                # The name in brackets may hold blanks and brackets itself.
                after = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
                if int(after.split()[1]) in parents:
                    yield int(entry.name)


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _anonymous_mib(pid: int) -> float:
    with suppress(OSError, StopIteration):
        lines = Path("/proc", str(pid), "status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) / 1024
    return 0.0
