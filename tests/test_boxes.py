import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from mnerqg.boxes import STRIDES, Anchors, assign, centred_iou, decode, iou_xyxy
from tests.builders import anchors

FLICKR = (
    (352, 294),
    (369, 169),
    (209, 263),
    (204, 132),
    (124, 205),
    (82, 121),
    (137, 71),
    (55, 58),
    (29, 26),
)


def box(*corners: float) -> np.ndarray:
    return np.asarray(corners, np.float32)


def test_the_canvas_of_the_paper_has_4032_candidates() -> None:
    paper = anchors(256)
    assert (paper.candidates, paper.grids, paper.per_scale) == (4032, (8, 16, 32), 3)
    assert paper.table().shape == (4032, 5)
    np.testing.assert_allclose(paper.sizes_canvas, np.asarray(FLICKR) * 256 / 416, rtol=1e-6)


@pytest.mark.parametrize("side", [64, 256])
def test_candidates_are_ordered_by_scale_anchor_row_column(side: int) -> None:
    frame = anchors(side)
    expected = []
    for anchor in range(9):
        stride = STRIDES[anchor // 3]
        for row in range(side // stride):
            for column in range(side // stride):
                if row == column:
                    assert frame.candidate_index(anchor, row, column) == len(expected)
                expected.append([column, row, stride, *frame.sizes_canvas[anchor]])
    np.testing.assert_array_equal(frame.table(), np.float32(expected))
    assert len(expected) == frame.candidates


def logits_of(target: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.cat([torch.logit(torch.tensor(target[:2], dtype=torch.float64)), torch.tensor(target[2:])])


coordinate = st.floats(-100, 356, width=32)
length = st.floats(1, 400, width=32)


@settings(max_examples=300, deadline=None)
@given(coordinate, coordinate, length, length, st.sampled_from([64, 256]))
@example(255.0, 255.0, 1.0, 1.0, 256)
@example(0.0, 0.0, 256.0, 256.0, 256)
@example(-50.0, 100.0, 400.0, 1.0, 256)
@example(64.0, 96.0, 64.0, 64.0, 256)
def test_decode_undoes_assign(x: float, y: float, width: float, height: float, side: int) -> None:
    frame = anchors(side)
    clipped = np.clip(box(x, y, x + width, y + height), 0, side)
    assignment = assign(box(x, y, x + width, y + height), frame, 0.5)
    if (clipped[2:].astype(float) - clipped[:2]).min() < 1:
        assert assignment is None
        return
    assert assignment is not None
    assert all(0 <= offset < 1 for offset in assignment.target[:2])
    row = torch.from_numpy(frame.table()[assignment.candidate])
    decoded = decode(logits_of(assignment.target).float(), row)
    np.testing.assert_allclose(decoded.numpy(), clipped, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(coordinate, coordinate, length, length, st.floats(0, 1))
def test_the_target_is_the_best_anchor_at_the_cell_of_the_centre(
    x: float, y: float, width: float, height: float, ignore_iou: float
) -> None:
    frame = anchors(256)
    gold = np.clip(box(x, y, x + width, y + height), 0, 256)
    assume((gold[2:] - gold[:2]).min() >= 1.01)  # 1 itself is on the edge of what is dropped
    assignment = assign(gold, frame, ignore_iou)
    assert assignment is not None
    size, centre = gold[2:] - gold[:2], (gold[:2].astype(float) + gold[2:]) / 2
    overlaps = []
    for anchor in frame.sizes_canvas:
        inner = min(size[0], anchor[0]) * min(size[1], anchor[1])
        overlaps.append(inner / (size.prod() + anchor.prod() - inner))

    def place(anchor: int) -> int:
        stride = STRIDES[anchor // 3]
        return frame.candidate_index(anchor, int(centre[1] // stride), int(centre[0] // stride))

    best = int(np.argmax(overlaps))
    assert assignment.candidate == place(best)
    sure = {place(anchor) for anchor in range(9) if overlaps[anchor] > ignore_iou + 1e-5 and anchor != best}
    possible = {place(anchor) for anchor in range(9) if overlaps[anchor] > ignore_iou - 1e-5}
    assert sure <= set(assignment.ignored) <= possible
    assert assignment.candidate not in assignment.ignored


def test_the_centre_on_the_last_pixel_falls_into_the_last_cell() -> None:
    frame = anchors(256)
    assignment = assign(box(255, 255, 256, 256), frame, 0.5)
    assert assignment is not None
    assert assignment.candidate == frame.candidate_index(8, 31, 31) == frame.candidates - 1


def test_a_box_over_the_edge_is_cut() -> None:
    frame = anchors(256)
    assert assign(box(-40, -40, 60, 60), frame, 0.5) == assign(box(0, 0, 60, 60), frame, 0.5)


@pytest.mark.parametrize(
    "corners",
    [
        (10, 10, 10, 50),
        (10, 10, 50, 10),
        (50, 10, 10, 50),
        (10, 10, 10.5, 50),
        (-30, 0, -1, 40),
        (256, 0, 300, 40),
        (0, -30, 40, 0.5),
        (300, 300, 400, 400),
    ],
)
def test_less_than_a_pixel_on_the_canvas_is_no_target(corners: tuple[float, ...]) -> None:
    assert assign(box(*corners), anchors(256), 0.5) is None


def test_a_wild_logit_cannot_overflow() -> None:
    frame = anchors(256)
    decoded = decode(torch.full((frame.candidates, 5), 1e4), torch.from_numpy(frame.table()))
    assert decoded.isfinite().all()


corners = st.tuples(st.floats(0, 1000, width=32), st.floats(0, 1000, width=32), length, length).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=100, deadline=None)
@given(corners, st.lists(corners, min_size=1, max_size=5))
def test_iou_is_torchvisions(one: tuple[float, ...], others: list[tuple[float, ...]]) -> None:
    expected = box_iou(torch.tensor([one]), torch.tensor(others))[0]
    found = iou_xyxy(box(*one), np.asarray(others, np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert ((found >= 0) & (found <= 1 + 1e-5)).all()


def test_iou_of_empty_boxes_is_zero() -> None:
    assert iou_xyxy(box(3, 3, 3, 3), np.float32([[3, 3, 3, 3], [0, 0, 9, 9]])).tolist() == [0, 0]
    assert iou_xyxy(box(0, 0, 1, 1), np.zeros((0, 4), np.float32)).shape == (0,)


def test_centred_iou_is_that_of_boxes_with_one_centre() -> None:
    sizes = anchors(256).sizes_canvas
    size = np.float32([30, 77])
    around = np.concatenate([-sizes / 2, sizes / 2], 1)
    np.testing.assert_allclose(
        centred_iou(size, sizes), iou_xyxy(np.concatenate([-size / 2, size / 2]), around), rtol=1e-5
    )


def test_anchors_scale_with_the_canvas() -> None:
    frame = Anchors(sizes=FLICKR, reference_side=416, side=416)
    np.testing.assert_array_equal(frame.sizes_canvas, np.float32(FLICKR))
