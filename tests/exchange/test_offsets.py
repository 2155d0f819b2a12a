import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.exchange.offsets import from_utf16, read_span, to_utf16
from mnerqg.schema import Span

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None)
@given(TEXTS, st.data())
def test_there_and_back(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    units = to_utf16(text, place)
    assert units == len(text[:place].encode("utf-16-le")) // 2
    assert from_utf16(text, units) == place


def test_places_that_are_none() -> None:
    assert [from_utf16("😀a", unit) for unit in range(-1, 5)] == [None, 0, None, 1, 2, None]


@settings(deadline=None)
@given(TEXTS.filter(bool), st.data())
def test_either_unit_is_known_by_the_words(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    recorded = text[start:end].replace("\n", "\\n").replace("\r", "\\n")
    for first, last in ((start, end), (to_utf16(text, start), to_utf16(text, end))):
        span = read_span(text, first, last, "PER", recorded=recorded, unit=None)
        # Where the same words stand in both places, and only there, nobody can tell.
        assert span == Span(start, end, "PER") or "--offsets" in str(span)
    known = read_span(text, start, end, "PER", recorded=None, unit="code-points")
    assert known == Span(start, end, "PER")


@pytest.mark.parametrize(
    ("start", "end", "recorded", "words"),
    [
        (3, 6, "Eve", "where 'Eve' is said to stand"),
        (2, 99, None, "is no part of the text"),
        (6, 3, None, "is no part of the text"),
        (3, 5, None, "say which with --offsets"),
        (1, 3, "aa", "say which with --offsets"),
    ],
)
def test_what_is_no_span(start: int, end: int, recorded: str | None, words: str) -> None:
    text = "😀aaaa" if recorded == "aa" else "😀 Ada of Rio"
    (start, end) = (2, 4) if recorded == "aa" else (start, end)
    assert words in str(read_span(text, start, end, "PER", recorded=recorded, unit=None))
