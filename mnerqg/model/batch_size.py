"""How many posts a device should be given at once."""

from collections.abc import Callable

_SIZES = (16, 32, 64, 128, 256)
_AS_GOOD = 0.95


def best_batch_size(measured_s: Callable[[int], float | None]) -> int:
    """The smallest size whose pace is within 5 % of the best: larger ones only keep others waiting [chosen].

    Args:
        measured_s: the seconds that so many posts take, or None where they do not fit; then no more are tried.
    """
    paces: dict[int, float] = {}
    for size in _SIZES:
        seconds = measured_s(size)
        if seconds is None:
            break
        paces[size] = size / max(seconds, 1e-9)
    best = max(paces.values(), default=0.0)
    return next((size for size, pace in paces.items() if pace >= _AS_GOOD * best), _SIZES[0])
