"""Variants measured turn about, and what a benchmark writes: every round, medians and spreads, and the machine."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mnerqg.errors import ConfigError, MnerqgError, RunError, one_line

Round = dict[str, Any]
"""What one variant did in one round: `posts`, `seconds`, and what else it has to say."""


@dataclass(frozen=True)
class Work:
    """One batch of a device: posts, the seconds that it worked, and when it began and ended by `time.time`."""

    posts: int
    device_s: float
    began: float
    ended: float


def turn_about(
    variants: Mapping[str, Callable[[], Round]], rounds: int, report: "Report"
) -> dict[str, list[Round]]:
    """Each variant once a round, each round beginning with another one, so that none always has the same before it.

    `posts_per_second` is added where a variant does not say it itself. After each turn the report is written: machines
    are lent for minutes, and what was measured until then must not be lost.
    """
    names = list(variants)
    measured: dict[str, list[Round]] = {name: [] for name in names}
    report.figures.setdefault("rounds", {}).update(measured)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            done = variants[name]()
            done.setdefault("posts_per_second", done["posts"] / max(done["seconds"], 1e-9))
            measured[name].append(done)
            report.write()
            print(
                f"round {number + 1} of {rounds}: {name} {done['posts_per_second']:,.4g} posts/s",
                file=sys.stderr,
                flush=True,
            )
    return measured


def ratio(one: Mapping[str, float] | None, other: Mapping[str, float] | None) -> float | None:
    """Of two medians, in three digits; None where one is not there."""
    if not one or not other or not other["median"]:
        return None
    return float(f"{one['median'] / other['median']:.3g}")


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, min and max of some rounds, in five digits."""
    figures = sorted(values)
    if not figures:
        raise ValueError("there is nothing to take a median of")
    return {
        "median": _rounded(statistics.median(figures)),
        "min": _rounded(figures[0]),
        "max": _rounded(figures[-1]),
    }


def spread_of(rounds: Iterable[Round], key: str) -> dict[str, float] | None:
    """`spread` of one figure over the rounds that have it; None where none has."""
    figures = [one[key] for one in rounds if one.get(key) is not None]
    return spread(figures) if figures else None


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


@dataclass
class Report:
    """The JSON of one benchmark, from its beginning on.

    Attributes:
        benchmark: which one it is.
        settings: all that it was told.
        file: where it is written.
        figures: what was measured, by name.
        failures: why it has failed; empty where all is as it should be.
        ended: whether all that was asked for has been measured; until then it is not ok.
    """

    benchmark: str
    settings: Mapping[str, Any]
    file: Path
    device: str = "cpu"
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    ended: bool = False
    load_before: tuple[float, ...] = field(default_factory=os.getloadavg)

    def write(self) -> None:
        """Write it as JSON."""
        record = {
            "benchmark": self.benchmark,
            "ok": self.ended and not self.failures,
            "ended": self.ended,
            "failures": self.failures,
            **self.figures,
            "machine": machine(self.device)
            | {
                "load_before": [round(one, 2) for one in self.load_before],
                "load_after": [round(one, 2) for one in os.getloadavg()],
            },
            "settings": dict(self.settings),
        }
        self.file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def paces(report: Report, rounds: Mapping[str, list[Round]], expected: Mapping[str, int]) -> None:
    """Put posts a second into a report, with a failure for each variant that lost posts or has failed."""
    for name, done in rounds.items():
        for one in done:
            if name in expected and one["posts"] != expected[name]:
                report.failures.append(f"{name}: {one['posts']:,} posts came out for {expected[name]:,}")
            report.failures += [f"{name}: {failure}" for failure in one.get("failures", ())]
    report.figures["posts_per_second"] = {
        name: spread(one["posts_per_second"] for one in done) for name, done in rounds.items()
    }


@contextmanager
def written(report: Report) -> Iterator[Report]:
    """The report, which is written at the end of the `with` block, whatever has become of it.

    Raises:
        RunError: something must not have happened; the report says it, too.
        MnerqgError: as the block raises it; nothing is written where the command or its input has to be changed.
    """
    try:
        yield report
        report.ended = True
    except MnerqgError as error:
        if error.exit_code != RunError.exit_code:
            raise
        report.failures.append(str(error))
    except Exception as error:
        report.failures.append(f"{type(error).__name__}: {one_line(error)}")
        report.write()
        raise
    report.write()
    if report.failures:
        raise RunError(f"{report.failures[0]}; all that was measured is in {report.file}")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_name(),
        "device": device,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray", "pyarrow", "transformers", "timm")},
    }


def _cpu_name() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - no regular file
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def counts(name: str, text: str) -> list[int]:
    """The whole numbers of an option such as `1,2,4`.

    Raises:
        ConfigError: there is none, or one that is no number above 0.
    """
    try:
        numbers = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(
            f"--{name} is {text!r}; give whole numbers above 0 with commas between, such as 1,2,4"
        )
    return numbers
