import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnerqg.io.picture_text import is_data_uri, read_picture_text

DATA = bytes(range(256)) * 3 + b"\xfb\xff\xfe"
STANDARD = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        STANDARD,
        base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
        " ".join(STANDARD[start : start + 64] for start in range(0, len(STANDARD), 64)),
        "\n".join(STANDARD[start : start + 61] for start in range(0, len(STANDARD), 61)),
        f"\ufeff \t{STANDARD}\n\0",
        base64.urlsafe_b64encode(DATA).decode(),
        base64.urlsafe_b64encode(DATA).decode().rstrip("="),
        f"data:image/jpeg;base64,{STANDARD}",
        f"DATA:image/svg+xml;charset=utf-8; base64,{STANDARD}",
        f"data:;base64,{base64.encodebytes(DATA).decode()}",
        "data:image/png;base64," + STANDARD.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        f"b'{STANDARD}'",
        f'"{STANDARD}"',
        f"\\x{DATA.hex()}",
        f"0x{DATA.hex().upper()}",
    ],
    ids=lambda text: text[:12],
)
def test_every_encoding(text: str) -> None:
    assert read_picture_text(text) == DATA


@given(st.binary(), st.booleans(), st.booleans(), st.integers(1, 90))
def test_what_is_written_is_read(data: bytes, is_safe: bool, is_padded: bool, width: int) -> None:
    text = (base64.urlsafe_b64encode if is_safe else base64.b64encode)(data).decode()
    text = text if is_padded else text.rstrip("=")
    wrapped = "\n".join(text[start : start + width] for start in range(0, len(text), width))
    assert read_picture_text(wrapped) == data


def test_a_text_that_was_cut_is_read_as_far_as_it_goes() -> None:
    text = base64.b64encode(os.urandom(99)).decode()
    for end in range(len(text)):
        assert len(read_picture_text(text[:end])) == end * 6 // 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no picture at all", "is not base64, but words"),
        ("images/1.jpg", "is not base64: it has '.' at digit 9"),
        ("https://example.com/a.jpg", "is not base64: it has ':' at digit 6"),
        ("größe", "is not base64: it has 'ö' at digit 3"),
        ("AAAA=AAA", "is not base64: it has '=' at digit 5"),
        ("data:image/png;base64,(", "is not base64: it has '(' at digit 1"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="is not base64") as caught:
        read_picture_text(text)
    assert str(caught.value) == words


def test_data_uris() -> None:
    assert read_picture_text("data:image/svg+xml,%3Csvg/%3E") == b"<svg/>"
    assert read_picture_text("data:,") == b""
    assert is_data_uri(" \ufeffData:image/png;base64,AAAA")
    for other in ("database/1.jpg", "data:image", "x data:,a", "https://x/?data:,"):
        assert not is_data_uri(other)
