from collections.abc import Iterator
from threading import Event

import pytest

from mnerqg.inputs.ahead import made_ahead


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
