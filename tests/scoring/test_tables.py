import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mnerqg.errors import DataError
from mnerqg.scoring.tables import DATASETS, TABLES, PaperTable, Row, ScoredRun, table_record, to_markdown

VARIANTS = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "variants"
TYPES = ("LOC", "PER")
POSTS = 60


def scored(seed: int, right: int, *, grounds: bool = True, posts: int = POSTS) -> ScoredRun:
    """A run with one entity and one box of each type a post, and `right` posts with both of PER found."""
    rows = [
        {"post_id": f"{number:03}", "type": kind, "predicted": 1, "gold": 1, "grounded": 1}
        | dict.fromkeys(("correct", "iou_50"), int(kind == "PER" and number < right))
        for number in range(posts)
        for kind in TYPES
    ]
    share = right / (2 * posts)
    scores: dict[str, Any] = {
        "types": list(TYPES),
        "split": "valid",
        "posts": posts,
        **dict.fromkeys(("precision", "recall", "f1"), share),
        "f1_LOC": 0.0,
        "f1_PER": right / posts,
        **dict.fromkeys(("accuracy_50", "accuracy_75", "mean_iou"), share if grounds else None),
    }
    return ScoredRun(seed, scores, pa.Table.from_pylist(rows))


def runs(table: PaperTable, *rights: int) -> dict[str, list[ScoredRun]]:
    """Alike runs of all systems, one seed for each of `rights`."""
    return {row.system: [scored(seed, right) for seed, right in enumerate(rights)] for row in table.rows}


def row_of(record: dict[str, Any], system: str) -> dict[str, Any]:
    (row,) = (row for row in record["rows"] if row["system"] == system)
    return row


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_system_has_its_recipe_and_its_reference(table: PaperTable) -> None:
    systems = {row.system for row in table.rows}
    references = {row.system for row in table.rows if row.against is None}
    assert all((VARIANTS / f"{system}.yaml").is_file() for system in systems)
    assert {row.against for row in table.rows if row.against} == references


@pytest.mark.parametrize("paper", [None, *DATASETS])
@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_becomes_json_and_markdown(table: PaperTable, paper: str | None) -> None:
    record = table_record(table, runs(table, 20, 22), paper)
    assert json.loads(json.dumps(record)) == record
    lines = [line for line in to_markdown(record).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert len({line.count("|") for line in lines}) == 1
    assert ("paper |" in lines[0]) == (paper is not None)


def test_the_papers_figures() -> None:
    def paper(name: str, dataset: str) -> dict[str, float | None]:
        table = TABLES[name]
        return {row["system"]: row["paper"] for row in table_record(table, runs(table, 1), dataset)["rows"]}

    # DESIGN §4, "The paper's figures"; nothing else is known.
    both = [paper("table2", dataset) for dataset in DATASETS]
    assert [both[0][name] for name in ("text", "weak", "oracle")] == [72.74, 74.70, 74.94]
    assert [both[1][name] for name in ("text", "weak", "oracle")] == [85.55, 86.94, 87.25]
    assert {both[0][name] for name in ("bert", "bert_crf")} == {None}
    assert list(paper("table3", "twitter2015").values()) == [74.70, 73.99, 74.23, 73.57]
    assert list(paper("table3", "twitter2017").values()) == [86.94, 86.32, 86.53, 86.02]
    assert list(paper("table4", "twitter2015").values()) == [50.83, 54.86, 63.94, 67.41]
    assert list(paper("table4", "twitter2017").values()) == [56.03, 58.49, 71.02, 73.53]
    assert paper("table5", "twitter2015") == {"two_stage": None, "weak": 74.70}
    assert list(paper("figure4", "twitter2017").values()) == [None, None, None, 86.94]


def test_figures_are_percent_with_deviation() -> None:
    table = TABLES["table2"]
    of_systems = runs(table, 30, 36) | {"weak": [scored(0, 30), scored(1, 42)]}
    record = table_record(table, of_systems, "twitter2015")
    assert record["columns"] == ["precision", "recall", "f1", "f1_LOC", "f1_PER"]
    figure = row_of(record, "weak")["figures"]["f1"]
    assert figure == {"mean": pytest.approx(30.0), "deviation": pytest.approx(7.0711, abs=1e-4)}
    line = next(line for line in to_markdown(record).splitlines() if line.startswith("| MNER-QG |"))
    assert "| 30.00 ± 7.07 | 74.70 | 0.00 ± 0.00 | 60.00 ± 14.14 | 2 | – | – | – |" in line
    one_seed = to_markdown(table_record(table, runs(table, 30), "twitter2015"))
    assert re.search(
        r"\| BERT \| 25\.00 \| 25\.00 \| 25\.00 \| – \| .* \| 1 \| MNER-QG \| 1\.0000 \| – \|", one_seed
    )


def test_p_values_are_against_the_rows_reference() -> None:
    table = TABLES["table4"]
    of_systems = runs(table, 20, 22) | {"oracle": [scored(0, 50), scored(1, 54)]}
    record = table_record(table, of_systems)
    alike, other = row_of(record, "fa_vg_weak"), row_of(record, "fa_vg")
    assert (alike["against"], alike["p_over_posts"], alike["p_over_seeds"]) == ("MNER-QG (weak)", 1.0, 1.0)
    assert other["against"] == "MNER-QG (manual)"
    assert other["p_over_posts"] < 0.001
    assert other["p_over_seeds"] == pytest.approx(0.0205, abs=1e-4)  # differences 0.25 and 0.2667: t = 31
    assert row_of(record, "oracle")["p_over_posts"] is None


def test_what_a_system_does_not_answer_is_a_dash() -> None:
    table = PaperTable("x", "X", "", (Row("MNER-QG", "weak"),), columns=("f1", "accuracy_50"))
    record = table_record(table, {"weak": [scored(0, 20, grounds=False)]})
    assert record["rows"][0]["figures"]["accuracy_50"] is None
    assert to_markdown(record).splitlines()[-1].startswith("| MNER-QG | 16.67 | – |")


def test_posts_and_seeds_must_be_the_same() -> None:
    table = TABLES["table5"]
    with pytest.raises(DataError, match="two_stage and weak were scored on different posts"):
        table_record(table, {"two_stage": [scored(0, 2, posts=5)], "weak": [scored(0, 2, posts=6)]})
    with pytest.raises(
        DataError, match=r"two_stage and weak were trained with different seeds \(\[1\] and \[0\]\)"
    ):
        table_record(table, {"two_stage": [scored(1, 2)], "weak": [scored(0, 2)]})


def test_posts_are_paired_by_name_whatever_their_order() -> None:
    table = TABLES["table5"]
    ours, theirs = scored(0, 20), scored(0, 30)
    record = table_record(table, {"two_stage": [ours], "weak": [theirs]})
    shuffled = ScoredRun(0, theirs.scores, theirs.per_post.take(pa.array(range(2 * POSTS)[::-1])))
    again = table_record(table, {"two_stage": [ours], "weak": [shuffled]})
    assert again == record
