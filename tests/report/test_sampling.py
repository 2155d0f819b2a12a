import numpy as np
import pytest

from mnerqg.report.sampling import StratifiedSample


def filled(size: int, seed: int, *, parts: int = 7, rows: int = 2_000, backwards: bool = False) -> list[int]:
    """A sample of rows of which one in a hundred is rare and one in fifty has failed."""
    hashes = np.random.default_rng(3).integers(0, 2**64, rows, np.uint64)
    sample = StratifiedSample(size, seed)
    places = np.array_split(np.arange(rows), parts)
    for part in reversed(places) if backwards else places:
        sample.add(
            0,
            int(part[0]),
            hashes[part],
            {"type rare": part % 100 == 1, "type usual": part % 2 == 0},
            {"failed": part % 50 == 7},
        )
    chosen = sample.chosen()
    assert len({int(row["row_hash"]) for row in chosen}) == len(chosen)
    assert [hashes[row["place"]] for row in chosen] == chosen["row_hash"].tolist()
    return [int(place) for place in chosen["place"]]


def test_the_same_rows_however_they_are_read() -> None:
    assert filled(60, 1) == filled(60, 1, parts=3) == filled(60, 1, backwards=True)
    assert set(filled(60, 1)) != set(filled(60, 2))


def test_every_stratum_has_its_share() -> None:
    places = filled(80, 4)
    assert len(places) == 80
    assert sum(place % 50 == 7 for place in places) >= 20  # a quarter
    assert sum(place % 100 == 1 for place in places) == 20  # all there are
    assert sum(place % 2 == 0 for place in places) >= 35


def test_failures_do_not_crowd_out_the_others() -> None:
    hashes = np.arange(1, 1001, dtype=np.uint64) * np.uint64(2**53)
    sample = StratifiedSample(40, 0)
    half = np.arange(1000) < 500
    sample.add(0, 0, hashes, {"type PER": ~half}, {f"reason {n}": half for n in range(30)})
    failed = sum(int(row["place"]) < 500 for row in sample.chosen())
    assert failed == 30  # one of each reason, for its example
    assert len(sample.chosen()) == 40


def test_all_rows_where_there_are_no_more() -> None:
    assert sorted(filled(2_000, 0)) == sorted(filled(9_000, 0)) == list(range(2_000))
    assert len(StratifiedSample(10, 0).chosen()) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_draw_is_even(seed: int) -> None:
    """Each tenth of the rows has about a tenth of the sample that no stratum asks for."""
    hashes = np.random.default_rng(5).integers(0, 2**64, 10_000, np.uint64)
    sample = StratifiedSample(1_000, seed)
    sample.add(0, 0, hashes, {}, {})
    counts = np.bincount(sample.chosen()["place"] // 1_000, minlength=10)
    assert counts.min() > 60
    assert counts.max() < 140
