import time
from collections.abc import Iterator
from threading import Barrier, Event, get_ident

import pytest

from mnerqg.inputs.ahead import Awaited, Lanes, made_ahead


def test_batches_are_made_ahead_in_order() -> None:
    asked: list[int] = []
    second_is_asked = Event()

    def numbers() -> Iterator[int]:
        for number in range(3):
            asked.append(number)
            if number == 1:
                second_is_asked.set()
            yield number

    ahead = made_ahead(numbers())
    assert next(ahead) == 0
    assert second_is_asked.wait(10)  # while the first is used
    assert list(ahead) == [1, 2]
    assert asked == [0, 1, 2]


def test_an_error_on_the_way_ahead_is_the_users() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("a bad row")

    ahead = made_ahead(broken())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="a bad row"):
        next(ahead)


def test_the_wait_for_items_is_counted_and_their_use_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def numbers() -> Iterator[int]:
        for number in range(2):
            now[0] += 1
            yield number
        now[0] += 3  # to find out that there is no other

    awaited = Awaited(numbers())
    for _ in awaited:
        now[0] += 10
    assert awaited.seconds == 1 + 1 + 3


def test_lanes_work_at_once_and_answer_in_order() -> None:
    both = Barrier(2, timeout=10)

    def work(number: int) -> int:
        both.wait()  # broken unless two of them are here together
        return -number

    assert list(Lanes(2)(work, range(6))) == [0, -1, -2, -3, -4, -5]


def test_no_more_is_begun_than_a_few_results_ahead() -> None:
    begun: list[int] = []
    results = Lanes(2)(begun.append, range(100))
    next(results)
    assert len(begun) <= 5


def test_an_error_in_a_lane_is_the_users() -> None:
    results = Lanes(2)(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_lanes_are_the_same_threads_again() -> None:
    lanes = Lanes(2)
    threads = {one for _ in range(5) for one in lanes(lambda _: get_ident(), range(4))}
    assert len(threads) <= 2
    assert get_ident() not in threads


def test_after_an_error_no_lane_still_works() -> None:
    ended: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("a bad row")
        time.sleep(0.2)
        ended.append(number)

    with pytest.raises(ValueError, match="a bad row"):
        list(Lanes(2)(work, [0, 1]))
    assert ended == [1]
