import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.scoring.significance import mean_and_deviation, p_over_posts, p_over_seeds

score = st.integers(0, 10_000).map(lambda places: places / 10_000)  # whose squared differences are not lost
counts = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda pair: (min(pair), max(pair)))


def array(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.asarray(rows, np.int64).reshape(-1, 2)


def test_mean_and_sample_deviation() -> None:
    assert mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    assert mean_and_deviation([3.0]) == (3.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_deviation([])


def test_seeds_known_value() -> None:
    # Differences 1, 2, 3: t = 2 / (1 / √3) = 3.4641, two degrees of freedom.
    assert p_over_seeds([2, 4, 6], [1, 2, 3]) == pytest.approx(0.074180, abs=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_seeds_that_cannot_be_paired(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="the same seeds, two or more"):
        p_over_seeds(ours, theirs)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(score, score), min_size=2, max_size=6))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # differences that are all alike
def test_seeds_are_symmetric(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    assert p_over_seeds(ours, theirs) == pytest.approx(p_over_seeds(theirs, ours))
    assert 0 <= p_over_seeds(ours, theirs) <= 1
    assert p_over_seeds(ours, ours) == 1


def exact(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The test by its definition: twice the smaller tail of all swaps, ours as it is one of them."""

    def difference(first: np.ndarray, second: np.ndarray) -> float:
        (above, below), (other_above, other_below) = first.sum(0), second.sum(0)
        return above / max(below, 1) - other_above / max(other_below, 1)

    found = [
        difference(np.where(mask, theirs, ours), np.where(mask, ours, theirs))
        for mask in (
            np.asarray(swaps)[:, None] for swaps in itertools.product([False, True], repeat=len(ours))
        )
    ]
    tail = [
        np.mean([one >= found[0] - 1e-12 for one in found]),
        np.mean([one <= found[0] + 1e-12 for one in found]),
    ]
    return min(1.0, 2 * float(min(tail)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=7))
def test_posts_are_the_definition_where_all_swaps_can_be_tried(
    pairs: list[tuple[tuple[int, int], tuple[int, int]]],
) -> None:
    ours, theirs = array([ours for ours, _ in pairs]), array([theirs for _, theirs in pairs])
    assert p_over_posts(ours, theirs) == pytest.approx(exact(ours, theirs))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(counts, counts), min_size=20, max_size=40), st.integers(0, 3))
def test_posts_are_symmetric(pairs: list[tuple[tuple[int, int], tuple[int, int]]], seed: int) -> None:
    ours, theirs = array([ours for ours, _ in pairs]), array([theirs for _, theirs in pairs])
    p = p_over_posts(ours, theirs, resamples=200, seed=seed)
    assert p == p_over_posts(theirs, ours, resamples=200, seed=seed)
    assert p == p_over_posts(ours, theirs, resamples=200, seed=seed)
    assert 0 < p <= 1
    assert p_over_posts(ours, ours) == 1


def test_posts_tell_a_difference_from_chance() -> None:
    generator = np.random.default_rng(3)
    below = np.full(400, 2)
    better, worse, alike = (generator.binomial(2, share, 400) for share in (0.8, 0.6, 0.8))
    ours = np.stack([better, below], -1)
    assert p_over_posts(ours, np.stack([worse, below], -1), resamples=999) == pytest.approx(0.002)
    assert p_over_posts(ours, np.stack([alike, below], -1), resamples=999) > 0.05


def test_posts_that_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        p_over_posts(array([(1, 2)]), array([(1, 2), (1, 2)]))
