"""Pascal VOC XML files: the named boxes of a picture, and what is done with their corners.

Corners are pixels of the picture as annotated, x to the right, y down, taken as they stand [chosen]: nothing is
subtracted from the tradition's inclusive corners, which begin at 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from mnerqg.datasets.refusals import Refusals
from mnerqg.errors import DataError

Corners = tuple[float, float, float, float]
"""x_min, y_min, x_max, y_max in pixels."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class VocObject:
    """An object of an XML file: its place there from 1 on, the line of its tag, its names, its box or None.

    The box is as annotated: it may lie outside the picture. `properties` are the texts of the other elements
    by tag, such as `scene`.
    """

    number: int
    line: int
    names: tuple[str, ...]
    xyxy_px: Corners | None
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VocFile:
    """An XML file: the size it states (width, height in pixels; None where it states none) and its objects."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]

    def place(self, item: VocObject) -> str:
        """Where an object stands, as the lists of a summary name it: the name of the file and the line."""
        return f"{self.path.name}:{item.line}"


class _Builder(TreeBuilder):
    """Builds the tree of a file and keeps the line on which each element begins."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Element, int] = {}
        self.parser = DefusedXMLParser(target=self, forbid_dtd=True)

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        element = super().start(tag, attrs)
        self.lines[element] = self.parser.parser.CurrentLineNumber
        return element

    def build(self, data: bytes) -> Element:
        self.parser.feed(data)
        return self.parser.close()


def read_voc(path: Path) -> VocFile:
    """The objects of a Pascal VOC file, read without entities or DTDs.

    Raises:
        DataError: naming the file, and the line if it is known, for broken XML and for each object with a
            corner that is missing or not a finite number.
    """
    builder = _Builder()
    try:
        root = builder.build(path.read_bytes())
    except ParseError as error:
        line = error.position[0]
        raise DataError(f"{path}:{line}: broken XML ({error}); repair the file or remove it") from error
    except (DefusedXmlException, ValueError, LookupError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as plain XML ({error}); repair the file or remove it"
        ) from error
    if root.tag != "annotation":
        raise DataError(f"{path}: <{root.tag}> is not a Pascal VOC file; its root must be <annotation>")
    refusals = Refusals()
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        with refusals.collect():
            objects.append(_object(path, number, element, builder.lines))
    refusals.raise_collected()
    return VocFile(path, _stated_size(root), tuple(objects))


def _object(path: Path, number: int, element: Element, lines: Mapping[Element, int]) -> VocObject:
    bndbox = element.find("bndbox")
    return VocObject(
        number=number,
        line=lines[element],
        names=tuple(" ".join((name.text or "").split()) for name in element.findall("name")),
        xyxy_px=_corners(path, number, bndbox, lines) if bndbox is not None else None,
        properties={
            child.tag: (child.text or "").strip() for child in element if child.tag not in ("name", "bndbox")
        },
    )


def _corners(path: Path, number: int, bndbox: Element, lines: Mapping[Element, int]) -> Corners:
    values = []
    for corner in _CORNERS:
        element = bndbox.find(corner)
        text = None if element is None else element.text or ""
        try:
            value = float(text) if text is not None else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            line = lines[bndbox if element is None else element]
            raise DataError(f"{path}:{line}: object {number} has {corner} {text!r}; write a number of pixels")
        values.append(value)
    return values[0], values[1], values[2], values[3]


def _stated_size(root: Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def clip(xyxy_px: Corners, size: tuple[int, int] | None) -> Corners | None:
    """The part of a box within a picture of (width, height), None if nothing is left."""
    width, height = size if size is not None else (math.inf, math.inf)
    x_min, y_min = max(xyxy_px[0], 0.0), max(xyxy_px[1], 0.0)
    x_max, y_max = min(xyxy_px[2], width), min(xyxy_px[3], height)
    return (x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None


def fault(xyxy_px: Corners, size: tuple[int, int] | None) -> str:
    """What is wrong with a box of which `clip` leaves nothing: it is inverted or empty as annotated, or outside."""
    x_min, y_min, x_max, y_max = xyxy_px
    for side, low, high in (("x", x_min, x_max), ("y", y_min, y_max)):
        if low > high:
            return f"inverted: {side}min {low:g} is above {side}max {high:g}"
        if low == high:
            return f"empty: {side}min and {side}max are both {low:g}"
    picture = "the picture" if size is None else f"the picture of {size[0]} x {size[1]} pixels"
    return f"outside {picture}: {x_min:g}, {y_min:g}, {x_max:g}, {y_max:g}"


def enclosing(boxes: Sequence[Corners]) -> Corners:
    """The smallest box that holds all of `boxes`, of which there is at least one."""
    x_min, y_min, x_max, y_max = zip(*boxes, strict=True)
    return min(x_min), min(y_min), max(x_max), max(y_max)
