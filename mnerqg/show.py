"""A tagged post for the eyes: highlighted in a terminal, and its boxes drawn into its picture."""

import io
import re
from collections.abc import Sequence
from pathlib import PurePath

from PIL import Image, ImageDraw
from rich.cells import cell_len
from rich.text import Text

from mnerqg.errors import ConfigError
from mnerqg.inputs.images import decode
from mnerqg.schema import Region, TaggedPost

# Legible with black letters on them, and told apart by those who see no red or green
# (Okabe and Ito's colours); the same in a terminal and in a picture.
_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#bbbbbb")
# What would steer the terminal or turn the order of what stands there. Each becomes one character, so that offsets
# stay as they are.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without what steers a terminal: control characters as their pictures, such as ␛; as long as before."""
    return _STEERING.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "\ufffd", text)


def colour_of(kind: str, types: Sequence[str]) -> str:
    """The colour of a type, by its place among the types of the model."""
    return _COLOURS[types.index(kind) % len(_COLOURS)] if kind in types else _COLOURS[-1]


def highlighted(text: str | None, tagged: TaggedPost, types: Sequence[str]) -> Text:
    """The text with its entities on the colours of their types."""
    shown = Text(printable(text or ""))
    for entity in tagged.entities:
        shown.stylize(f"bold black on {colour_of(entity.type, types)}", entity.start, entity.end)
    return shown


def findings(tagged: TaggedPost, types: Sequence[str]) -> Text:
    """A line an entity with its place and score and the box of its type; a line for each box without an entity."""
    rows = []
    for entity in tagged.entities:
        region = None if entity.region is None else tagged.regions[entity.region]
        place = f"{entity.start}:{entity.end}"
        rows.append(
            (entity.type, entity.text, place, f"{entity.score:.2f}", _place(region) if region else "")
        )
    pointed_at = {entity.region for entity in tagged.entities}
    for number, region in enumerate(tagged.regions):
        if number not in pointed_at:
            rows.append((region.type, "(only in the picture)", "", "", _place(region)))
    cells = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for (kind, *_), row in zip(rows, cells, strict=True):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        line = Text("  ".join(padded).rstrip())
        line.stylize(colour_of(kind, types), 0, len(row[0]))
        lines.append(line)
    return Text("\n").join(lines)


def _place(region: Region) -> str:
    corners = ", ".join(f"{side:.0f}" for side in region.xyxy_px)
    return f"picture {region.image_index} at ({corners}) {region.score:.2f}"


def picture_format(uri: str) -> str:
    """Pillow's name of the format that the ending of `uri` means. Raises ConfigError for an ending of none."""
    ending = PurePath(uri).suffix.lower()
    kind = Image.registered_extensions().get(ending)
    if kind not in Image.SAVE:
        raise ConfigError(f"--save {uri}: {ending!r} is no ending of a picture; give one, such as .png")
    return str(kind)


def with_boxes(picture: bytes, regions: Sequence[Region], types: Sequence[str], kind: str) -> bytes:
    """The upright picture with its boxes and their types drawn into it, as a file of the format `kind`.

    Raises ImageProblem where the picture does not decode.
    """
    image = Image.fromarray(decode(picture))
    draw = ImageDraw.Draw(image)
    line = max(2, round(min(image.size) / 150))
    size = max(10, round(min(image.size) / 25))
    for region in regions:
        colour = colour_of(region.type, types)
        draw.rectangle(region.xyxy_px, outline=colour, width=line)
        label = f"{region.type} {region.score:.2f}"
        corner = (region.x_min + line, region.y_min + line)
        draw.rectangle(draw.textbbox(corner, label, font_size=size), fill=colour)
        draw.text(corner, label, fill="black", font_size=size)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
