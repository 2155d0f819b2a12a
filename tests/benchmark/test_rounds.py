import json
from pathlib import Path

import pytest

from mnerqg.benchmark.rounds import Report, counts, paces, ratio, spread, turn_about, written
from mnerqg.errors import ConfigError, RunError


def report_of(tmp_path: Path) -> Report:
    return Report("tag", {"posts": 3}, tmp_path / "f.json")


def test_variants_take_turns_and_none_is_always_first(tmp_path: Path) -> None:
    order: list[str] = []

    def variant(name: str) -> dict[str, float]:
        order.append(name)
        return {"posts": 10, "seconds": 2.0}

    names = ("a", "b", "c")
    variants = {name: lambda name=name: variant(name) for name in names}  # type: ignore[misc]
    rounds = turn_about(variants, 3, report_of(tmp_path))
    assert "".join(order) == "abcbcacab"
    assert [one["posts_per_second"] for one in rounds["b"]] == [5.0] * 3


def test_what_was_measured_before_a_kill_is_written_and_not_ok(tmp_path: Path) -> None:
    done: list[int] = []

    def variant() -> dict[str, float]:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"posts": 10, "seconds": 2.0}

    report = report_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), written(report):
        turn_about({"job": variant}, 5, report)
    record = json.loads(report.file.read_text())
    assert [one["posts"] for one in record["rounds"]["job"]] == [10, 10]
    assert (record["ok"], record["ended"], record["failures"]) == (False, False, [])


def test_median_and_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert ratio(spread([3.0]), spread([2.0])) == 1.5
    assert ratio(None, spread([2.0])) is None


def test_a_lost_post_fails_and_is_written(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    with pytest.raises(RunError, match=r"job: 2 posts came out for 3; .*f\.json"), written(report):
        paces(report, {"job": [{"posts": 2, "posts_per_second": 1.0}]}, {"job": 3})
    record = json.loads(report.file.read_text())
    assert record["ok"] is False
    assert record["failures"] == ["job: 2 posts came out for 3"]
    assert record["settings"] == {"posts": 3}
    assert {"cpus", "torch", "ray", "device", "load_before", "load_after"} <= set(record["machine"])


def test_what_is_unforeseen_is_written_too(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    with pytest.raises(ZeroDivisionError), written(report):
        _ = 1 / 0
    assert json.loads(report.file.read_text())["failures"] == ["ZeroDivisionError: division by zero"]


def test_wrong_settings_write_nothing(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    with pytest.raises(ConfigError), written(report):
        raise ConfigError("wrong")
    assert not report.file.exists()


@pytest.mark.parametrize("text", ["", "a", "0", "1,-2"])
def test_counts_that_are_none(text: str) -> None:
    assert counts("rows", "1,1e3") == [1, 1000]
    with pytest.raises(ConfigError, match="--rows"):
        counts("rows", text)
