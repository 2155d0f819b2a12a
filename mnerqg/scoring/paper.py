"""The paper's own figures: Tables 2 to 5 as printed, from `paper_tables.yaml` beside this file."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

DATASETS = ("twitter2015", "twitter2017")
"""Whose figures the paper prints. Those of one system are on `flickr30k` instead, for comparison (Table 5)."""

Figures = dict[str, float | None]
"""Percent by the key of the score, such as f1_PER or accuracy_50; None is the paper's "-"."""


def systems(table: str) -> list[str]:
    """The rows of a table by their printed names, without "(Ours)", from top to bottom; none of a figure."""
    return list(_tables().get(table, {}).get("rows", {}))


def figures(table: str, system: str, dataset: str) -> Figures:
    """What a row says of a dataset; nothing where the paper has no such row or dataset."""
    printed = _tables().get(table, {})
    return _row(printed.get("columns"), printed.get("rows"), system, dataset)


def largest(table: str, system: str, dataset: str) -> Figures:
    """What a row adds as "M": the optimal results in the QG task, beside those where MNER reaches the optimum."""
    printed = _tables().get(table, {})
    return _row(printed.get("largest_columns"), printed.get("largest"), system, dataset)


def _row(
    columns: list[str] | None,
    rows: dict[str, dict[str, list[float | None]]] | None,
    system: str,
    dataset: str,
) -> Figures:
    values = (rows or {}).get(system, {}).get(dataset)
    return dict(zip(columns or [], values, strict=True)) if values is not None else {}


@cache
def _tables() -> dict[str, Any]:
    text = files("mnerqg.scoring").joinpath("paper_tables.yaml").read_text(encoding="utf-8")
    tables: dict[str, Any] = yaml.safe_load(text)
    return tables
