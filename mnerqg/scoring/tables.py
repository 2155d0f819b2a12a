"""The paper's Tables 2 to 5 and Figure 4: what their rows are, ours beside the paper's figures, and Markdown.

Numbers, rows and columns are those of the paper; its figures are in `paper`. What a table of ours has beyond it (the
tests, a row of Table 3) is marked as ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnerqg.errors import DataError
from mnerqg.scoring import paper
from mnerqg.scoring.significance import mean_and_deviation, p_over_posts, p_over_seeds

UNKNOWN = "–"

Model = Literal["best", "best_grounding"]
"""Which model of a run: of the epoch with the best F1 on validation (of FA-VG Accu@0.5), or with the best Accu@0.5."""

_HEADINGS = {
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "accuracy_50": "Accu@0.5",
    "accuracy_75": "Accu@0.75",
    "mean_iou": "mIoU",
}
# What the tests over posts compare, as columns of the counts a post: the sums above and below the fraction line.
_RATIOS = {
    "f1": (("correct", "correct"), ("predicted", "gold")),  # 2 correct / (predicted + gold)
    "accuracy_50": (("iou_50",), ("grounded",)),
}


@dataclass(frozen=True)
class Row:
    """A system that is trained for a table.

    `label` is its name in the paper, `system` that of its recipe in jobs/configs/variants, `against` the system it is
    tested against (none: others are tested against this one). With `largest` the model with the best grounding is
    scored, too.
    """

    label: str
    system: str
    against: str | None = None
    largest: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    `columns` are keys of the scores; F1 a type comes before them where `types` is set. `measures` are what the tests
    are of, `model` is which model of a run is scored, and `split` on what the paper scores.
    """

    name: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    types: bool = False
    measures: tuple[Literal["f1", "accuracy_50"], ...] = ("f1",)
    model: Model = "best"
    split: str = "test"


_ENTITIES = ("precision", "recall", "f1")
_WEAK = "MNER-QG is trained on weak boxes"

TABLES = {
    table.name: table
    for table in (
        PaperTable(
            "table2",
            "Table 2. Named entity recognition",
            f"{_WEAK}, MNER-QG (Oracle) on manual ones.",
            (
                Row("BERT", "bert", "weak"),
                Row("BERT-CRF", "bert_crf", "weak"),
                Row("MNER-QG-Text", "text", "weak"),
                Row("MNER-QG", "weak"),
                Row("MNER-QG (Oracle)", "oracle", "weak"),
            ),
            columns=_ENTITIES,
            types=True,
        ),
        PaperTable(
            "table3",
            "Table 3. Ablation",
            f"{_WEAK}. Without a loss its module is there and learns nothing from it, and without the grounding's the "
            "existence is not told how sure that is; in the last row, which is ours "
            "and not the paper's, the grounding module is gone as well.",
            (
                Row("MNER-QG", "weak"),
                Row("w/o QG loss", "no_qg_loss", "weak"),
                Row("w/o ED loss", "no_ed_loss", "weak"),
                Row("w/o QG+ED loss", "no_qg_ed_loss", "weak"),
                Row("w/o QG loss and module", "no_grounding", "weak"),
            ),
            columns=_ENTITIES,
        ),
        PaperTable(
            "table4",
            "Table 4. Joint against single training",
            f"{_WEAK}, and so is FA-VG, the grounding alone. MNER-VG looks at the one region that a grounding model is "
            "surest of beforehand. MNER-QG is scored where its F1 on validation is best; M is its boxes where Accu@0.5 "
            "is best.",
            (
                Row("MNER-QG-Text", "text", "weak"),
                Row("MNER-VG", "two_stage", "weak"),
                Row("FA-VG", "fa_vg_weak", "weak"),
                Row("MNER-QG", "weak", largest=True),
            ),
            columns=(*_ENTITIES, "accuracy_50", "accuracy_75", "mean_iou"),
            measures=("f1", "accuracy_50"),
        ),
        PaperTable(
            "table5",
            "Table 5. Weak against manual boxes",
            "Trained on weak boxes (W.S) or manual ones (M.A), always scored against manual ones. Of each run the "
            "epoch with the best Accu@0.5 on validation is scored, which is the M of Table 4. On Flickr30K Entities "
            "there is the paper's figure alone.",
            (
                Row("FA-VG (W.S)", "fa_vg_weak", "weak"),
                Row("MNER-QG (W.S)", "weak"),
                Row("FA-VG (M.A)", "fa_vg", "oracle"),
                Row("MNER-QG (M.A)", "oracle"),
            ),
            columns=("accuracy_50",),
            measures=("accuracy_50",),
            model="best_grounding",
        ),
        PaperTable(
            "figure4",
            "Figure 4. Query styles",
            f"{_WEAK}. The paper shows F1 and Accu@0.5 on validation as a chart and prints no numbers.",
            (
                Row("Keyword", "query_keyword", "query_keyword_annotation"),
                Row("Rule-based Template Filling", "query_template", "query_keyword_annotation"),
                Row("Keyword's Wikipedia", "query_wikipedia", "query_keyword_annotation"),
                Row("Keyword+Annotation", "query_keyword_annotation"),
            ),
            columns=("f1", "accuracy_50"),
            measures=("f1", "accuracy_50"),
            split="valid",
        ),
    )
}


@dataclass(frozen=True)
class ScoredRun:
    """What one trained model scored on a split: `evaluation.evaluate`.

    `scores` are shares in [0, 1], None where the model answers nothing of the kind; `per_post` has a row of counts
    for every post and type. `largest` are the scores of the same run's model with the best grounding, where the row
    asks for them.
    """

    seed: int
    scores: Mapping[str, Any]
    per_post: pa.Table
    largest: Mapping[str, Any] | None = None


def table_record(
    table: PaperTable,
    runs: Mapping[str, Sequence[ScoredRun]],
    dataset: str | None = None,
    weak_accuracy_50: float | None = None,
) -> dict[str, Any]:
    """Everything that a table says, as plain values for JSON; figures are percentages, p values shares.

    Args:
        table: one of TABLES.
        runs: of every system of the table, one a seed.
        dataset: whose figures of the paper are to stand beside ours, and with them the rows of systems that only the
            paper has; None: ours alone.
        weak_accuracy_50: Accu@0.5 of the weak boxes of the posts that were scored, where there are any; a share.

    Raises:
        DataError: systems that are to be compared were scored on different posts or with different seeds.
    """
    scores = runs[table.rows[0].system][0].scores
    types = [f"f1_{kind}" for kind in scores["types"]] if table.types else []
    columns = [*types, *table.columns]
    trained = {row.label: _row_record(table, row, runs, columns) for row in table.rows}
    printed = paper.systems(table.name) if dataset is not None else []
    labels = [*printed, *(label for label in trained if label not in printed)]
    return {
        "table": table.name,
        "title": table.title,
        "caption": table.caption,
        "split": scores["split"],
        "posts": scores["posts"],
        "model": table.model,
        "measures": list(table.measures),
        "paper": dataset,
        "weak_accuracy_50": None if weak_accuracy_50 is None else 100 * weak_accuracy_50,
        "columns": columns,
        "rows": [
            (trained.get(label) or _row_of_the_paper_alone(label)) | _printed(table, label, dataset)
            for label in labels
        ],
    }


def _row_record(
    table: PaperTable, row: Row, runs: Mapping[str, Sequence[ScoredRun]], columns: Sequence[str]
) -> dict[str, Any]:
    ours = runs[row.system]
    of_boxes = [run.largest for run in ours if run.largest is not None]
    against, p_values = None, {}
    if row.against is not None:
        theirs = runs[row.against]
        _check_paired(row, ours, theirs)
        against = next(other.label for other in table.rows if other.system == row.against)
        p_values = {measure: _p_values(measure, ours, theirs) for measure in table.measures}
    return {
        "label": row.label,
        "system": row.system,
        "seeds": [run.seed for run in ours],
        "figures": {key: _figure([run.scores for run in ours], key) for key in columns},
        "largest": {key: _figure(of_boxes, key) for key in columns if of_boxes and key not in _ENTITIES},
        "against": against,
        "p_values": p_values,
    }


def _row_of_the_paper_alone(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "system": None,
        "seeds": [],
        "figures": {},
        "largest": {},
        "against": None,
        "p_values": {},
    }


def _printed(table: PaperTable, label: str, dataset: str | None) -> dict[str, Any]:
    """What the paper prints in a row; that of Flickr30K Entities is the same beside either dataset."""
    if dataset is None:
        return {"paper": {}, "paper_largest": {}}
    figures = paper.figures(table.name, label, dataset) or paper.figures(table.name, label, "flickr30k")
    return {"paper": figures, "paper_largest": paper.largest(table.name, label, dataset)}


def _figure(scores: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None] | None:
    """Mean and deviation over the seeds in percent; None for what the system does not answer."""
    values = [of_run[key] for of_run in scores]
    if any(value is None for value in values):
        return None
    mean, deviation = mean_and_deviation([100 * value for value in values])
    return {"mean": mean, "deviation": deviation}


def _p_values(
    measure: str, ours: Sequence[ScoredRun], theirs: Sequence[ScoredRun]
) -> dict[str, float | None]:
    """p over posts and, from two seeds on, over seeds; None where one of the two answers nothing of the kind."""
    if any(run.scores[measure] is None for run in (*ours, *theirs)):
        return {"posts": None, "seeds": None}
    scores = [[run.scores[measure] for run in runs] for runs in (ours, theirs)]
    return {
        "posts": p_over_posts(_sums(ours, measure), _sums(theirs, measure)),
        "seeds": p_over_seeds(*scores) if len(ours) > 1 else None,
    }


def _check_paired(row: Row, ours: Sequence[ScoredRun], theirs: Sequence[ScoredRun]) -> None:
    if [run.seed for run in ours] != [run.seed for run in theirs]:
        raise DataError(
            f"{row.system} and {row.against} were trained with different seeds ({[run.seed for run in ours]} and "
            f"{[run.seed for run in theirs]}); train both with the same ones"
        )
    posts = [sorted(set(run.per_post["post_id"].to_pylist())) for run in (*ours, *theirs)]
    if any(other != posts[0] for other in posts):
        raise DataError(
            f"{row.system} and {row.against} were scored on different posts; score both on the same split"
        )


def _sums(runs: Sequence[ScoredRun], measure: str) -> NDArray[np.int64]:
    """[posts, 2] what each post adds to a measure's numerator and denominator, over all types and seeds."""
    counts = pa.concat_tables([run.per_post for run in runs])
    above, below = _RATIOS[measure]
    names = sorted({*above, *below})
    by_post = counts.group_by("post_id").aggregate([(name, "sum") for name in names]).sort_by("post_id")
    sums = {name: by_post[f"{name}_sum"].to_numpy() for name in names}
    return np.stack([sum(sums[name] for name in side) for side in (above, below)], axis=-1)


def to_markdown(record: Mapping[str, Any]) -> str:
    """A record of `table_record` as a Markdown table with its caption; the paper's row is right below ours."""
    columns, measures = record["columns"], record["measures"]
    head = ["system", *(_HEADINGS.get(key) or f"F1 {key.removeprefix('f1_')}" for key in columns)]
    head += ["seeds", "tested against"]
    head += [
        f"p of {_HEADINGS[measure]} over {pairs}" for measure in measures for pairs in ("posts", "seeds")
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in record["rows"]:
        if row["system"] is not None:
            rows.append(_our_cells(row, columns, measures))
        if row["paper"]:
            cells = [_paper_cell(row, key) for key in columns]
            rows.append([f"{row['label']}, paper", *cells, *[""] * (len(head) - 1 - len(cells))])
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"**{record['title']}.** {_caption(record)}", "", *lines, ""])


def _our_cells(row: Mapping[str, Any], columns: Sequence[str], measures: Sequence[str]) -> list[str]:
    cells = [row["label"]]
    for key in columns:
        largest = row["largest"].get(key)
        cells.append(_percent(row["figures"][key]) + (f" (M: {_percent(largest)})" if largest else ""))
    cells += [str(len(row["seeds"])), row["against"] or UNKNOWN]
    for measure in measures:
        found = row["p_values"].get(measure, {})
        cells += [_p_value(found.get("posts")), _p_value(found.get("seeds"))]
    return cells


def _paper_cell(row: Mapping[str, Any], key: str) -> str:
    largest = row["paper_largest"].get(key)
    return _known(row["paper"].get(key), "{:.2f}") + (f" (M: {largest:.2f})" if largest is not None else "")


def _caption(record: Mapping[str, Any]) -> str:
    is_printed = any(row["paper"] for row in record["rows"])
    printed = f' Rows with "paper" are its figures on {record["paper"]} (test).' if is_printed else ""
    quality = record["weak_accuracy_50"]
    weak = "" if quality is None else f" Accu@0.5 of the weak boxes of these posts is {quality:.2f}."
    chosen = " on which epochs and thresholds were chosen, too," if record["split"] == "valid" else ""
    return (
        f"{record['caption']}{weak}{printed} Percent on {record['posts']:,} posts ({record['split']}),{chosen} "
        "mean ± sample deviation over the seeds. p is two-sided: over seeds of a paired t-test, the test by which the "
        "paper claims p < 0.05, and over posts of a paired randomisation test of these very models, which is ours. "
        f"{UNKNOWN}: not known, or not answered by the system."
    )


def _percent(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return UNKNOWN
    deviation = figure["deviation"]
    return f"{figure['mean']:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _p_value(p: float | None) -> str:
    return "< 0.0001" if p is not None and p < 0.0001 else _known(p, "{:.4f}")


def _known(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
