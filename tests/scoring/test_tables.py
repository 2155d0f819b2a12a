import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mnerqg.errors import DataError
from mnerqg.scoring.paper import DATASETS, systems
from mnerqg.scoring.tables import TABLES, PaperTable, Row, ScoredRun, table_record, to_markdown

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


def lines_of(record: dict[str, Any]) -> list[str]:
    return [line for line in to_markdown(record).splitlines() if line.startswith("|")]


def line_of(record: dict[str, Any], label: str) -> list[str]:
    """The cells of a row of the Markdown, without its label."""
    (line,) = (line for line in lines_of(record) if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_system_has_its_recipe_and_its_reference(table: PaperTable) -> None:
    systems = {row.system for row in table.rows}
    references = {row.system for row in table.rows if row.against is None}
    assert all((VARIANTS / f"{system}.yaml").is_file() for system in systems)
    assert {row.against for row in table.rows if row.against} == references


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_our_rows_have_the_papers_names(table: PaperTable) -> None:
    ours = [row.label for row in table.rows]
    assert set(ours) - set(systems(table.name)) == {
        "table3": {"w/o QG loss and module"},
        "figure4": set(ours),
    }.get(table.name, set())


@pytest.mark.parametrize("dataset", [None, *DATASETS])
@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_becomes_json_and_markdown(table: PaperTable, dataset: str | None) -> None:
    record = table_record(table, runs(table, 20, 22), dataset)
    assert json.loads(json.dumps(record)) == record
    lines = lines_of(record)
    printed = [line.split(", paper |")[0][2:] for line in lines if ", paper |" in line]
    assert printed == ([] if dataset is None else systems(table.name))
    assert len(lines) == 2 + len(table.rows) + len(printed)
    assert len({line.count("|") for line in lines}) == 1
    for row in table.rows:  # right below ours
        (place,) = (n for n, line in enumerate(lines) if line.startswith(f"| {row.label} |"))
        if row.label in printed:
            assert lines[place + 1].startswith(f"| {row.label}, paper |")


def test_the_papers_figures_stand_below_ours() -> None:
    def record(name: str, dataset: str) -> dict[str, Any]:
        return table_record(TABLES[name], runs(TABLES[name], 1), dataset)

    table2 = record("table2", "twitter2017")
    assert len(table2["rows"]) == 18
    assert line_of(table2, "T-NER, paper")[:5] == ["–"] * 5
    table2 = record("table2", "twitter2015")
    assert lines_of(table2)[0].startswith(
        "| system | F1 LOC | F1 PER | P | R | F1 | seeds | tested against |"
    )
    assert line_of(table2, "BERT, paper")[:6] == ["79.91", "84.72", "68.30", "74.61", "71.32", ""]
    assert line_of(table2, "UMGF, paper")[:5] == ["83.17", "84.26", "74.49", "75.21", "74.85"]
    assert line_of(record("table3", "twitter2015"), "w/o ED loss, paper")[:3] == ["77.53", "71.20", "74.23"]
    assert line_of(record("table4", "twitter2017"), "MNER-VG, paper")[:4] == ["87.91", "84.22", "86.03", "–"]
    with_m = ["57.50 (M: 58.49)", "43.03 (M: 43.67)", "54.09 (M: 55.30)"]
    assert line_of(record("table4", "twitter2017"), "MNER-QG, paper")[3:6] == with_m
    for dataset in DATASETS:
        table5 = record("table5", dataset)
        assert line_of(table5, "FA-VG on Flickr30K Entities, paper")[0] == "68.69"
    assert line_of(table5, "MNER-QG (M.A), paper")[0] == "73.53"
    figure4 = to_markdown(record("figure4", "twitter2015"))
    assert "prints no numbers" in figure4
    assert "Rows with" not in figure4


def test_figure_4_is_of_two_measures_on_validation() -> None:
    table = TABLES["figure4"]
    assert (table.split, table.columns) == ("valid", ("f1", "accuracy_50"))
    assert {other.split for other in TABLES.values() if other is not table} == {"test"}
    head = lines_of(table_record(table, runs(table, 20, 22)))[0]
    assert head == (
        "| system | F1 | Accu@0.5 | seeds | tested against | p of F1 over posts | p of F1 over seeds "
        "| p of Accu@0.5 over posts | p of Accu@0.5 over seeds |"
    )


def test_figures_are_percent_with_deviation() -> None:
    table = TABLES["table2"]
    of_systems = runs(table, 30, 36) | {"weak": [scored(0, 30), scored(1, 42)]}
    record = table_record(table, of_systems, "twitter2015")
    assert record["columns"] == ["f1_LOC", "f1_PER", "precision", "recall", "f1"]
    figure = row_of(record, "weak")["figures"]["f1"]
    assert figure == {"mean": pytest.approx(30.0), "deviation": pytest.approx(7.0711, abs=1e-4)}
    expected = ["0.00 ± 0.00", "60.00 ± 14.14", *["30.00 ± 7.07"] * 3, "2", "–", "–", "–"]
    assert line_of(record, "MNER-QG") == expected
    one_seed = table_record(table, runs(table, 30), "twitter2015")
    assert line_of(one_seed, "BERT") == ["0.00", "50.00", *["25.00"] * 3, "1", "MNER-QG", "1.0000", "–"]


def test_the_best_grounding_stands_beside_the_best_tagger() -> None:
    table = TABLES["table4"]
    assert [row.system for row in table.rows if row.largest] == ["weak"]
    of_systems = runs(table, 30, 36)
    best = [dict.fromkeys(run.scores, 0.5 + 0.1 * run.seed) for run in of_systems["weak"]]
    of_systems["weak"] = [
        replace(run, largest=largest) for run, largest in zip(of_systems["weak"], best, strict=True)
    ]
    record = table_record(table, of_systems)
    row = row_of(record, "weak")
    assert set(row["largest"]) == {"accuracy_50", "accuracy_75", "mean_iou"}
    assert line_of(record, "MNER-QG")[2:4] == ["27.50 ± 3.54", "27.50 ± 3.54 (M: 55.00 ± 7.07)"]
    assert "M:" not in " ".join(line_of(record, "FA-VG"))


def test_p_values_are_against_the_rows_reference() -> None:
    table = TABLES["table5"]
    of_systems = runs(table, 20, 22) | {"oracle": [scored(0, 50), scored(1, 54)]}
    record = table_record(table, of_systems)
    alike, other = row_of(record, "fa_vg_weak"), row_of(record, "fa_vg")
    assert alike["against"] == "MNER-QG (W.S)"
    assert alike["p_values"] == {"accuracy_50": {"posts": 1.0, "seeds": 1.0}}
    assert other["against"] == "MNER-QG (M.A)"
    assert other["p_values"]["accuracy_50"]["posts"] < 0.001
    # Differences 0.25 and 0.2667: t = 31.
    assert other["p_values"]["accuracy_50"]["seeds"] == pytest.approx(0.0205, abs=1e-4)
    assert row_of(record, "oracle")["p_values"] == {}


def test_what_a_system_does_not_answer_is_a_dash_and_not_tested() -> None:
    table = TABLES["table4"]
    of_systems = runs(table, 20, 22) | {"text": [scored(seed, 20, grounds=False) for seed in (0, 1)]}
    record = table_record(table, of_systems)
    row = row_of(record, "text")
    assert row["figures"]["accuracy_50"] is None
    assert row["p_values"]["accuracy_50"] == {"posts": None, "seeds": None}
    assert 0 < row["p_values"]["f1"]["posts"] <= 1
    assert line_of(record, "MNER-QG-Text")[3:6] == ["–"] * 3
    assert line_of(record, "MNER-QG-Text")[-2:] == ["–"] * 2


# Two systems are enough to be paired.
PAIR = replace(TABLES["table4"], rows=(Row("MNER-VG", "two_stage", "weak"), Row("MNER-QG", "weak")))


def test_posts_and_seeds_must_be_the_same() -> None:
    with pytest.raises(DataError, match="two_stage and weak were scored on different posts"):
        table_record(PAIR, {"two_stage": [scored(0, 2, posts=5)], "weak": [scored(0, 2, posts=6)]})
    with pytest.raises(
        DataError, match=r"two_stage and weak were trained with different seeds \(\[1\] and \[0\]\)"
    ):
        table_record(PAIR, {"two_stage": [scored(1, 2)], "weak": [scored(0, 2)]})


def test_posts_are_paired_by_name_whatever_their_order() -> None:
    ours, theirs = scored(0, 20), scored(0, 30)
    record = table_record(PAIR, {"two_stage": [ours], "weak": [theirs]})
    shuffled = ScoredRun(0, theirs.scores, theirs.per_post.take(pa.array(range(2 * POSTS)[::-1])))
    again = table_record(PAIR, {"two_stage": [ours], "weak": [shuffled]})
    assert again == record
