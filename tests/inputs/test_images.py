import io
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.images import (
    CANVAS_PADDING_RGB,
    Letterbox,
    decode,
    decode_letterbox,
    decode_small,
    letterbox,
)
from mnerqg.inputs.picture_files import ImageProblem

PADDING = np.rint(CANVAS_PADDING_RGB)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without symmetry: red grows to the right, green downwards; the left top is blue."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    blue = np.where((x < 100) & (y < 60), 255, 0)
    return Image.fromarray(np.stack([x, y, blue], axis=-1).astype(np.uint8))


def problem(data: bytes, limits: ImageLimits | None = None) -> ImageProblem:
    with pytest.raises(ImageProblem) as caught:
        decode(data, limits)
    with pytest.raises(ImageProblem) as again:
        decode_letterbox(data, 64, limits)
    with pytest.raises(ImageProblem) as small:
        decode_small(data, 64, limits)
    for other in (again, small):
        assert (other.value.status, str(other.value)) == (caught.value.status, str(caught.value))
    assert "\n" not in str(caught.value)
    return caught.value


# ---- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 98, "subsampling": 0}, 12),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 12),
    ],
)
def test_formats(file_format: str, options: dict[str, Any], tolerance: int) -> None:
    pixels = decode(encode(scene(), file_format, **options))
    assert (pixels.shape, pixels.dtype.name) == ((32, 48, 3), "uint8")
    assert np.abs(pixels.astype(int) - np.asarray(scene()).astype(int)).max() <= tolerance
    pixels[0, 0] = 1  # a copy of its own


def test_mpo_is_read_as_its_first_picture() -> None:
    data = encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (48, 32), "white")])
    assert np.abs(decode(data).astype(int) - np.asarray(scene()).astype(int)).mean() < 10
    assert decode_letterbox(data, 16)[1] == Letterbox(48, 32, 16)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, *range(1, 9), 9, 77])
def test_exif_orientation(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(scene(), file_format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.shape == ((48, 32, 3) if orientation in (5, 6, 7, 8) else (32, 48, 3))
    canvas, place, _ = decode_letterbox(data, 24)
    assert place == Letterbox(pixels.shape[1], pixels.shape[0], 24)
    difference = np.abs(canvas.astype(int) - letterbox(expected, 24).astype(int))
    if file_format == "JPEG":  # decoded at half the size, which is sharper at edges
        assert difference.mean() < 3
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_small_pictures_are_upright_and_say_their_full_size(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(scene(480, 320), file_format, exif=exif)
    upright = Image.fromarray(decode(data))
    pixels, size = decode_small(data, 60)
    assert size == upright.size
    assert pixels.shape == ((60, 40, 3) if orientation >= 5 else (40, 60, 3))
    expected = np.asarray(upright.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR))
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 3
    np.testing.assert_array_equal(decode_small(data, 4000)[0], decode(data))


def test_broken_exif_is_no_orientation() -> None:
    data = encode(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(data).shape == (32, 48, 3)


def test_cmyk() -> None:
    pixels = decode(encode(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "JPEG"))
    assert pixels.shape == (3, 4, 3)
    assert pixels[0, 0, 0] > 230
    assert pixels[0, 0, 1:].max() < 30
    assert decode(encode(Image.new("CMYK", (4, 3), (0, 0, 0, 255)), "TIFF")).max() == 0


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray(mode: str) -> None:
    white = decode(encode(Image.new(mode, (4, 3), 255), "PNG"))
    assert white.shape == (3, 4, 3)
    assert white.min() == 255


def test_transparency_is_laid_on_white() -> None:
    clear, half = (0, 0, 0, 0), (0, 0, 0, 128)
    assert decode(encode(Image.new("RGBA", (4, 3), clear), "PNG")).min() == 255
    assert decode(encode(Image.new("RGBA", (4, 3), half), "PNG"))[0, 0].tolist() == [127] * 3
    assert decode(encode(Image.new("RGBA", (4, 3), clear), "WEBP", lossless=True)).min() == 255
    assert decode(encode(Image.new("LA", (4, 3), (0, 0)), "PNG")).min() == 255
    assert decode(encode(Image.new("RGB", (4, 3), "red"), "PNG", transparency=(255, 0, 0))).min() == 255
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encode(palette, "PNG"))[0, 0].tolist() == [10, 20, 30]
    assert decode(encode(palette, "PNG", transparency=1)).min() == 255
    assert decode(encode(palette, "PNG", transparency=bytes([255, 0]))).min() == 255
    assert decode(encode(palette, "GIF", transparency=1)).min() == 255


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(file_format: str) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], np.uint16)
    pixels = decode(encode(Image.fromarray(values), file_format))
    assert pixels[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    dark = decode(encode(Image.fromarray(np.full((2, 2), 1000, np.uint16)), file_format))
    assert dark.max() == 4


def test_32_bit_and_float_gray() -> None:
    whole = np.array([[0, 32768, 65535]], np.int32)
    assert decode(encode(Image.fromarray(whole), "TIFF"))[0, :, 1].tolist() == [0, 128, 255]
    unit = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    assert decode(encode(Image.fromarray(unit), "TIFF"))[0, :, 1].tolist() == [0, 128, 255, 0]
    bright = np.array([[0, 500_000, 1_000_000, np.inf]], np.float32)
    assert decode(encode(Image.fromarray(bright), "TIFF"))[0, :3, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animations_give_the_first_frame(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50)
    pixels = decode(data)
    assert pixels.shape == (6, 8, 3)
    assert pixels[0, 0, 0] > 240
    assert pixels[0, 0, 1:].max() < 10


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_damaged_pictures_give_pixels_or_a_problem(garbage: bytes, position: int) -> None:
    data = encode(scene(), "PNG")
    data = data[:position] + garbage + data[position + len(garbage) :]
    with suppress(ImageProblem):  # anything else that is raised fails the test
        assert decode(data).ndim == 3


def test_too_large_is_known_before_decoding() -> None:
    data = encode(scene(), "PNG")
    assert problem(data, ImageLimits(max_bytes=len(data) - 1)).status == "too_large"
    assert decode(data, ImageLimits(max_bytes=len(data), max_pixels=48 * 32)).shape == (32, 48, 3)
    found = problem(data, ImageLimits(max_pixels=48 * 32 - 1))
    assert (found.status, str(found)) == ("too_large", "the picture has 48 x 32 pixels, of at most 1,535")


def test_decompression_bombs_are_too_large() -> None:
    for side in (9_000, 12_000, 60_000):  # below Pillow's warning, above it, above its error
        header = bytearray(encode(Image.new("1", (8, 8)), "BMP"))
        header[18:26] = side.to_bytes(4, "little") * 2
        with pytest.warns(Image.DecompressionBombWarning) if side == 12_000 else nullcontext():
            assert problem(bytes(header)).status == "too_large"


# ---- letterbox -------------------------------------------------------------------------------------


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([32, 256, 416]), st.data())
@settings(max_examples=300, deadline=None)
def test_boxes_round_trip_within_a_pixel(width: int, height: int, side: int, data: st.DataObject) -> None:
    place = Letterbox(width, height, side)
    corners = [data.draw(st.floats(0, limit)) for limit in (width, height)] + [width, height]
    box_px = np.array([corners, [0, 0, width, height]])
    canvas = place.to_canvas(box_px)
    np.testing.assert_allclose(place.to_picture(canvas), box_px, atol=1e-6)
    assert canvas.min() >= 0
    assert canvas.max() <= side + 1e-6
    left, top, right, bottom = canvas[1]
    assert (right - left, bottom - top) == pytest.approx((place.resized_width, place.resized_height))
    assert max(place.resized_width, place.resized_height) == side
    assert abs((left + right) / 2 - side / 2) <= 0.5 + 1e-6
    assert abs((top + bottom) / 2 - side / 2) <= 0.5 + 1e-6
    assert np.abs(canvas[1, 2:] - canvas[1, :2] - np.array([width, height]) * place.ratio).max() <= 1 + 1e-6


def test_boxes_off_the_picture_are_clipped() -> None:
    place = Letterbox(400, 200, 256)
    assert place.to_picture(np.array([[-50.0, 0.0, 300.0, 256.0]])).tolist() == [[0, 0, 400, 200]]
    assert place.to_canvas(np.zeros((0, 4))).shape == (0, 4)
    assert place.to_picture(np.zeros((0, 4), np.float32)).shape == (0, 4)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 65]))
@settings(max_examples=60, deadline=None)
def test_pixels_lie_where_boxes_say(width: int, height: int, side: int) -> None:
    place = Letterbox(width, height, side)
    canvas = letterbox(np.zeros((height, width, 3), np.uint8), side)
    assert (canvas.shape, canvas.dtype.name) == ((side, side, 3), "uint8")
    ys, xs = np.nonzero((canvas == 0).all(axis=-1))
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(place.to_canvas(np.array([[0, 0, width, height]]))[0], found)
    outside = (canvas != 0).any(axis=-1)
    assert (canvas[outside] == PADDING).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6, 3, 8])
def test_a_box_drawn_in_the_picture_is_found_on_the_canvas(file_format: str, orientation: int) -> None:
    """The whole way: stored pixels, orientation, draft, resize, paste, against the same box in numbers."""
    upright = np.zeros((731, 1003, 3), np.uint8)
    box_px = np.array([[301.0, 202.0, 640.0, 555.0]])
    upright[202:555, 301:640] = 255
    image = Image.fromarray(upright)
    back = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
    stored = image.transpose(back[orientation]) if orientation in back else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    canvas, place, _ = decode_letterbox(encode(stored, file_format, exif=exif), 256)
    assert place == Letterbox(1003, 731, 256)
    left, top, right, bottom = place.to_canvas(box_px)[0]
    inside = canvas[:, :, 0].astype(float)[
        place.offset_y : place.offset_y + place.resized_height,
        place.offset_x : place.offset_x + place.resized_width,
    ]
    # Where the profile crosses half, to a fraction of a pixel: the area of the white, row by row.
    columns, rows = inside.sum(1).max() / 255, inside.sum(0).max() / 255
    assert columns == pytest.approx(right - left, abs=0.5)
    assert rows == pytest.approx(bottom - top, abs=0.5)
    ys, xs = np.nonzero(inside > 127)
    found = [xs.min() + place.offset_x, ys.min() + place.offset_y]
    assert found == pytest.approx([left, top], abs=1)


def test_draft_agrees_with_full_decoding() -> None:
    data = encode(scene(1999, 1501), "JPEG", quality=95)
    canvas, place, _ = decode_letterbox(data, 256)
    assert place == Letterbox(1999, 1501, 256)
    full = letterbox(decode(data), 256)
    assert np.abs(canvas.astype(int) - full.astype(int)).mean() < 1


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000), (1, 4000), (3, 2)])
def test_extreme_sizes(file_format: str, size: tuple[int, int]) -> None:
    canvas, place, _ = decode_letterbox(encode(Image.new("RGB", size, "black"), file_format), 256)
    assert (place.width, place.height) == size
    assert canvas.shape == (256, 256, 3)
    black = (canvas < 10).all(axis=-1)
    assert black.sum() == place.resized_width * place.resized_height
    assert min(place.resized_width, place.resized_height) >= 1
    box_px = np.array([[0.0, 0.0, *size]])
    np.testing.assert_allclose(place.to_picture(place.to_canvas(box_px)), box_px, atol=1e-9)
