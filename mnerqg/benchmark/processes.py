"""The memory of a Ray session's processes, and the machine's CPUs, looked at in /proc while something runs."""

import os
import re
import threading
import time
from bisect import bisect_left, bisect_right
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


class Cpus:
    """How busy this machine's CPUs are, whoever uses them."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, int, int]] = []

    def look(self) -> None:
        """Note how long they have worked and been idle since the machine's start."""
        line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
        # user, nice, system, idle, waiting for disks, two kinds of interrupts; those of guests are in the first two.
        ticks = [int(value) for value in line.split()[1:8]]
        self._looks.append((time.time(), sum(ticks) - ticks[3] - ticks[4], sum(ticks)))

    def busy(self, since: float, until: float) -> float | None:
        """The share of their time in which they worked between two times of the clock, from the look before the first
        to the one behind the second; None where there was only one."""
        times = [look[0] for look in self._looks]
        first = max(bisect_right(times, since) - 1, 0)
        last = min(bisect_left(times, until), len(times) - 1)
        (_, busy, ticks), (_, busy_then, ticks_then) = self._looks[first], self._looks[last]
        return None if ticks_then == ticks else (busy_then - busy) / (ticks_then - ticks)


@contextmanager
def watched(raylets: set[int]) -> Iterator[tuple[Memory, Cpus]]:
    """Look at this process, the children of `raylets` (process ids) and the CPUs until the `with` block ends."""
    memory, cpus, ended = Memory(), Cpus(), threading.Event()

    def look() -> None:
        cpus.look()
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            memory.look(raylets)
            cpus.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory, cpus
    finally:
        ended.set()
        thread.join()
        memory.look(raylets)
        cpus.look()


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
