"""Work that is done beside other work."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def made_ahead(items: Iterator[R]) -> Iterator[R]:
    """The items in their order, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


class Awaited(Generic[R]):
    """Items, and how long their user waited for them.

    Attributes:
        seconds: of waiting until now.
    """

    def __init__(self, items: Iterator[R]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> "Awaited[R]":
        return self

    def __next__(self) -> R:
        asked = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - asked


class Lanes:
    """So many threads that stay: the libraries of a GPU keep for each what they would else make anew.

    Args:
        count: how many items are worked on at once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count)

    def __call__(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` makes of the items, in their order. Few results wait to be taken."""
        coming: deque[Future[R]] = deque()
        try:
            for item in items:
                coming.append(self._threads.submit(work, item))
                if len(coming) > 2 * self.count:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:  # where one raises, the others do not go on behind its back
            wait(coming)
