"""Text offsets in code points and in UTF-16 units, in which JavaScript counts: "😀" has one of the first and two of the
second."""

from itertools import accumulate
from typing import Literal

from mnerqg.schema import Span

Unit = Literal["utf-16", "code-points"]
UNITS: tuple[Unit, ...] = ("utf-16", "code-points")


def to_utf16(text: str, offset: int) -> int:
    """A place in `text`, in code points, in UTF-16 units."""
    return offset + sum(char > "\uffff" for char in text[:offset])


def from_utf16(text: str, offset: int) -> int | None:
    """A place in `text`, in UTF-16 units, in code points; None for one within a character or outside of the text."""
    units = accumulate((2 if char > "\uffff" else 1 for char in text), initial=0)
    return next((place for place, unit in enumerate(units) if unit == offset), None)


def read_span(
    text: str, start: int, end: int, kind: str, *, recorded: str | None, unit: Unit | None
) -> Span | str:
    """A span from offsets in one of both units, or the words that say why it is none.

    Args:
        text: of the post.
        start: of the span.
        end: exclusive.
        kind: the span's type.
        recorded: the words that the tool says it covers, line feeds as they are or as a backslash and an n.
        unit: of the offsets; None takes the one that gives `recorded`, and none where both do so in different places.
    """
    readings = [_read(text, start, end, one) for one in (UNITS if unit is None else (unit,))]
    spans = list(dict.fromkeys(places for places in readings if places is not None))
    if recorded is not None:
        spans = [places for places in spans if _as_recorded(text[slice(*places)]) == _as_recorded(recorded)]
    if not spans:
        said = "" if recorded is None else f" where {recorded!r} is said to stand"
        return f"[{start}:{end}] is no part of the text{said}"
    if len(spans) > 1:
        return f"[{start}:{end}] may count UTF-16 units or code points, and they differ here; say which with --offsets"
    return Span(*spans[0], kind)


def _read(text: str, start: int, end: int, unit: Unit) -> tuple[int, int] | None:
    begin, stop = (from_utf16(text, start), from_utf16(text, end)) if unit == "utf-16" else (start, end)
    return (
        (begin, stop) if begin is not None and stop is not None and 0 <= begin < stop <= len(text) else None
    )


def _as_recorded(words: str) -> str:
    return words.replace("\r", "\\n").replace("\n", "\\n")
