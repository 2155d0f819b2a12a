"""Faults of a release: one import tells them all, the first in full."""

from pathlib import Path

import pytest

from mnerqg.datasets.refusals import Refusals, refuse_line
from mnerqg.errors import DataError


def test_a_faulty_line_is_named_and_a_long_one_cut() -> None:
    with pytest.raises(DataError) as caught:
        refuse_line(Path("d/1.txt"), 3, "Ada\tB-NAME", "is wrong; mend it")
    assert str(caught.value) == "d/1.txt:3: 'Ada\\tB-NAME' is wrong; mend it"
    with pytest.raises(DataError, match=r"^1\.txt:3: 'a{80}…' is wrong$"):
        refuse_line(Path("1.txt"), 3, "a" * 81, "is wrong")


def told(*complaints: str) -> str:
    """What is told of complaints of which the first half is collected on its own and collected again."""
    outer, inner = Refusals(), Refusals()
    for complaint in complaints[: len(complaints) // 2]:
        with inner.collect():
            raise DataError(complaint)
    with outer.collect():
        inner.raise_collected()
    for complaint in complaints[len(complaints) // 2 :]:
        with outer.collect():
            raise DataError(complaint)
    with pytest.raises(DataError) as caught:
        outer.raise_collected()
    return str(caught.value)


def test_a_single_refusal_is_told_as_it_is() -> None:
    assert told("/d/1.xml:3: bad: very") == "/d/1.xml:3: bad: very"
    assert told("/d: no pictures", "/d: no pictures") == "/d: no pictures"


def test_of_several_refusals_the_first_is_told_and_the_places_of_nine_more() -> None:
    assert told("/d/1.xml:3: bad", "/d/1.txt:4: b: c", "/e/2.xml: a") == (
        "/d/1.xml:3: bad (and 2 more: 1.txt:4, 2.xml)"
    )
    places = ", ".join(f"1.txt:{line}" for line in range(2, 11))
    ten = [f"/d/1.txt:{line}: bad" for line in range(1, 11)]
    assert told(*ten) == f"/d/1.txt:1: bad (and 9 more: {places})"
    assert told(*ten, "/d/1.txt:11: bad") == f"/d/1.txt:1: bad (and 10 more: {places}, …)"


def test_nothing_refused_and_other_errors() -> None:
    refusals = Refusals()
    with refusals.collect():
        pass
    refusals.raise_collected()
    with pytest.raises(KeyError), refusals.collect():
        raise KeyError
