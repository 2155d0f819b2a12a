import io

import pytest
from PIL import Image

from mnerqg.errors import ConfigError
from mnerqg.schema import Entity, Region, TaggedPost
from mnerqg.show import colour_of, findings, highlighted, picture_format, printable, with_boxes
from tests.archives import PICTURES, encoded

TYPES = ("PER", "LOC")


def test_what_steers_a_terminal_is_shown_in_the_same_length() -> None:
    hostile = "a\x1b[31mb\x00\x7f\u202ecba\u2066\x9b1m\n\tc"
    shown = printable(hostile)
    assert shown == "a␛[31mb␀\ufffd\ufffdcba\ufffd\ufffd1m\n\tc"
    assert len(shown) == len(hostile)


def test_entities_stand_on_the_colours_of_their_types() -> None:
    tagged = TaggedPost(entities=(Entity("Ana", 2, 5, "PER", 0.9), Entity("Rio", 9, 12, "LOC", 0.8)))
    text = highlighted("😀 Ana in Rio", tagged, TYPES)
    marked = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert marked == {
        "Ana": f"bold black on {colour_of('PER', TYPES)}",
        "Rio": f"bold black on {colour_of('LOC', TYPES)}",
    }
    assert colour_of("PER", TYPES) != colour_of("LOC", TYPES)
    assert highlighted(None, TaggedPost(), TYPES).plain == ""


def test_findings_name_entities_and_boxes_without_one() -> None:
    region = Region("PER", 1, 2, 30, 40, 0.75, image_index=1)
    tagged = TaggedPost(
        entities=(Entity("[bold]A\x1b", 0, 8, "PER", 0.9, region=0),),
        regions=(region, Region("LOC", 5, 6, 7, 8, 0.5)),
    )
    lines = [line.split() for line in findings(tagged, TYPES).plain.splitlines()]
    assert lines == [
        ["PER", "[bold]A␛", "0:8", "0.90", "picture", "1", "at", "(1,", "2,", "30,", "40)", "0.75"],
        ["LOC", "(only", "in", "the", "picture)", "picture", "0", "at", "(5,", "6,", "7,", "8)", "0.50"],
    ]


@pytest.mark.parametrize("name", ["plain.jpg", "turned.jpg", "dot.jpg", "deep.png"])
def test_boxes_are_drawn_into_the_upright_picture(name: str) -> None:
    data, _, size = PICTURES[name]
    assert data is not None
    drawn = Image.open(io.BytesIO(with_boxes(data, [Region("PER", 10, 20, 50, 55, 0.5)], TYPES, "PNG")))
    assert (drawn.format, drawn.size) == ("PNG", size)


def test_the_colour_is_where_the_box_is() -> None:
    drawn = Image.open(io.BytesIO(with_boxes(encoded(), [Region("PER", 10, 20, 80, 55, 0.5)], TYPES, "PNG")))
    assert drawn.getpixel((79, 40)) == (0x56, 0xB4, 0xE9)
    assert drawn.getpixel((60, 50)) != (0x56, 0xB4, 0xE9)


def test_the_ending_says_the_format() -> None:
    assert picture_format("s3://bucket/out.JPG") == "JPEG"
    for uri in ("out", "out.txt", "out.psd"):
        with pytest.raises(ConfigError, match=r"is no ending of a picture; give one, such as \.png"):
            picture_format(uri)
