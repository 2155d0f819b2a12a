"""Work that is done beside other work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def made_ahead(items: Iterator[R]) -> Iterator[R]:
    """The items in their order, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def side_by_side(work: Callable[[T], R], items: Iterable[T], lanes: int) -> Iterator[R]:
    """What `work` makes of the items, in their order, of `lanes` at once. Few results wait to be taken."""
    coming: deque[Future[R]] = deque()
    with ThreadPoolExecutor(lanes) as threads:
        for item in items:
            coming.append(threads.submit(work, item))
            if len(coming) > 2 * lanes:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
