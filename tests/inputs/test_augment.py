import random

import numpy as np
import pytest
import torch

from mnerqg.config import AugmentConfig
from mnerqg.inputs.augment import Augmenter
from mnerqg.inputs.images import CANVAS_PADDING_RGB

SIDE = 96
BOX = np.float32([[24, 30, 52, 66]])
NOTHING = {"flip": False, "colour": False, "affine": False, "drop_picture": 0.0}


def drawn() -> np.ndarray:
    """A red rectangle over BOX on a blue canvas."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[30:66, 24:52] = 255, 0, 0
    return pixels


def red_box(pixels: np.ndarray) -> np.ndarray:
    red = (pixels[..., 0] > 128) & (pixels[..., 2] < 90) & (pixels[..., 1] < 60)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return np.float32([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def augmented(seed: int, **switches: bool | float) -> tuple[np.ndarray, np.ndarray]:
    result = Augmenter(AugmentConfig(**(NOTHING | switches)))(drawn(), BOX, seed=seed)
    assert result is not None
    pixels, boxes = result
    assert (pixels.shape, pixels.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert (boxes.shape, boxes.dtype) == ((1, 4), np.float32)
    return pixels, boxes


def test_everything_off_changes_nothing() -> None:
    pixels, boxes = augmented(0)
    np.testing.assert_array_equal(pixels, drawn())
    np.testing.assert_array_equal(boxes, BOX)


def test_flip_moves_the_box_exactly_as_the_pixels() -> None:
    places = set()
    for seed in range(12):
        pixels, boxes = augmented(seed, flip=True)
        np.testing.assert_array_equal(red_box(pixels), boxes[0])
        places.add(float(boxes[0, 0]))
    assert places == {24.0, 44.0}


def test_affine_moves_the_box_as_the_pixels() -> None:
    places = []
    for seed in range(12):
        pixels, boxes = augmented(seed, affine=True)
        np.testing.assert_allclose(red_box(pixels), boxes[0], atol=2)
        places.append(boxes[0])
    assert np.ptp(places, 0).min() > 3


def test_flip_and_affine_together() -> None:
    for seed in range(12):
        pixels, boxes = augmented(seed, affine=True, flip=True, colour=True)
        centre = (boxes[0, :2] + boxes[0, 2:]) / 2
        red, _, blue = pixels[int(centre[1]), int(centre[0])].astype(int)
        assert red > blue


def test_colour_leaves_the_box() -> None:
    pixels, boxes = augmented(3, colour=True)
    np.testing.assert_array_equal(boxes, BOX)
    assert not np.array_equal(pixels, drawn())


def test_affine_uncovers_the_padding_colour() -> None:
    padding = np.rint(CANVAS_PADDING_RGB)
    assert any((augmented(seed, affine=True)[0] == padding).all(-1).any() for seed in range(5))


def test_a_picture_without_boxes() -> None:
    result = Augmenter(AugmentConfig(drop_picture=0))(drawn(), np.zeros((0, 4), np.float32), seed=1)
    assert result is not None
    assert result[1].shape == (0, 4)


def test_the_seed_decides() -> None:
    everything = {"flip": True, "affine": True, "colour": True}
    first, again, other = (augmented(seed, **everything) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_inputs_and_global_generators_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", cuda.append)
    pixels, boxes = drawn(), BOX.copy()
    pixels.flags.writeable = False  # as it comes from Arrow
    torch.manual_seed(1)
    cuda.clear()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    Augmenter(AugmentConfig(drop_picture=0))(pixels, boxes, seed=9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert cuda == []
    np.testing.assert_array_equal(pixels, drawn())
    np.testing.assert_array_equal(boxes, BOX)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_dropped_pictures(share: float) -> None:
    augment = Augmenter(AugmentConfig(**(NOTHING | {"drop_picture": share})))
    pixels = np.zeros((8, 8, 3), np.uint8)
    dropped = [augment(pixels, BOX, seed=seed) is None for seed in range(400)]
    assert np.mean(dropped) == pytest.approx(share, abs=0.08)
