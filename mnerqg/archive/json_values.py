"""What the values of a JSON post become in the columns of an archive."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa

from mnerqg.config_jobs import ColumnType
from mnerqg.io.picture_text import BLANKS, read_picture_text

Picture = Literal["image", "image_uris", "image_uri"]
Kind = Literal["post_id", "text", Picture, ColumnType]

ARROW_TYPES: dict[Kind, pa.DataType] = {
    "post_id": pa.string(),
    "text": pa.large_string(),
    "image": pa.large_binary(),
    "image_uris": pa.list_(pa.string()),
    "image_uri": pa.string(),
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp[us]": pa.timestamp("us"),
    "date32": pa.date32(),
    "list<string>": pa.list_(pa.string()),
}


class UnfitError(Exception):
    """A value that its column does not take as it is; `usable` is what can be kept of it."""

    def __init__(self, words: str, usable: Any = None) -> None:
        super().__init__(words)
        self.usable = usable


class LostPicturesError(UnfitError):
    """An `UnfitError` of which pictures cannot be used: `reasons` has one for each of the post's, None where it can."""

    def __init__(self, reasons: Sequence[str | None], usable: Any = None) -> None:
        super().__init__("; ".join(filter(None, reasons)), usable)
        self.reasons = reasons


def _read_id(value: Any) -> str:
    return str(value) if described(value) == "a whole number" else _read_text(value, "text or a whole number")


def _read_text(value: Any, wanted: str = "text") -> str:
    if not isinstance(value, str):
        raise UnfitError(f"is {described(value)}, not {wanted}")
    if (usable := _encodable(value)) != value:
        raise UnfitError(_HALF_A_PAIR, usable)
    return value


def _read_texts(value: Any) -> list[str | None]:
    if not isinstance(value, list):
        raise UnfitError(f"is {described(value)}, not a list of texts")
    for one in value:
        if one is not None and not isinstance(one, str):
            raise UnfitError(f"is a list with {described(one)} in it, not of texts")
    usable = [None if one is None else _encodable(one) for one in value]
    if usable != value:
        raise UnfitError(_HALF_A_PAIR, usable)
    return usable


def _encodable(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read_image(value: Any) -> bytes | None:
    if isinstance(value, dict) and "bytes" in value:  # as Hugging Face's datasets write them
        value = value["bytes"]
    if not isinstance(value, str):
        raise LostPicturesError([f"is {described(value)}, not base64 text"])
    try:
        return read_picture_text(value) if value.strip(BLANKS) else None
    except ValueError as error:
        raise LostPicturesError([str(error)]) from None


def _read_uri(value: Any) -> str:
    if not isinstance(value, str):
        raise LostPicturesError([f"is {described(value)}, not text"])
    return _read_text(value)


def _read_uris(value: Any) -> list[str | None]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise LostPicturesError([f"is {described(value)}, not a list of texts"], [None])
    reasons = [
        None if one is None or isinstance(one, str) else f"has {described(one)} in it, not text"
        for one in value
    ]
    if any(reasons):
        raise LostPicturesError(reasons, [_encodable(one) if isinstance(one, str) else None for one in value])
    return _read_texts(value)


def _read_int(value: Any) -> int:
    # JSON knows one kind of number, and many a writer makes 3.0 of a 3 where another row has none.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnfitError(f"is {described(value)}, not a whole number (int64)")
    if not -(2**63) <= value < 2**63:
        raise UnfitError("is a whole number too large for int64")
    return value


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError(f"is {described(value)}, not a number (float64)")
    try:
        return float(value)
    except OverflowError:
        raise UnfitError("is a whole number too large for float64") from None


def _read_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnfitError(f"is {described(value)}, not true or false (bool)")
    return value


def _read_timestamp(value: Any) -> datetime:
    try:
        when = datetime.fromisoformat(_read_text(value, "the text of a time (timestamp[us])"))
        return when if when.tzinfo is None else when.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise UnfitError("is no time as ISO 8601 writes it, such as 2026-11-22T03:00:00Z") from None


def _read_date(value: Any) -> date:
    try:
        return date.fromisoformat(_read_text(value, "the text of a date (date32)"))
    except ValueError:
        raise UnfitError("is no date as ISO 8601 writes it, such as 2026-11-22") from None


READERS: dict[Kind, Callable[[Any], Any]] = {
    "post_id": _read_id,
    "text": _read_text,
    "image": _read_image,
    "image_uris": _read_uris,
    "image_uri": _read_uri,
    "string": _read_text,
    "int64": _read_int,
    "float64": _read_float,
    "bool": _read_bool,
    "timestamp[us]": _read_timestamp,
    "date32": _read_date,
    "list<string>": _read_texts,
}
"""From a parsed value that is not null to that of the column; they raise UnfitError. Of what is no text in a column
of text, `values_as_written` gives the text."""

_JSON = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def values_as_written(text: str) -> dict[str, str]:
    """The values of a JSON object, by key, each as the text that stands there: 1.10 stays 1.10.

    Args:
        text: what `json.loads` reads as an object.
    """
    values: dict[str, str] = {}
    place = _skip_space(text, text.index("{") + 1)
    while text[place] != "}":
        key, place = _JSON.raw_decode(text, place)
        start = _skip_space(text, _skip_space(text, place) + 1)  # beyond the colon
        _, place = _JSON.raw_decode(text, start)
        values[key] = text[start:place]
        place = _skip_space(text, place)
        if text[place] == ",":
            place = _skip_space(text, place + 1)
    return values


def _skip_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()


def described(value: Any) -> str:
    """What kind of JSON a value is, in words."""
    return _DESCRIPTIONS[type(value)]


_DESCRIPTIONS = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number with a fraction",
    str: "text",
    list: "a list",
    dict: "an object",
}
_HALF_A_PAIR = "has half a surrogate pair, now U+FFFD"
