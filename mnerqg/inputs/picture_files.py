"""Encoded pictures from strangers are decoded: within bounds that are checked before, and as far as viewers show them.

The signature decides which decoder sees the bytes, so none is reached that `ImageLimits.formats` leaves out.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from mnerqg.config_jobs import ImageLimits, PictureFormat
from mnerqg.errors import one_line
from mnerqg.inputs.avif import largest_frame
from mnerqg.inputs.picture_kinds import format_of, looks_like

_PILLOW_NAMES: dict[PictureFormat, str] = {"heic": "HEIF"}  # the others have the name in capitals
_SHOWN_IN_PART = {"jpeg", "png", "gif", "webp", "bmp"}
_LEAST_SHARE_OF_ROWS = 0.5
_SMALL_PIXELS, _MAX_PIXELS_PER_BYTE = 10_000_000, 1000
"""A picture of more than `_SMALL_PIXELS` has something in it: photographs have 1 to 20 pixels a byte, flat drawings as
PNG 300. Else kilobytes would take most of a gigabyte: WebP needs 16 bytes a pixel on the way [chosen]."""
_MAX_SCANS = 100
"""Of a JPEG: writers make about ten. A file of thousands would take an hour, each going over all pixels [chosen]."""
_MAX_SEGMENTS = 10_000
_MAX_COVERINGS = 8
"""How often the tiles of a file may cover the picture: four planes of a TIFF, and something to spare [chosen]."""
_GRAY = 128
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""Those that no length follows, within scans, are passed over."""
_JPEG_END, _JPEG_SCAN = b"\xd9", b"\xda"
_AVIF_EXIF = re.compile(rb"(infe[\2\3]...(?:..)?....)Exif", re.DOTALL)
_PNG_SIGNATURE, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
_EXIF_ORIENTATION = 0x0112

Size = tuple[int, int]
_Box = tuple[float, float, float, float]


class ImageProblem(Exception):  # noqa: N818 - a finding about the data, kept as its status
    """A picture that cannot be used: `status` is 'unreadable' or 'too_large', the message says why."""

    def __init__(self, status: Literal["unreadable", "too_large"], message: str) -> None:
        super().__init__(message)
        self.status: Literal["unreadable", "too_large"] = status


@dataclass(frozen=True, slots=True)
class LoadedPicture:
    """A picture as stored, not yet upright, of the full `size` (width, height).

    `box` is the part of `image`, in the pixels of `image`, that shows the picture; `orientation` is that of EXIF, 1 to
    8; `flaw` says what is wrong with a picture of which only a part is there.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    size: Size
    orientation: int
    flaw: str | None


def load_picture(
    data: bytes, limits: ImageLimits, least: Callable[[int, int], Size] | None = None
) -> LoadedPicture:
    """Decode a picture, of an animation the first frame.

    Of a JPEG, PNG, GIF, WebP or BMP that is damaged or cut short, what is there is taken if that is half of the rows;
    the others are gray (of a palette, some colour of it).

    Args:
        data: the file.
        limits: of what is decoded; they are looked at before.
        least: from the picture's (width, height) the size that is enough; a JPEG may then be decoded smaller.

    Raises:
        ImageProblem: the picture cannot be used.
    """
    file_format = _check_file(data, limits)
    try:
        if file_format == "jpeg":
            data = _needed_segments(data)
        elif file_format == "avif":
            _check_size(largest_frame(data), data, limits)
            # libavif refuses a picture with broken EXIF; its orientation is the container's.
            data = _AVIF_EXIF.sub(rb"\1skip", data)
        elif file_format == "png":
            data = _needed_chunks(data)
        opened = _Opener(data, file_format, limits, least)
        image, box, flaw = _load(opened)
        # Pillow turns a TIFF itself while loading: size and orientation are right only now.
        size = opened.size if box else image.size
        box = box or (0.0, 0.0, float(size[0]), float(size[1]))
        return LoadedPicture(image, box, size, _orientation(image), flaw)
    except ImageProblem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageProblem("too_large", one_line(error)) from error
    except UnidentifiedImageError as error:
        raise ImageProblem("unreadable", f"the header of the {_name(file_format)} is damaged") from error
    except Exception as error:
        raise ImageProblem(
            "unreadable", f"the {_name(file_format)} is damaged or cut short: {one_line(error)}"
        ) from error


def _check_file(data: bytes, limits: ImageLimits) -> PictureFormat:
    """The format of a file that may be opened."""
    if len(data) > limits.max_bytes:
        raise ImageProblem(
            "too_large", f"the picture has {len(data):,} bytes, of at most {limits.max_bytes:,}"
        )
    if not data:
        raise ImageProblem("unreadable", "the picture has no bytes")
    file_format = format_of(data)
    if file_format is None:
        raise ImageProblem("unreadable", f"not a picture that is read, but {looks_like(data)}")
    if file_format not in limits.formats:
        raise ImageProblem(
            "unreadable",
            f"the picture is {_name(file_format)}, and pictures.formats allows only {', '.join(limits.formats)}",
        )
    if file_format == "heic" and not _reads_heic():
        raise ImageProblem("unreadable", "the picture is HEIC, which is read where pillow-heif is installed")
    return file_format


def _name(file_format: PictureFormat) -> str:
    return "WebP" if file_format == "webp" else file_format.upper()


@cache
def _reads_heic() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check_size(size: Size, data: bytes, limits: ImageLimits) -> None:
    pixels, words = size[0] * size[1], f"the picture has {size[0]} x {size[1]} pixels"
    if pixels > limits.max_pixels:
        raise ImageProblem("too_large", f"{words}, of at most {limits.max_pixels:,}")
    if pixels > _SMALL_PIXELS and pixels > _MAX_PIXELS_PER_BYTE * len(data):
        raise ImageProblem("too_large", f"{words} in only {len(data):,} bytes: it is nearly empty, or a bomb")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


# ---- opening, as often as it takes ---------------------------------------------------------------


@dataclass(slots=True)
class _Opener:
    """A file and how it is opened. `size` is the picture's, known once it has been opened."""

    data: bytes
    file_format: PictureFormat
    limits: ImageLimits
    least: Callable[[int, int], Size] | None
    size: Size = (0, 0)

    def open(self, ending: bytes = b"") -> tuple[ImageFile.ImageFile, _Box | None]:
        """The picture before it is decoded, and the part of it that shows it, where it will be smaller than it is."""
        name = _PILLOW_NAMES.get(self.file_format, self.file_format.upper())
        image = Image.open(BytesIO(self.data + ending if ending else self.data), formats=(name,))
        self.size = image.size
        _check_size(self.size, self.data, self.limits)
        drafted = image.draft(None, self.least(*self.size)) if self.least else None
        extents = [tile.extents or (0, 0, *image.size) for tile in image.tile]
        areas = [(right - left) * (lower - upper) for left, upper, right, lower in extents]
        if sum(areas) > _MAX_COVERINGS * image.width * image.height:
            raise ImageProblem("unreadable", f"the picture is covered over and over by {len(areas):,} tiles")
        return image, drafted[1] if drafted else None

    def open_loaded(self, ending: bytes = b"") -> tuple[ImageFile.ImageFile, _Box | None]:
        image, box = self.open(ending)
        image.load()
        return image, box

    def open_over(self, shade: int) -> tuple[ImageFile.ImageFile, _Box | None]:
        """What `open_loaded` gives, decoded as far as that is possible, on a ground of `shade`."""
        if self.file_format == "webp":
            return self._open_filled_up(shade)
        image, box = self.open()
        image.load_prepare()
        image.im.paste((shade,) * len(image.getbands()), (0, 0, *image.size))
        # Loading would prepare once more; GIF starts anew then.
        image.load_prepare = lambda: None  # type: ignore[method-assign]
        try:
            image.load()
        except Exception:  # it is broken: that is why it is opened so
            image.tile = []
        return image, box

    def _open_filled_up(self, shade: int) -> tuple[ImageFile.ImageFile, _Box | None]:
        """A WebP with an end in the place of what it lacks: libwebp takes none that is not as long as it says."""
        lacking = 8 + int.from_bytes(self.data[4:8], "little") - len(self.data)
        lacking = min(lacking, self.limits.max_bytes - len(self.data))
        for byte in (shade, shade + 8):  # one byte in twenty, repeated, makes a stream that breaks off
            try:
                return self.open_loaded(bytes([byte]) * lacking)
            except ImageProblem:
                raise
            except Exception as error:
                failure = error.with_traceback(None)
        raise failure


def _load(opener: _Opener) -> tuple[ImageFile.ImageFile, _Box | None, str | None]:
    """The picture decoded, its part that shows it, and what is wrong with it if some of it is not there."""
    try:
        return (*opener.open_loaded(), None)
    except ImageProblem:
        raise
    except Exception as error:  # decoders raise nearly anything on broken input
        # Its traceback would keep the first attempt in memory.
        failure = error.with_traceback(None)
    if opener.file_format not in _SHOWN_IN_PART:
        raise failure
    # What is there is what is alike on two different grounds.
    try:
        on_black = _digests(opener.open_over(0)[0])
        image, box = opener.open_over(_GRAY)
    except ImageProblem:
        raise
    except Exception:
        raise failure from None
    there = _digests(image) == on_black
    if opener.file_format == "jpeg":
        del image
        image, box = _load_closed(opener)
        drawn = np.concatenate([~_each(abs(values.astype(int) - _GRAY) <= 1) for values in _values(image)])
        there = max(there, drawn, key=np.sum)
    else:
        for row in np.flatnonzero(~there):
            image.paste((_GRAY,) * len(image.getbands()), (0, int(row), image.width, int(row) + 1))
    if there.mean() < _LEAST_SHARE_OF_ROWS:
        raise failure
    rows, height = round(there.mean() * opener.size[1]), opener.size[1]
    flaw = f"the {_name(opener.file_format)} is damaged or cut short: {rows:,} of {height:,} rows are there"
    return image, box, flaw


def _load_closed(opener: _Opener) -> tuple[ImageFile.ImageFile, _Box | None]:
    """A JPEG with an end put to it: a progressive one shows nothing before. What it lacks, libjpeg makes gray."""
    try:
        return opener.open_loaded(b"\xff\xd9")
    except Exception:
        return opener.open_over(_GRAY)


def _digests(image: Image.Image) -> npt.NDArray[np.uint32]:
    """A number for each row: two whole pictures would take twice the memory."""
    return np.array([zlib.crc32(row) for values in _values(image) for row in values], np.uint32)


def _values(image: Image.Image) -> Iterator[npt.NDArray[Any]]:
    return (np.asarray(image.crop(band)) for band in bands(image.size))


def _each(alike: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of each row whether it is so all over."""
    return np.all(alike.reshape(len(alike), -1), axis=1)


def bands(size: Size) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of full width, one below another, that hold about a million pixels each."""
    width, height = size
    rows = max(1, 2**20 // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


# ---- looking at files before a decoder does -------------------------------------------------------


def _needed_segments(data: bytes) -> bytes:
    """A JPEG without what no pixel depends on, texts and profiles that may be broken; its orientation stays.

    Raises ImageProblem for one of countless scans or segments.
    """
    kept: list[bytes] = [data[:2]]
    place, segments, scans, pixels = 2, 0, 0, 0
    while found := _JPEG_MARKER.search(data, place):
        if found[1] == _JPEG_END:
            break
        end = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        segments += 1
        scans += found[1] == _JPEG_SCAN
        if scans > _MAX_SCANS or segments > _MAX_SEGMENTS:
            raise ImageProblem(
                "too_large",
                f"the picture has more than {_MAX_SCANS} scans or more than {_MAX_SEGMENTS:,} segments",
            )
        if found[1] == _JPEG_SCAN:
            pixels = pixels or found.end() - 2
        elif not pixels and _is_needed(found[1][0], data[found.end() + 2 : end]):
            kept.append(data[found.end() - 2 : end])
        place = end
    return b"".join([*kept, data[pixels:] if pixels else b""])


def _is_needed(kind: int, content: bytes) -> bool:
    """Whether a decoder has to see a segment, and can."""
    if kind == 0xE0:
        return content.startswith(b"JFIF\0") and len(content) >= 12
    if kind == 0xE1:
        return content.startswith(b"Exif\0\0")
    if kind == 0xEE:  # how its colours are meant
        return content.startswith(b"Adobe") and len(content) >= 12
    return not (0xE0 <= kind <= 0xEF or kind == 0xFE)


def _needed_chunks(data: bytes) -> bytes:
    """A PNG with nothing in it but its pixels, palette, transparency and orientation.

    Texts of any size, broken profiles and damaged chunks that no pixel depends on are left out: viewers pass over them.
    """
    view = memoryview(data)
    kept: dict[bytes, memoryview] = {}
    pixels: list[memoryview] = []
    place = len(_PNG_SIGNATURE)
    while place + 8 <= len(data):
        name, start = data[place + 4 : place + 8], place + 8
        end = start + int.from_bytes(data[place : place + 4], "big")
        if name == b"IEND":
            break
        if name == b"IDAT":
            pixels.append(view[start:end])
        elif name in _NEEDED_CHUNKS and name not in kept and _is_whole(view[place + 4 : end + 4]):
            kept[name] = view[place : end + 4]
        place = end + 4
    order = [kept[name] for name in _NEEDED_CHUNKS if name in kept]
    size = sum(map(len, pixels)).to_bytes(4, "big")
    # Of pixels the stream has a checksum of its own, so that Pillow does not look at the chunk's.
    return b"".join([_PNG_SIGNATURE, *order, size, b"IDAT", *pixels, bytes(4), _PNG_END])


def _is_whole(chunk: memoryview) -> bool:
    """Whether name and content of a chunk agree with the checksum after them."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")
