"""Encoded pictures to upright RGB arrays, and the square letterbox the model sees. All pure functions.

A picture is [H, W, 3] uint8 RGB, EXIF orientation applied, as a viewer shows it. The canvas is
[side, side, 3]. Boxes are [N, 4] floats x_min, y_min, x_max, y_max, x to the right, y down: `_px` in the
picture, `_canvas` in the letterbox.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.picture_files import LoadedPicture, bands, load_picture

CANVAS_PADDING_RGB = (123.7, 116.3, 103.5)
"""The colour around the picture, as in FA-VG; on the uint8 canvas it is rounded."""

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


class Canvas(NamedTuple):
    """A picture on its canvas [side, side, 3] uint8, where it lies there, and what is wrong if it is not whole."""

    pixels: Pixels
    letterbox: Letterbox
    flaw: str | None


def decode(data: bytes, limits: ImageLimits | None = None) -> Pixels:
    """The encoded picture as [H, W, 3] uint8 RGB, upright.

    Of an animation the first frame; transparency is laid on white. Raises ImageProblem; 'too_large' is found
    before anything is decoded.
    """
    return _full(load_picture(data, limits or ImageLimits()))


def letterbox(pixels: Pixels, side: int) -> Pixels:
    """An upright picture [H, W, 3] uint8 on its canvas [side, side, 3] uint8, placed as `Letterbox` says."""
    place = Letterbox(width=pixels.shape[1], height=pixels.shape[0], side=side)
    size = place.resized_width, place.resized_height
    return _paste(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), place)


def decode_letterbox(data: bytes, side: int, limits: ImageLimits | None = None) -> Canvas:
    """The encoded picture on its canvas.

    A large JPEG is decoded at 1/2, 1/4 or 1/8, never below the size it has on the canvas. Raises
    ImageProblem as `decode`.
    """
    loaded = load_picture(data, limits or ImageLimits(), lambda width, height: _stored(width, height, side))
    width, height = loaded.size
    place = Letterbox(height, width, side) if loaded.orientation >= 5 else Letterbox(width, height, side)
    # Turned after resizing: fewer pixels to turn, and `box` holds in the stored frame only.
    small = _to_rgb(loaded.image).resize(
        _stored(width, height, side), Image.Resampling.BILINEAR, box=loaded.box
    )
    return Canvas(_paste(_upright(small, loaded.orientation), place), place, loaded.flaw)


def decode_small(data: bytes, side: int, limits: ImageLimits | None = None) -> tuple[Pixels, tuple[int, int]]:
    """The encoded picture as [h, w, 3] uint8 RGB, upright, no edge longer than `side`; and its full width and height.

    A small picture stays as large as it is. Raises ImageProblem as `decode`.
    """
    loaded = load_picture(data, limits or ImageLimits(), lambda width, height: _stored(width, height, side))
    width, height = loaded.size
    ratio = min(1.0, side / max(width, height))
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    small = _to_rgb(loaded.image).resize(size, Image.Resampling.BILINEAR, box=loaded.box)
    upright = np.array(_upright(small, loaded.orientation), np.uint8)
    return upright, (height, width) if loaded.orientation >= 5 else (width, height)


def decode_region(
    data: bytes, side: int, limits: ImageLimits, xyxy_px: tuple[float, float, float, float]
) -> Canvas:
    """A part of the upright picture on its canvas; `letterbox` is then that of the part.

    At least one pixel of the picture is shown, whatever the box. Raises ImageProblem as `decode`.
    """
    loaded = load_picture(data, limits)
    pixels = _full(loaded)
    height, width, _ = pixels.shape
    left, top = min(max(int(xyxy_px[0]), 0), width - 1), min(max(int(xyxy_px[1]), 0), height - 1)
    right, bottom = (
        min(max(math.ceil(xyxy_px[2]), left + 1), width),
        min(max(math.ceil(xyxy_px[3]), top + 1), height),
    )
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    return Canvas(letterbox(part, side), Letterbox(right - left, bottom - top, side), loaded.flaw)


def _full(loaded: LoadedPicture) -> Pixels:
    return np.array(_upright(_to_rgb(loaded.image), loaded.orientation), np.uint8)


def _stored(width: int, height: int, side: int) -> tuple[int, int]:
    place = Letterbox(width, height, side)
    return place.resized_width, place.resized_height


def _paste(image: Image.Image, place: Letterbox) -> Pixels:
    canvas = _blank_canvas(place.side).copy()
    top, left = place.offset_y, place.offset_x
    canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
    return canvas


@lru_cache(maxsize=1)  # to fill one takes three times as long as to copy it
def _blank_canvas(side: int) -> Pixels:
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = np.rint(CANVAS_PADDING_RGB)
    return canvas


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Band by band, since what is needed on the way takes several times the memory of the picture."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    to_rgb = _from_deep_gray(image) if image.mode == "F" or image.mode.startswith("I") else _plain_to_rgb
    whole = Image.new("RGB", image.size)
    for band in bands(image.size):
        whole.paste(to_rgb(image.crop(band)), band)
    return whole


def _plain_to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")


def _from_deep_gray(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Gray of 16 or 32 bits or floats to RGB, scaled; Pillow's own conversion clips at 255."""
    white = 65535.0
    if not image.mode.startswith("I;16"):
        # These modes do not say what white is: the smallest customary value that holds the brightest pixel.
        brightest = max(float(_gray_values(image.crop(band)).max()) for band in bands(image.size))
        customary = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((value for value in customary if brightest <= value), brightest)

    def to_rgb(part: Image.Image) -> Image.Image:
        gray = np.rint(np.clip(_gray_values(part) / white, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")

    return to_rgb


def _gray_values(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
