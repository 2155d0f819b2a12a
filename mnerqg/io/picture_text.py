"""Pictures that stand as text in the posts themselves: base64 as encoders of all languages write it, and data URIs."""

import base64
import re
import urllib.parse

BLANKS = "".join(map(chr, range(0x21))) + "\x7f\x85\xa0\u2028\u2029\u200b\ufeff"
"""What may cling to the ends of a value: control characters, blanks and byte order marks."""

_DATA_URI = re.compile(r"data:([^,]*),", re.IGNORECASE)
_PYTHON_BYTES = re.compile(r"""b?(["'])(.*)\1""", re.DOTALL)
_HEX = re.compile(r"(?:\\x|0x)((?:[0-9A-Fa-f]{2})+)")
_TO_STANDARD = str.maketrans("-_", "+/")


def is_data_uri(text: str) -> bool:
    return _DATA_URI.match(text.lstrip(BLANKS)) is not None


def read_picture_text(text: str) -> bytes:
    """The bytes that a text stands for.

    Read are base64 of both alphabets, with or without padding and line breaks, as a data URI, with the quotes of a
    Python literal around it, and PostgreSQL's `\\x` with hexadecimal digits.

    Raises:
        ValueError: it is none of these; the message goes on from the name of the column.
    """
    text = text.strip(BLANKS)
    if found := _DATA_URI.match(text):
        content = text[found.end() :]
        if not found[1].lower().replace(" ", "").endswith(";base64"):
            return urllib.parse.unquote_to_bytes(content)
        text = urllib.parse.unquote(content)
    if found := _PYTHON_BYTES.fullmatch(text):
        text = found[2]
    if found := _HEX.fullmatch(text):
        return bytes.fromhex(found[1])
    return _read_base64(text)


def _read_base64(text: str) -> bytes:
    pieces = text.split()
    widths = {len(piece) for piece in pieces[:-1]}
    if len(widths) > 1 and any(width % 4 for width in widths):
        raise ValueError("is not base64, but words")
    digits = "".join(pieces).rstrip("=").translate(_TO_STANDARD)
    if other := re.search(r"[^A-Za-z0-9+/]", digits):
        raise ValueError(f"is not base64: it has {other[0]!r} at digit {other.start() + 1:,}")
    if len(digits) % 4 == 1:  # no encoder ends so: the digit's companions were cut off
        digits = digits[:-1]
    return base64.b64decode(digits + "=" * (-len(digits) % 4))
