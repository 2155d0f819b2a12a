"""What a benchmark's figures look like to a person; the JSON has all of them."""

from collections.abc import Mapping
from typing import Any

from mnerqg.cli import format_table

Figures = Mapping[str, Any]
_HEAD = ["median", "min", "max"]


def host(figures: Figures) -> str:
    """Of a model actor beside its network."""
    rows = [
        ["CPU µs a post", *_cells(figures["spread"]["host_us_per_post"])],
        ["µs a post", *_cells(figures["spread"]["wall_us_per_post"])],
    ]
    return format_table([["", *_HEAD], *rows])


def tag(figures: Figures) -> str:
    """Of the ways to tag."""
    rows = [
        [_named(name), *_cells(pace), _share(figures["device_busy"].get(name))]
        for name, pace in figures["posts_per_second"].items()
    ]
    memory = ", ".join(f"{name.removesuffix('_mib')} {mib:,.0f}" for name, mib in figures["memory"].items())
    return "\n".join(
        [
            format_table([["posts a second", *_HEAD, "device busy"], *rows]),
            f"the job once it runs, to pairwise: {figures['ratio_to_pairwise']}; to the bare network: "
            f"{figures['ratio_to_bare']}",
            f"this machine's CPUs meanwhile: {_share(figures['cpus_busy'])} busy",
            f"MiB of a process at most: {memory}; spilled bytes: {figures['spilled_bytes']:,}",
        ]
    )


def train(figures: Figures) -> str:
    """Of the ways to train."""
    rows = [[_named(name), *_cells(pace)] for name, pace in figures["posts_per_second"].items()]
    return "\n".join(
        [
            format_table([["posts a second", *_HEAD], *rows]),
            f"the joint step to pairwise: {figures['ratio_to_pairwise']}; to the bare step: "
            f"{figures['ratio_to_bare']}",
        ]
    )


def fetch(figures: Figures) -> str:
    """Of numbers of requests in flight."""
    rows = [
        [f"{count} in flight", *_cells(pace), _cells(figures["mib_per_second"][count])[0]]
        for count, pace in figures["pictures_per_second"].items()
    ]
    return format_table([["pictures a second", *_HEAD, "MiB/s"], *rows])


def scale(figures: Figures) -> str:
    """Of nodes, and of rows."""
    nodes = [
        [
            f"{one['nodes']}",
            _cells(one["steady_rows_per_second"])[0],
            *_cells(one["together_rows_per_second"]),
            "-" if one["ratio_to_first"] is None else f"{one['ratio_to_first']:.2f}",
            _share(one["efficiency"]),
            _share(one["device_busy"]),
        ]
        for one in figures["nodes"]
    ]
    rows = [
        [
            f"{one['rows']:,}",
            *_cells(one["seconds"]),
            _cells(one["ms_per_row"])[0],
            *(f"{one['memory'][name]:,.0f}" for name in ("driver_mib", "actors_mib")),
        ]
        for one in figures["rows"]
    ]
    return "\n".join(
        [
            format_table([["nodes: rows a second", "all", *_HEAD, "to first", "efficiency", "busy"], *nodes]),
            format_table([["rows: seconds", *_HEAD, "ms a row", "driver MiB", "actor MiB"], *rows]),
        ]
    )


def _cells(figures: Mapping[str, float] | None) -> list[str]:
    if figures is None:
        return ["-"] * len(_HEAD)
    return [f"{figures[name]:,.0f}" if figures[name] >= 100 else f"{figures[name]:.3g}" for name in _HEAD]


def _share(figures: Mapping[str, float] | None) -> str:
    return "-" if figures is None else f"{figures['median']:.0%}"


def _named(name: str) -> str:
    return name.replace("_", " ")
