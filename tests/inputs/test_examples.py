from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.config import AugmentConfig
from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.augment import Augmenter
from mnerqg.inputs.examples import (
    Example,
    augment_example,
    examples_to_table,
    make_example,
    table_to_examples,
)
from mnerqg.inputs.text import EncodedText
from mnerqg.schema import Box, Post, Span
from tests.builders import SIDE, annotated_examples, example, image_bytes, text_encoder


def post(**changes: object) -> Post:
    return replace(
        Post(
            "1",
            "Ada visits London",
            image_bytes(size=(128, 64)),
            (Span(0, 3, "PER"), Span(11, 17, "LOC"), Span(4, 10, "DISH")),
            (Box("LOC", 0, 0, 64, 64), Box("DISH", 0, 0, 9, 9)),
            boxes_annotated=True,
        ),
        **changes,
    )


def test_an_example_of_a_post() -> None:
    made = make_example(post(), text_encoder(), SIDE, ImageLimits())
    assert made.spans == ((0, 0, 0), (2, 2, 1))
    assert made.box_types == (1,)
    np.testing.assert_allclose(made.boxes_canvas, [[0, 16, 32, 48]])
    assert made.boxes_annotated
    assert made.letterbox is not None
    assert made.pixels is not None
    assert made.pixels.shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("image", [None, b"", b"<html>"])
def test_an_example_without_a_usable_picture_keeps_its_spans_only(image: bytes | None) -> None:
    made = make_example(post(image=image), text_encoder(), SIDE, ImageLimits())
    assert made.spans == ((0, 0, 0), (2, 2, 1))
    assert (made.pixels, made.letterbox, made.box_types, made.boxes_annotated) == (None, None, (), False)


def test_an_example_without_text() -> None:
    made = make_example(post(text=None, entities=()), text_encoder(), SIDE, ImageLimits())
    assert (made.text.token_ids, made.spans) == ([], ())


def test_a_dropped_picture_takes_its_boxes_along() -> None:
    known = annotated_examples()[0]
    dropped = augment_example(known, Augmenter(AugmentConfig(drop_picture=1)), seed=0)
    assert (dropped.pixels, len(dropped.boxes_canvas), dropped.boxes_annotated) == (None, 0, False)
    assert (dropped.text, dropped.spans) == (known.text, known.spans)
    kept = augment_example(known, Augmenter(AugmentConfig(drop_picture=0)), seed=0)
    assert (kept.letterbox, kept.box_types, kept.boxes_annotated) == (None, (0, 1), True)
    without = example(picture=None)
    assert augment_example(without, Augmenter(AugmentConfig(drop_picture=1)), seed=0) is without


number = st.integers(0, 2**31 - 1)
side = 2


@st.composite
def examples(draw: st.DrawFn) -> Example:
    size = draw(st.integers(0, 4))
    numbers = st.lists(number, min_size=size, max_size=size)
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    text = EncodedText(
        draw(st.text(max_size=9)),
        draw(numbers),
        draw(numbers),
        draw(numbers),
        draw(flags),
        draw(flags),
        text_read=draw(st.integers(0, 9)),
        truncated=draw(st.booleans()),
    )
    pixels = draw(st.none() | st.binary(min_size=3 * side**2, max_size=3 * side**2))
    boxes = draw(st.lists(st.tuples(*[st.floats(-999, 999, width=32)] * 4), max_size=3))
    return Example(
        text=text,
        pixels=None if pixels is None else np.frombuffer(pixels, np.uint8).reshape(side, side, 3),
        spans=tuple(draw(st.lists(st.tuples(number, number, number), max_size=3))),
        boxes_canvas=np.float32(boxes).reshape(-1, 4),
        box_types=tuple(draw(number) for _ in boxes),
        boxes_annotated=draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(examples(), max_size=4))
def test_examples_travel_through_arrow_unchanged(sent: list[Example]) -> None:
    received = table_to_examples(examples_to_table(sent), side)
    assert len(received) == len(sent)
    for there, here in zip(sent, received, strict=True):
        # What is not read of a text stays behind.
        assert here.text == replace(there.text, text=there.text.text[: there.text.text_read])
        assert (here.spans, here.box_types) == (there.spans, there.box_types)
        assert here.boxes_annotated is there.boxes_annotated
        assert (here.pixels is None) is (there.pixels is None)
        if there.pixels is not None:
            np.testing.assert_array_equal(here.pixels, there.pixels)
        np.testing.assert_array_equal(here.boxes_canvas, there.boxes_canvas)
