"""Encoded pictures to upright RGB arrays, and the square letterbox the model sees. All pure functions.

A picture is [H, W, 3] uint8 RGB, EXIF orientation applied, as a viewer shows it. The canvas is
[side, side, 3]. Boxes are [N, 4] floats x_min, y_min, x_max, y_max, x to the right, y down: `_px` in the
picture, `_canvas` in the letterbox.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mnerqg.config_jobs import ImageLimits
from mnerqg.errors import one_line

CANVAS_PADDING_RGB = (123.7, 116.3, 103.5)
"""The colour around the picture, as in FA-VG; on the uint8 canvas it is rounded."""

# Every further format is a further decoder that strangers' bytes reach.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.floating[Any]]


class ImageProblem(Exception):  # noqa: N818 - a finding about the data, kept as its status
    """A picture that cannot be used: `status` is 'unreadable' or 'too_large', the message says why."""

    def __init__(self, status: Literal["unreadable", "too_large"], message: str) -> None:
        super().__init__(message)
        self.status: Literal["unreadable", "too_large"] = status


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an upright picture of `width` x `height` pixels lies on the canvas of `side` x `side`.

    The long edge fills the canvas and the picture is centred. Both edges are rounded to whole pixels, so the
    scales of x and y differ a little from `ratio`; boxes are moved by the real scales, as the pixels are.
    """

    width: int
    height: int
    side: int

    @property
    def ratio(self) -> float:
        """The nominal scale, side / max(height, width)."""
        return self.side / max(self.height, self.width)

    @property
    def resized_width(self) -> int:
        return max(1, round(self.width * self.ratio))

    @property
    def resized_height(self) -> int:
        return max(1, round(self.height * self.ratio))

    @property
    def offset_x(self) -> int:
        return (self.side - self.resized_width) // 2

    @property
    def offset_y(self) -> int:
        return (self.side - self.resized_height) // 2

    def to_canvas(self, xyxy_px: Boxes) -> npt.NDArray[np.float64]:
        """[N, 4] boxes of the picture, in pixels -> [N, 4] on the canvas."""
        return np.asarray(xyxy_px, np.float64) * self._scale() + self._offset()

    def to_picture(self, xyxy_canvas: Boxes) -> npt.NDArray[np.float64]:
        """[N, 4] boxes on the canvas -> [N, 4] in pixels of the picture, clipped to it."""
        xyxy_px = (np.asarray(xyxy_canvas, np.float64) - self._offset()) / self._scale()
        return np.clip(xyxy_px, 0, np.array([self.width, self.height] * 2, np.float64))

    def _scale(self) -> npt.NDArray[np.float64]:
        return np.array([self.resized_width / self.width, self.resized_height / self.height] * 2, np.float64)

    def _offset(self) -> npt.NDArray[np.float64]:
        return np.array([self.offset_x, self.offset_y] * 2, np.float64)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A picture as stored, not yet upright, of the full `size` (width, height).

    `box` is the part of `image`, in the pixels of `image`, that shows the picture.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    orientation: int


def decode(data: bytes, limits: ImageLimits | None = None) -> Pixels:
    """The encoded picture as [H, W, 3] uint8 RGB, upright.

    Of an animation the first frame; transparency is laid on white. Raises ImageProblem; 'too_large' is found
    before anything is decoded.
    """
    decoded = _decode(data, limits or ImageLimits(), side=None)
    return np.array(_upright(decoded.image, decoded.orientation), np.uint8)


def letterbox(pixels: Pixels, side: int) -> Pixels:
    """An upright picture [H, W, 3] uint8 on its canvas [side, side, 3] uint8, placed as `Letterbox` says."""
    place = Letterbox(width=pixels.shape[1], height=pixels.shape[0], side=side)
    size = place.resized_width, place.resized_height
    return _paste(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), place)


def decode_letterbox(data: bytes, side: int, limits: ImageLimits | None = None) -> tuple[Pixels, Letterbox]:
    """The encoded picture on its canvas [side, side, 3] uint8, and where it lies there.

    A large JPEG is decoded at 1/2, 1/4 or 1/8, never below the size it has on the canvas. Raises
    ImageProblem as `decode`.
    """
    decoded = _decode(data, limits or ImageLimits(), side)
    width, height = decoded.size
    place = Letterbox(height, width, side) if decoded.orientation >= 5 else Letterbox(width, height, side)
    stored = Letterbox(width, height, side)
    # Turned after resizing: fewer pixels to turn, and `box` holds in the stored frame only.
    small = decoded.image.resize(
        (stored.resized_width, stored.resized_height), Image.Resampling.BILINEAR, box=decoded.box
    )
    return _paste(_upright(small, decoded.orientation), place), place


def decode_small(data: bytes, side: int, limits: ImageLimits | None = None) -> tuple[Pixels, tuple[int, int]]:
    """The encoded picture as [h, w, 3] uint8 RGB, upright, no edge longer than `side`; and its full width and height.

    A small picture stays as large as it is. Raises ImageProblem as `decode`.
    """
    decoded = _decode(data, limits or ImageLimits(), side)
    width, height = decoded.size
    ratio = min(1.0, side / max(width, height))
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    small = decoded.image.resize(size, Image.Resampling.BILINEAR, box=decoded.box)
    upright = np.array(_upright(small, decoded.orientation), np.uint8)
    return upright, (height, width) if decoded.orientation >= 5 else (width, height)


def decode_region(
    data: bytes, side: int, limits: ImageLimits, xyxy_px: tuple[float, float, float, float]
) -> tuple[Pixels, Letterbox]:
    """A part of the upright picture on its canvas, and where it lies there: `Letterbox` is then that of the part.

    At least one pixel of the picture is shown, whatever the box. Raises ImageProblem as `decode`.
    """
    pixels = decode(data, limits)
    height, width, _ = pixels.shape
    left, top = min(max(int(xyxy_px[0]), 0), width - 1), min(max(int(xyxy_px[1]), 0), height - 1)
    right, bottom = (
        min(max(math.ceil(xyxy_px[2]), left + 1), width),
        min(max(math.ceil(xyxy_px[3]), top + 1), height),
    )
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    return letterbox(part, side), Letterbox(right - left, bottom - top, side)


def _paste(image: Image.Image, place: Letterbox) -> Pixels:
    padding = np.rint(CANVAS_PADDING_RGB).astype(np.uint8)
    canvas = np.empty((place.side, place.side, 3), np.uint8)
    canvas[:] = padding
    top, left = place.offset_y, place.offset_x
    canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
    return canvas


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _decode(data: bytes, limits: ImageLimits, side: int | None) -> _Decoded:
    if len(data) > limits.max_bytes:
        raise ImageProblem(
            "too_large", f"the picture has {len(data):,} bytes, of at most {limits.max_bytes:,}"
        )
    if not data:
        raise ImageProblem("unreadable", "the picture has no bytes")
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                raise ImageProblem(
                    "too_large",
                    f"the picture has {width} x {height} pixels, of at most {limits.max_pixels:,}",
                )
            drafted = _draft(image, side) if side else None
            image.load()
            # Pillow turns a TIFF itself while loading: size and orientation are right only now.
            size = (width, height) if drafted else image.size
            box = drafted or (0.0, 0.0, float(size[0]), float(size[1]))
            return _Decoded(_to_rgb(image), box, size, _orientation(image))
    except ImageProblem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem("too_large", one_line(error)) from error
    except UnidentifiedImageError as error:
        raise ImageProblem("unreadable", f"not a picture of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # decoders raise nearly anything on broken input
        raise ImageProblem("unreadable", one_line(error)) from error


def _draft(image: Image.Image, side: int) -> tuple[float, float, float, float] | None:
    """Lets a JPEG be decoded small. Gives the part of the small image that shows the picture, else None."""
    place = Letterbox(*image.size, side)
    drafted = image.draft(None, (place.resized_width, place.resized_height))
    return drafted[1] if drafted else None


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_gray(image)
    return image.convert("RGB")


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits or floats to RGB, scaled; Pillow's own conversion clips at 255."""
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
    white = 65535.0
    if not image.mode.startswith("I;16"):
        # These modes do not say what white is: the smallest customary value that holds the brightest pixel.
        brightest = float(values.max())
        customary = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((value for value in customary if brightest <= value), brightest)
    gray = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
