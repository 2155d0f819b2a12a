import random
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnerqg.config import TrainConfig
from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.annotations import best_region, choose_annotations, decode_picture, draw_phrases
from mnerqg.schema import Box, Phrase, Post, Span
from tests.builders import image_bytes

MANUAL = Box("PER", 0, 0, 5, 5)
SURE, UNSURE, UNNAMED = (
    Box("LOC", 0, 0, 9, 9, "weak", 0.9),
    Box("PER", 1, 1, 9, 9, "weak", 0.1),
    Box("ORG", 2, 2, 9, 9, "weak", 0.95),
)
NAMED = (Span(0, 3, "PER"), Span(4, 8, "LOC"))
BOXED = Post("1", "Ada Oslo", b"", NAMED, (MANUAL, SURE, UNSURE, UNNAMED), boxes_annotated=True)
UNBOXED = replace(BOXED, boxes=(SURE, UNSURE, UNNAMED), boxes_annotated=False)


@pytest.mark.parametrize(
    ("post", "boxes", "expected", "annotated", "unknown"),
    [
        (BOXED, "manual", (MANUAL,), True, set()),
        (UNBOXED, "manual", (), False, set()),
        # ORG is not named by the text, and of PER the labeller is not sure.
        (BOXED, "weak", (SURE,), True, {"PER"}),
        (UNBOXED, "weak", (SURE,), True, {"PER"}),
        (replace(UNBOXED, boxes=()), "weak", (), False, {"PER", "LOC"}),
        (BOXED, "manual_where_present", (MANUAL,), True, set()),
        (UNBOXED, "manual_where_present", (SURE,), True, {"PER"}),
    ],
)
def test_whose_boxes_are_learned(
    post: Post, boxes: str, expected: tuple[Box, ...], annotated: bool, unknown: set[str]
) -> None:
    chosen = choose_annotations(post, TrainConfig(boxes=boxes))
    assert (chosen.post.boxes, chosen.post.boxes_annotated) == (expected, annotated)
    assert chosen.unknown_types == unknown
    assert replace(chosen.post, boxes=post.boxes, boxes_annotated=post.boxes_annotated) == post


def test_a_share_of_the_boxed_posts() -> None:
    posts = [replace(BOXED, post_id=str(number)) for number in range(2000)]

    def boxed(share: float) -> set[str]:
        config = TrainConfig(boxed_share=share)
        chosen = [choose_annotations(post, config).post for post in posts]
        assert all(bool(post.boxes) == post.boxes_annotated for post in chosen)
        return {post.post_id for post in chosen if post.boxes}

    tenth, half = boxed(0.1), boxed(0.5)
    assert 140 < len(tenth) < 260
    assert tenth < half  # more boxes are more of the same
    assert (len(boxed(1.0)), len(boxed(0.0))) == (2000, 0)


@given(st.integers(0, 12), st.integers(1, 8), st.integers(0, 99))
def test_drawn_phrases_keep_their_order(count: int, wanted: int, seed: int) -> None:
    post = replace(BOXED, phrases=tuple(Phrase(str(number), "x") for number in range(count)))
    drawn = draw_phrases(post, wanted, random.Random(seed)).phrases
    assert len(drawn) == min(count, wanted)
    assert list(drawn) == sorted(set(drawn), key=lambda phrase: int(phrase.id))


def test_the_best_region_is_the_surest_weak_box() -> None:
    assert best_region(BOXED) == UNNAMED
    assert best_region(replace(BOXED, boxes=(MANUAL,))) is None


@pytest.mark.parametrize("corners", [(2, 1, 3, 3), (-5, -5, 99, 99), (2.4, 0.2, 2.6, 0.4), (50, 50, 60, 60)])
def test_a_picture_is_cut_to_its_region(corners: tuple[float, float, float, float]) -> None:
    """A picture whose one red pixel lies at (2, 1); whatever the box, something of the picture is seen."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2] = 255, 0, 0
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    canvas, letterbox, _ = decode_picture(
        file.getvalue(), 32, ImageLimits(), Box("PER", *corners, "weak", 0.5)
    )
    assert canvas.shape == (32, 32, 3)
    assert 1 <= letterbox.width <= 6
    assert 1 <= letterbox.height <= 4
    if corners == (2, 1, 3, 3):  # one column, of which the upper half is red
        assert (letterbox.width, letterbox.height) == (1, 2)
        assert canvas[4, 16, 0] > 200
        assert canvas[28, 16, 0] < 50


def test_without_a_region_the_picture_is_whole() -> None:
    _, letterbox, _ = decode_picture(image_bytes(size=(40, 24)), 32, ImageLimits(), None)
    assert (letterbox.width, letterbox.height) == (40, 24)
