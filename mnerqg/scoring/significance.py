"""Whether two systems differ by more than chance: paired tests over seeds and over posts, two-sided.

The paper claims "p-value < 0.05 under a paired two-sided t-test" (Table 2) and does not say what it pairs.
`p_over_seeds` is that test, with the seeds as pairs [chosen]. `p_over_posts` is ours: micro F1 is no mean over posts,
so no t-test is to be had over them, but with this one the question can be asked of a single seed, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 9999
_BATCH = 200  # resamples at once: what bounds the memory


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1); of a single value there is no deviation.

    Raises:
        ValueError: no value at all.
    """
    if not values:
        raise ValueError("there are no values to take the mean of")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def p_over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """p of a paired t-test, the paper's; the scores at the same place were trained with the same seed.

    Raises:
        ValueError: fewer than two seeds, or not the same number for both.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(
            f"{len(ours)} and {len(theirs)} seeds cannot be paired; it takes the same seeds, two or more"
        )
    if np.array_equal(ours, theirs):
        return 1.0  # t would be 0 / 0
    return float(stats.ttest_rel(ours, theirs).pvalue)


def p_over_posts(
    ours: NDArray[np.int64], theirs: NDArray[np.int64], *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """p of a paired approximate randomisation test, which is ours, of a measure that is a ratio of sums over posts.

    Micro F1 is such a ratio, 2 correct / (predicted + gold), and so is Accu@0.5. Under the null hypothesis the
    two systems' answers to a post might as well be swapped; p is the share of such swaps that differ
    as much (exact for up to 13 posts with different answers, otherwise drawn by `seed`).

    Args:
        ours, theirs: [posts, 2] what a post adds to the numerator and to the denominator, in the same order.
        resamples: how many random swaps are drawn.
        seed: of the draw.

    Raises:
        ValueError: not the same number of posts.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"counts of the shapes {ours.shape} and {theirs.shape} cannot be paired")
    differs = (ours != theirs).any(-1)
    count = int(differs.sum())
    if count < 2:
        return 1.0  # a single post swaps the sign, and no more
    # Posts that are answered alike only add to both sums.
    answers = np.concatenate([ours[differs], theirs[differs]])
    rest = ours[~differs].sum(0)

    def difference(first: NDArray[np.int64], second: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        return _ratio(answers[first].sum(axis - 1) + rest) - _ratio(answers[second].sum(axis - 1) + rest)

    result = stats.permutation_test(
        (np.arange(count), np.arange(count, 2 * count)),  # the rows of `answers`: swaps keep a row whole
        difference,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=_BATCH,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _ratio(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return ratio
