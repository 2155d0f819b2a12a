"""How far a tagging run is: a bar in a terminal, and elsewhere a line every half minute."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What is done of a run.

    Attributes:
        posts: of the archive.
        done: of them; a batch that is lost with its actor is tagged, and counted, twice.
        failed: rows with an error among those that this pass has tagged.
        pace: posts a second since the first batch; 0 before the second one.
    """

    posts: int
    done: int
    failed: int
    pace: float

    def __str__(self) -> str:
        left = _duration((self.posts - self.done) / self.pace) if self.pace else ""
        pace = f"{self.pace:,.1f} posts/s, {left} left" if self.pace else "starting"
        share = self.done / max(self.posts, 1)
        return f"{self.done:,} of {self.posts:,} posts ({share:.1%}), {pace}, {self.failed:,} with an error"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown_progress(monitor: Any, posts: int, before: int) -> Iterator[None]:
    """Show how far a pass is, for as long as the `with` block lasts.

    Args:
        monitor: the actor that hears from the model actors.
        posts: of the archive.
        before: of them, those done before this pass.
    """
    ended = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    thread = threading.Thread(target=show, args=(_Watch(monitor, posts, before), ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


class _Watch:
    """Asks the monitor, which also counts what earlier passes of the run did."""

    def __init__(self, monitor: Any, posts: int, before: int) -> None:
        self._monitor, self._posts, self._before = monitor, posts, before
        self._heard = (0, 0)
        self._earlier = self._ask()
        self._first: tuple[float, int] | None = (
            None  # when the first batch was seen, and how many posts it had
        )

    def look(self) -> Progress:
        """What is done now."""
        tagged, failed = (now - earlier for now, earlier in zip(self._ask(), self._earlier, strict=True))
        now = time.monotonic()
        if self._first is None and tagged:
            self._first = now, tagged
        since, first = self._first or (now, 0)
        pace = (tagged - first) / (now - since) if now > since else 0.0
        return Progress(self._posts, min(self._posts, self._before + tagged), failed, pace)

    def _ask(self) -> tuple[int, int]:
        # Where the monitor is being restarted, or the session ends, the last answer still stands.
        with suppress(ray.exceptions.RayError):
            self._heard = ray.get(self._monitor.counted.remote(), timeout=5)
        return self._heard


def _show_lines(watch: _Watch, ended: threading.Event) -> None:
    said = time.monotonic()
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        progress = watch.look()
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            logger.info("%s", progress)


def _show_bar(watch: _Watch, ended: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1)
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            progress = watch.look()
            bar.update(task, total=progress.posts, completed=progress.done, description=str(progress))
