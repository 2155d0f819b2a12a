import io
import zipfile

import pytest
from PIL import Image

from mnerqg.inputs.picture_kinds import format_of, looks_like
from tests.pictures import encode


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("JPEG", "jpeg"),
        ("MPO", "jpeg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
    ],
)
def test_pictures_are_known_by_their_bytes(written: str, name: str) -> None:
    assert format_of(encode(Image.new("RGB", (4, 3)), written)) == name


def test_brands() -> None:
    def brands(*names: str) -> bytes:
        content = "".join([names[0], "\0\0\0\0", *names[1:]]).encode()
        return (8 + len(content)).to_bytes(4, "big") + b"ftyp" + content

    assert format_of(brands("mif1", "avif", "miaf")) == "avif"
    assert format_of(brands("avis")) == "avif"
    assert format_of(brands("heic", "mif1")) == "heic"
    assert format_of(brands("mif1", "heic")) == "heic"
    assert format_of(brands("msf1", "hevc")) == "heic"
    for video in (("isom", "mp42"), ("qt  ",), ("M4V ", "mp42")):
        assert format_of(brands(*video)) is None
        assert looks_like(brands(*video)) == "a video (MP4 or QuickTime)"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "an SVG drawing"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<SVG></SVG>', "an SVG drawing"),
        (b"  \n<!doctype html><title>404</title>", "an HTML page"),
        (b"<html><body>not found</body></html>", "an HTML page"),
        (b'<?xml version="1.0"?><html xmlns="x">', "an HTML page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b'{"error": "gone"}', "JSON"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\x1aE\xdf\xa3\x9fB\x86", "a video (Matroska or WebM)"),
        (b"RIFF\0\0\0\0AVI LIST", "a video (AVI)"),
        (b"\0\0\x01\xba!", "a video (MPEG)"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0", "a JPEG XL picture"),
        (b"\xff\x0a\x01\x02", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0", "a JPEG 2000 picture"),
        (b"\0\0\x01\0\x01\0\x20\x20", "an icon (ICO)"),
        (b"8BPS\0\x01", "a Photoshop document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document"),
        (zipped(), "a ZIP archive or an office document"),
        (b"\x1f\x8b\x08\0\0", "something compressed with gzip"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a pointer of Git LFS: the file itself was not fetched",
        ),
        (b"\0" * 5000, "nothing but zero bytes"),
        ("Seite nicht gefunden: größe".encode(), "text ('Seite nicht gefunden: größe')"),
        (("é" * 600).encode(), f"text ('{'é' * 20}')"),
        (b"BM is no bitmap", "text ('BM is no bitmap')"),
        (b"\x89\x12\x00\xff", "of no format that is known (it begins with 89 12 00 ff)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    assert format_of(data) is None
    assert looks_like(data) == words
