from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.boxes import assign
from mnerqg.config import AugmentConfig
from mnerqg.inputs.augment import Augmenter
from mnerqg.inputs.batch import (
    Batch,
    Collator,
    Example,
    augment_example,
    examples_to_table,
    make_example,
    table_to_examples,
)
from mnerqg.inputs.images import ImageLimits
from mnerqg.inputs.text import EncodedText
from mnerqg.schema import Box, Post, Span
from tests.builders import (
    QUERIES,
    SIDE,
    anchors,
    annotated_examples,
    collator,
    example,
    image_bytes,
    text_encoder,
    tokenizer,
)

TEXTS = ["Ada Lovelace visits London", "", "#LFC won in Málaga 👍🏽 yesterday evening"]


def test_rows_are_what_the_tokenizer_makes_of_query_and_text() -> None:
    batch = collator()([example(text) for text in TEXTS], with_targets=False)
    length = batch.input_ids.shape[2]
    assert length % 8 == 0
    for p, text in enumerate(TEXTS):
        for k, query in enumerate(QUERIES):
            pair = tokenizer()(query.query, text or "\0")  # it takes an empty text for none
            size = len(pair["input_ids"])
            row = batch.input_ids[p, k]
            assert row[:size].tolist() == pair["input_ids"]
            assert set(row[size:].tolist()) <= {tokenizer().pad_token_id}
            assert batch.token_type_ids[p, k, :size].tolist() == pair["token_type_ids"]
            assert batch.attention_mask[p, k].tolist() == [True] * size + [False] * (length - size)
            sequence = pair.sequence_ids()
            asked = [part == 0 for part in sequence]
            assert batch.query_mask[p, k].tolist() == asked + [False] * (length - size)
            said = [index for index, part in enumerate(sequence) if part == 1]
            assert not said or said[0] == batch.sentence_offset[p, k]
            encoded = text_encoder().encode(text)
            for mask, marks in (
                (batch.begins_word, encoded.begins_word),
                (batch.ends_word, encoded.ends_word),
            ):
                assert mask[p, k].nonzero().flatten().tolist() == [
                    index for index, mark in zip(said, marks, strict=True) if mark
                ]
    assert batch.targets is None


def test_span_targets_stand_behind_each_query() -> None:
    batch = collator()(annotated_examples(), with_targets=True)
    targets = batch.targets
    assert targets is not None
    assert targets.existence.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    offset = batch.sentence_offset.tolist()
    gold = [(0, 0, 0, 1), (0, 1, 3, 3), (2, 2, 1, 1), (3, 0, 0, 0)]
    moved = [(p, k, i + offset[p][k], j + offset[p][k]) for p, k, i, j in gold]
    assert [tuple(row) for row in targets.matches.tolist()] == moved
    assert {tuple(row) for row in targets.starts.nonzero().tolist()} == {(p, k, i) for p, k, i, _ in moved}
    assert {tuple(row) for row in targets.ends.nonzero().tolist()} == {(p, k, j) for p, k, _, j in moved}


def test_box_targets() -> None:
    examples = annotated_examples()
    targets = collator()(examples, with_targets=True).targets
    assert targets is not None
    assert targets.objectness.shape == (4, 4, anchors().candidates)
    assert len(targets.box_candidates) == 2
    for row, (k, box) in enumerate(enumerate(examples[0].boxes_canvas)):
        assignment = assign(box, anchors(), 0.5)
        assert assignment is not None
        assert targets.box_candidates[row].tolist() == [0, k, assignment.candidate]
        torch.testing.assert_close(targets.box_targets[row], torch.tensor(assignment.target))
        expected = torch.zeros(anchors().candidates, dtype=torch.int8)
        expected[list(assignment.ignored)] = -1
        expected[assignment.candidate] = 1
        assert torch.equal(targets.objectness[0, k], expected)
    assert (targets.objectness[0, 2:] == 0).all()  # looked, and nothing there
    assert (targets.objectness[1] == 0).all()
    assert (targets.objectness[2] == -1).all()  # nobody looked
    assert (targets.objectness[3] == -1).all()  # no picture


def test_boxes_nobody_annotated_are_not_learned_from() -> None:
    known = annotated_examples()[0]
    targets = collator()([replace(known, boxes_annotated=False)], with_targets=True).targets
    assert targets is not None
    assert (targets.objectness == -1).all()
    assert len(targets.box_candidates) == 0


def test_a_box_moved_off_the_canvas_teaches_nothing() -> None:
    gone = example(boxes_canvas=[[SIDE, 0, SIDE + 20, 20]], box_types=(1,), boxes_annotated=True)
    targets = collator()([gone], with_targets=True).targets
    assert targets is not None
    assert (targets.objectness[0, 1] == -1).all()
    assert (targets.objectness[0, 0] == 0).all()
    assert len(targets.box_candidates) == 0


MANY = {
    "boxes_canvas": [[0, 0, 9, 9], [0, 0, 30, 30], [40, 5, 60, 20], [1, 1, 3, 3]],
    "box_types": (2, 2, 2, 0),
    "boxes_annotated": True,
}


def boxed_candidates(**settings: Any) -> set[tuple[int, ...]]:
    collate = Collator(text_encoder=text_encoder(), anchors=anchors(), ignore_iou=0.5, **settings)
    targets = collate([example(**MANY)], with_targets=True).targets
    assert targets is not None
    boxed = {tuple(row) for row in targets.box_candidates.tolist()}
    assert {tuple(row) for row in (targets.objectness == 1).nonzero().tolist()} == boxed
    return boxed


def test_the_largest_box_of_a_type_or_all_of_them() -> None:
    def candidate(index: int) -> int:
        assignment = assign(np.asarray(MANY["boxes_canvas"][index], np.float32), anchors(), 0.5)
        assert assignment is not None
        return assignment.candidate

    assert boxed_candidates() == {(0, 2, candidate(1)), (0, 0, candidate(3))}
    assert boxed_candidates(box_targets="all") == {
        *((0, 2, candidate(index)) for index in range(3)),
        (0, 0, candidate(3)),
    }


def test_two_boxes_of_one_candidate_leave_it_to_the_larger() -> None:
    collate = Collator(text_encoder=text_encoder(), anchors=anchors(), ignore_iou=0.5, box_targets="all")
    twins = example(boxes_canvas=[[10, 10, 30, 30], [10, 10, 31, 31]], box_types=(1, 1), boxes_annotated=True)
    targets = collate([twins], with_targets=True).targets
    assert targets is not None
    assignment = assign(np.asarray([10, 10, 31, 31], np.float32), anchors(), 0.5)
    assert assignment is not None
    assert targets.box_candidates.tolist() == [[0, 1, assignment.candidate]]
    torch.testing.assert_close(targets.box_targets[0], torch.tensor(assignment.target))


def test_unknown_types_are_not_learned_from() -> None:
    targets = collator()([example(boxes_annotated=True, unknown_types=(1, 3))], with_targets=True).targets
    assert targets is not None
    assert [int(row.unique()) for row in targets.objectness[0]] == [0, -1, 0, -1]


def test_a_model_of_the_text_gets_no_picture_and_one_of_the_picture_no_text() -> None:
    def collate(inputs: str) -> Batch:
        collate = Collator(text_encoder=text_encoder(), anchors=anchors(), ignore_iou=0.5, inputs=inputs)
        return collate(annotated_examples(), with_targets=True)

    text, picture = collate("text"), collate("picture")
    assert (text.picture == -1).all()
    assert len(text.pixels) == 0
    assert text.targets is not None
    assert (text.targets.objectness == -1).all()
    assert picture.picture.tolist() == [0, 1, 2, -1]
    assert picture.attention_mask.sum(-1).tolist() == [[len(ids) + 2 for ids in text_encoder().query_ids]] * 4
    assert not picture.begins_word.any()


def test_a_baseline_is_asked_nothing_and_labels_words() -> None:
    collate = Collator(
        text_encoder=text_encoder(), anchors=anchors(), ignore_iou=0.5, inputs="text", tags=True
    )
    batch = collate(annotated_examples(), with_targets=True)
    assert batch.targets is not None
    assert batch.targets.tags is not None
    assert batch.input_ids.shape[1] == 1
    plain = tokenizer()("Ada Lovelace visits London")["input_ids"]
    assert batch.input_ids[0, 0, : len(plain)].tolist() == plain
    assert not batch.token_type_ids.any()
    words = [
        tags[begins[0]].tolist() for tags, begins in zip(batch.targets.tags, batch.begins_word, strict=True)
    ]
    # spans ((0, 1, PER), (3, 3, LOC)) are in pieces: "Ada", "Love" and "##lace", "visits", "London"
    assert words == [word_tags(one) for one in annotated_examples()]


def word_tags(one: Example) -> list[int]:
    """The tags by definition: of each word's first piece."""
    tags = []
    for piece, begins in enumerate(one.text.begins_word):
        inside = [(first, k) for first, last, k in one.spans if first <= piece <= last]
        if begins:
            tags.append((1 if inside[0][0] == piece else 2) + 2 * inside[0][1] if inside else 0)
    return tags


def test_every_picture_once_with_its_row() -> None:
    examples = annotated_examples()
    batch = collator()([examples[3], *examples[:3]], with_targets=False)
    assert batch.picture.tolist() == [-1, 0, 1, 2]
    assert (batch.pixels.shape, batch.pixels.dtype) == ((3, 3, SIDE, SIDE), torch.uint8)
    for row in range(3):
        np.testing.assert_array_equal(batch.pixels[row].permute(1, 2, 0).numpy(), examples[row].pixels)


def test_no_pictures_at_all() -> None:
    batch = collator()([example(picture=None)] * 2, with_targets=True)
    assert batch.picture.tolist() == [-1, -1]
    assert batch.pixels.shape == (0, 3, SIDE, SIDE)


def test_moving_a_batch_moves_its_targets() -> None:
    batch = collator()(annotated_examples(), with_targets=True).to("meta")
    assert batch.pixels.device.type == "meta"
    assert batch.targets is not None
    assert batch.targets.objectness.device.type == "meta"


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
        draw(numbers), draw(numbers), draw(numbers), draw(flags), draw(flags), truncated=draw(st.booleans())
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
        assert here.text == there.text
        assert (here.spans, here.box_types) == (there.spans, there.box_types)
        assert here.boxes_annotated is there.boxes_annotated
        assert (here.pixels is None) is (there.pixels is None)
        if there.pixels is not None:
            np.testing.assert_array_equal(here.pixels, there.pixels)
        np.testing.assert_array_equal(here.boxes_canvas, there.boxes_canvas)
