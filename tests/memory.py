"""How much more memory this process takes while something runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass
class Peak:
    """`more`: bytes above what the process held at the start."""

    more: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Looks every millisecond, from a thread: what a library takes shows, too, if it lets other threads run."""
    process, peak, done = psutil.Process(), Peak(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(0.001):
            peak.more = max(peak.more, process.memory_info().rss - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak.more = max(peak.more, process.memory_info().rss - before)
