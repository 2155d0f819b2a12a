import os
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from mnerqg.config_jobs import ImageLimits, PictureFormat
from mnerqg.inputs import picture_files
from mnerqg.inputs.images import decode, decode_letterbox
from mnerqg.inputs.picture_files import ImageProblem, load_picture
from tests.inputs.test_avif import claiming
from tests.pictures import chunk, encode, noisy, with_chunk, with_segment


def refusal(data: bytes, limits: ImageLimits | None = None) -> tuple[str, str]:
    with pytest.raises(ImageProblem) as caught:
        load_picture(data, limits or ImageLimits())
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


# ---- cut short -------------------------------------------------------------------------------------

CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "GIF": ("GIF", {"interlace": 0}),
    "WebP": ("WEBP", {"quality": 90}),
    "lossless": ("WEBP", {"lossless": True}),
    "BMP": ("BMP", {}),
}


@pytest.mark.parametrize("kind", CUTS)
def test_of_a_cut_picture_what_is_there_is_read(kind: str) -> None:
    file_format, options = CUTS[kind]
    data = encode(noisy(), file_format, **options)
    whole = decode(data).astype(int)
    assert load_picture(data, ImageLimits()).flaw is None
    canvas, place, flaw = decode_letterbox(data[: int(len(data) * 0.8)], 64)
    assert (place.width, place.height) == (64, 64)
    assert flaw is not None
    name = {"progressive": "JPEG", "lossless": "WebP"}.get(kind, kind)
    assert flaw.startswith(f"the {name} is damaged or cut short: ")
    rows = int(flaw.removesuffix(" of 64 rows are there").rpartition(" ")[2])
    assert rows == 64 if kind == "progressive" else 32 <= rows < 60
    there = slice(64 - rows, 64) if kind == "BMP" else slice(rows)  # a BMP begins at the bottom
    alike = np.abs(canvas.astype(int) - whole)[there]
    # Of a JPEG the last row of blocks may lack its colours.
    assert alike.mean() < 12 if kind in ("progressive", "JPEG") else alike.mean() < 1
    if kind not in ("progressive", "GIF"):  # what is not there is gray, of a palette some colour
        gray = canvas[:2] if kind == "BMP" else canvas[-2:]
        assert np.abs(gray.astype(int) - 128).max() <= 1


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_less_than_half_is_unreadable(kind: str, share: float) -> None:
    file_format, options = CUTS[kind]
    data = encode(noisy(256, 256), file_format, **options)
    if kind == "progressive":  # the first scan has all of it, coarsely
        data = data[: data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)]
    status, message = refusal(data[: int(len(data) * share)])
    assert status == "unreadable"
    assert "is damaged" in message


@pytest.mark.parametrize("missing", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("kind", CUTS)
def test_a_few_bytes_less(kind: str, missing: int) -> None:
    file_format, options = CUTS[kind]
    data = encode(noisy(), file_format, **options)
    loaded = load_picture(data[:-missing], ImageLimits())
    if loaded.flaw is None:
        assert kind in ("PNG", "GIF")  # whose last bytes hold no pixels
    else:
        assert loaded.flaw.endswith("of 64 rows are there")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_cut_jpeg_of_every_mode_and_drafted(mode: str) -> None:
    data = encode(noisy(512, 512).convert(mode), "JPEG")
    canvas, place, flaw = decode_letterbox(data[:-1000], 64)
    assert (place.width, place.height, canvas.shape) == (512, 512, (64, 64, 3))
    assert flaw is not None
    assert decode(data[:-1000]).shape == (512, 512, 3)


@pytest.mark.parametrize("file_format", ["TIFF", "AVIF"])
def test_other_formats_are_read_whole_or_not_at_all(file_format: str) -> None:
    data = encode(noisy(), file_format)
    for share in (0.05, 0.5, 0.9):
        assert refusal(data[: int(len(data) * share)])[0] == "unreadable"


# ---- what viewers pass over ------------------------------------------------------------------------


def png() -> bytes:
    return encode(noisy(), "PNG")


@pytest.mark.parametrize(
    "name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"gAMA", b"pHYs", b"abCd"]
)
def test_a_damaged_chunk_that_no_pixel_needs(name: bytes) -> None:
    loaded = load_picture(with_chunk(png(), chunk(name, b"garbage\0\0x", check=1)), ImageLimits())
    assert (loaded.size, loaded.flaw) == ((64, 64), None)


def test_texts_of_any_size() -> None:
    """As drawing programs put whole workflows beside the pixels: Pillow refuses a text of more than 1 MiB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", os.urandom(750_000).hex(), zip=True)
    info.add_itxt("more", "x" * 2_000_000, zip=True)
    np.testing.assert_array_equal(decode(encode(noisy(), "PNG", pnginfo=info)), decode(png()))
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 80_000_000, 1))
    assert decode(with_chunk(png(), bomb)).shape == (64, 64, 3)


def test_a_png_in_pieces_and_with_what_follows() -> None:
    data = png()
    place = data.index(b"IDAT")
    pixels = data[place + 4 : data.index(b"IEND") - 8]
    pieces = b"".join(chunk(b"IDAT", pixels[start : start + 7]) for start in range(0, len(pixels), 7))
    whole = data[: place - 4] + pieces + chunk(b"IDAT", b"") + data[data.index(b"IEND") - 4 :]
    np.testing.assert_array_equal(decode(whole + b"trailing garbage" * 100), decode(data))
    assert refusal(data.replace(b"IHDR", b"IHDr"))[1] == "the header of the PNG is damaged"


def test_png_orientation_and_transparency_stay() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_picture(encode(noisy(), "PNG", exif=exif), ImageLimits()).orientation == 6
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encode(palette, "PNG", transparency=1)).min() == 255


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (0xE2, b"ICC_PROFILE\0\x01\x07garbage"),
        (0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\x00"),
        (0xEE, b"Adobe\0"),
        (0xE0, b"JFIF\0"),
        (0xFE, b"\xff\xfe" * 1000),
    ],
)
def test_a_jpeg_with_broken_segments(kind: int, content: bytes) -> None:
    data = with_segment(encode(noisy(), "JPEG"), kind, content)
    assert load_picture(data, ImageLimits()).flaw is None


@pytest.mark.parametrize("file_format", ["AVIF", "WEBP", "TIFF"])
def test_broken_exif_and_profiles_in_other_formats(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encode(noisy(), file_format, exif=exif)
    place = data.find(b"MM\0*", 8)
    broken = data if place < 0 else data[:place] + b"garb" + data[place + 4 :]
    assert (place > 0) == (file_format != "TIFF")
    assert load_picture(broken, ImageLimits()).flaw is None
    assert load_picture(encode(noisy(), file_format, icc_profile=b"garbage"), ImageLimits()).flaw is None


def test_what_follows_a_picture() -> None:
    garbage = b"\0\r\n--boundary--" + os.urandom(100)
    for file_format in ("JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        data = encode(noisy(), file_format)
        np.testing.assert_array_equal(decode(data + garbage), decode(data))
    gif = encode(noisy(), "GIF")
    for trailer in (b"", b"\0", b"<html>"):
        assert load_picture(gif[:-1] + trailer, ImageLimits()).flaw is None


def test_avif_and_animations_as_viewers_show_them() -> None:
    red = Image.new("RGB", (40, 30), "red")
    for options in ({}, {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "blue")]}):
        pixels = decode(encode(red, "AVIF", **options))
        assert pixels.shape == (30, 40, 3)
        assert pixels[5, 5, 0] > 200
        assert pixels[5, 5, 2] < 60
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    assert decode(encode(clear, "AVIF")).min() > 250
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(encode(red, "AVIF", exif=turned)).shape == (40, 30, 3)


# ---- formats ---------------------------------------------------------------------------------------


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode(Image.new("RGB", (90, 60), (200, 60, 40)), "HEIF")
    pixels = decode(data)
    assert pixels.shape == (60, 90, 3)
    assert np.abs(pixels.astype(int) - (200, 60, 40)).max() < 8
    turned, exif = noisy(90, 60), Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    assert decode(encode(turned, "HEIF")).shape == (90, 60, 3)
    assert refusal(data, ImageLimits(max_pixels=90 * 60 - 1)) == (
        "too_large", "the picture has 90 x 60 pixels, of at most 5,399",
    )  # fmt: skip
    assert refusal(data, ImageLimits(max_bytes=len(data) - 1))[0] == "too_large"
    status, message = refusal(claiming(encode(Image.new("RGB", (900, 600)), "HEIF"), 9, 6))
    assert (status, "exceeds the maximum image size" in message) == ("unreadable", True)
    assert refusal(data[:-20])[0] == "unreadable"


def test_heic_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    picture_files._reads_heic.cache_clear()
    data = struct.pack(">I", 16) + b"ftypheic\0\0\0\0"
    words = "the picture is HEIC, which is read where pillow-heif is installed"
    assert refusal(data) == ("unreadable", words)
    picture_files._reads_heic.cache_clear()


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"])
def test_fewer_formats(name: PictureFormat) -> None:
    data = encode(Image.new("RGB", (4, 3)), name.upper())
    others: tuple[PictureFormat, ...] = ("jpeg", "png") if name not in ("jpeg", "png") else ("gif",)
    assert load_picture(data, ImageLimits(formats=(name,))).size == (4, 3)
    status, message = refusal(data, ImageLimits(formats=others))
    shown = "WebP" if name == "webp" else name.upper()
    assert (status, message) == (
        "unreadable",
        f"the picture is {shown}, and pictures.formats allows only {', '.join(others)}",
    )


def test_what_is_no_picture() -> None:
    assert refusal(b"") == ("unreadable", "the picture has no bytes")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    assert refusal(svg) == ("unreadable", "not a picture that is read, but an SVG drawing")


# ---- bounds ----------------------------------------------------------------------------------------


def test_an_avif_that_says_less_than_it_holds() -> None:
    data = claiming(encode(Image.new("RGB", (400, 300)), "AVIF", speed=10), 40, 30)
    assert refusal(data, ImageLimits(max_pixels=400 * 300 - 1)) == (
        "too_large", "the picture has 400 x 300 pixels, of at most 119,999",
    )  # fmt: skip
    assert load_picture(data, ImageLimits(max_pixels=400 * 300)).size == (40, 30)


def test_pixels_out_of_nothing() -> None:
    """A file of kilobytes does not make a worker take hundreds of megabytes."""
    for file_format in ("PNG", "AVIF", "GIF", "WEBP"):
        options: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"speed": 10}}.get(file_format, {})
        flat = encode(
            Image.new("1", (4000, 3000)).convert("RGB" if file_format == "AVIF" else "L"),
            file_format,
            **options,
        )
        status, message = refusal(flat[:7000])
        assert status == "too_large"
        assert message.startswith("the picture has 4000 x 3000 pixels in only ")
        assert message.endswith(" bytes: it is nearly empty, or a bomb")
    small = encode(Image.new("L", (3000, 3000)), "PNG")
    assert load_picture(small, ImageLimits()).size == (3000, 3000)


def test_a_jpeg_of_countless_scans() -> None:
    """Each goes over all pixels: 20 MB of them over 50 million pixels would take an hour."""
    data = encode(noisy(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    assert refusal(many)[0] == "too_large"
    # What looks like one within a segment or after the end is none.
    hidden = with_segment(data, 0xFE, b"\xff\xda" * 1000) + b"\xff\xda" * 1000
    assert load_picture(hidden, ImageLimits()).flaw is None
    segments = data[:2] + b"\xff\xfe\0\2" * 20_000 + data[2:]
    assert refusal(segments)[0] == "too_large"


def test_a_tiff_of_countless_tiles() -> None:
    """A strip for every entry of a table: all may be the same, half of the picture."""
    strips = 5000
    rows = b"\0" * 64 * 64
    tags = [
        (256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, strips, 8 + len(rows)), (277, 3, 1, 1), (278, 4, 1, 32), (279, 4, strips, 8 + len(rows) + 4 * strips),
    ]  # fmt: skip
    table = struct.pack(f"<{strips}I", *[8] * strips) + struct.pack(f"<{strips}I", *[2048] * strips)
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    data = struct.pack("<2sHI", b"II", 42, 8 + len(rows) + len(table)) + rows + table + ifd
    status, message = refusal(data)
    assert status == "unreadable"
    assert "over and over" in message


def test_no_setting_of_pillow_is_touched() -> None:
    load_picture(encode(noisy(), "JPEG")[:-50], ImageLimits())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
