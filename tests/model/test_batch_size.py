import pytest

from mnerqg.model.batch_size import best_batch_size

# The bare forward of the paper's model on an H200, posts a second.
H200 = {16: 845, 32: 1_600, 64: 2_346, 128: 2_698, 256: 2_865}


@pytest.mark.parametrize(
    ("paces", "fits", "best"),
    [
        (H200, 256, 256),
        (H200, 128, 128),
        (H200, 64, 64),
        (H200, 8, 16),  # not even the smallest: it is halved then
        (dict.fromkeys(H200, 100), 256, 16),
        (dict.fromkeys(H200, 100) | {256: 104}, 256, 16),
        (dict.fromkeys(H200, 100) | {256: 106}, 256, 256),
    ],
)
def test_the_smallest_that_is_as_good(paces: dict[int, int], fits: int, best: int) -> None:
    tried = []

    def measured_s(size: int) -> float | None:
        tried.append(size)
        return size / paces[size] if size <= fits else None

    assert best_batch_size(measured_s) == best
    assert len([size for size in tried if size > fits]) <= 1
