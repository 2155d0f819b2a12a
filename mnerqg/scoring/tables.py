"""The paper's tables, ours beside its figures: what their rows are, their figures from runs, and Markdown.

Which table has which number, and every figure of the paper, is as the description of our task gives them; the paper's
tables themselves are not to be had here. Figures that it does not give are None and are printed as "–".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnerqg.errors import DataError
from mnerqg.scoring.significance import mean_and_deviation, p_over_posts, p_over_seeds

DATASETS = ("twitter2015", "twitter2017")
UNKNOWN = "–"

_HEADINGS = {
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "accuracy_50": "Accu@0.5",
    "accuracy_75": "Accu@0.75",
    "mean_iou": "mean IoU",
}
# What the tests over posts compare, as columns of the counts a post: the sums above and below the fraction line.
_RATIOS = {
    "f1": (("correct", "correct"), ("predicted", "gold")),  # 2 correct / (predicted + gold)
    "accuracy_50": (("iou_50",), ("grounded",)),
}


@dataclass(frozen=True)
class Row:
    """A system of a table.

    `system` names its recipe in jobs/configs/variants, `against` the system it is tested against (none: others
    are tested against this one), `paper` the paper's percentages of the table's measure, one a dataset.
    """

    label: str
    system: str
    against: str | None = None
    paper: tuple[float, float] | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    `columns` are keys of the scores; F1 a type follows where `types` is set. `measure` is what the paper's figures
    and the tests are of, and `model` which model of a run is scored.
    """

    name: str
    title: str
    caption: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ("f1",)
    types: bool = False
    measure: Literal["f1", "accuracy_50"] = "f1"
    model: Literal["best", "best_grounding"] = "best"


# In tables without a system that needs weak boxes anyway, ours is trained on manual ones [chosen].
_ON_MANUAL_BOXES = (
    "Ours are trained on manual boxes, which is MNER-QG-Oracle in Table 2; the paper's figures are those of "
    "MNER-QG, trained on weak boxes."
)

TABLES = {
    table.name: table
    for table in (
        PaperTable(
            "table2",
            "Table 2. Named entity recognition",
            "MNER-QG is trained on weak boxes, MNER-QG-Oracle on manual ones.",
            (
                Row("BERT", "bert", "weak"),
                Row("BERT-CRF", "bert_crf", "weak"),
                Row("MNER-QG (Text)", "text", "weak", (72.74, 85.55)),
                Row("MNER-QG", "weak", None, (74.70, 86.94)),
                Row("MNER-QG-Oracle", "oracle", "weak", (74.94, 87.25)),
            ),
            columns=("precision", "recall", "f1"),
            types=True,
        ),
        PaperTable(
            "table3",
            "Table 3. Ablation",
            _ON_MANUAL_BOXES,
            (
                Row("MNER-QG", "oracle", None, (74.70, 86.94)),
                Row("w/o QG", "no_grounding", "oracle", (73.99, 86.32)),
                Row("w/o ED", "no_existence", "oracle", (74.23, 86.53)),
                Row("w/o QG+ED", "no_grounding_no_existence", "oracle", (73.57, 86.02)),
            ),
        ),
        PaperTable(
            "table4",
            "Table 4. Query grounding",
            "Each system is trained on weak and on manual boxes, and always scored against manual ones. FA-VG is "
            "tested against MNER-QG with the same boxes. Of each run the epoch with the best Accu@0.5 is scored.",
            (
                Row("FA-VG (weak)", "fa_vg_weak", "weak", (50.83, 56.03)),
                Row("MNER-QG (weak)", "weak", None, (54.86, 58.49)),
                Row("FA-VG (manual)", "fa_vg", "oracle", (63.94, 71.02)),
                Row("MNER-QG (manual)", "oracle", None, (67.41, 73.53)),
            ),
            columns=("accuracy_50", "accuracy_75", "mean_iou"),
            measure="accuracy_50",
            model="best_grounding",
        ),
        PaperTable(
            "table5",
            "Table 5. End to end against two stages",
            "MNER-VG looks at the one region that a grounding model is surest of beforehand. MNER-QG is trained on the "
            "weak boxes of the same grounding model, as in Table 2.",
            (Row("MNER-VG", "two_stage", "weak"), Row("MNER-QG", "weak", None, (74.70, 86.94))),
        ),
        PaperTable(
            "figure4",
            "Figure 4. Query styles",
            f"{_ON_MANUAL_BOXES} Keyword + annotation is the style of all other tables of the paper, "
            "and its figure is the one there.",
            (
                Row("keyword", "query_keyword", "query_keyword_annotation"),
                Row("template", "query_template", "query_keyword_annotation"),
                Row("Wikipedia", "query_wikipedia", "query_keyword_annotation"),
                Row("keyword + annotation", "query_keyword_annotation", None, (74.70, 86.94)),
            ),
        ),
    )
}


@dataclass(frozen=True)
class ScoredRun:
    """What one trained model scored on a split: `evaluation.evaluate`.

    `scores` are shares in [0, 1], None where the model answers nothing of the kind; `per_post` has a row of counts
    for every post and type.
    """

    seed: int
    scores: Mapping[str, Any]
    per_post: pa.Table


def table_record(
    table: PaperTable,
    runs: Mapping[str, Sequence[ScoredRun]],
    paper: str | None = None,
    weak_accuracy_50: float | None = None,
) -> dict[str, Any]:
    """Everything that a table says, as plain values for JSON; figures are percentages, p values shares.

    Args:
        table: one of TABLES.
        runs: of every system of the table, one a seed.
        paper: the dataset whose figures of the paper are to stand beside ours; None: no dataset's.
        weak_accuracy_50: Accu@0.5 of the weak boxes of the posts that were scored, where there are any; a share.

    Raises:
        DataError: systems that are to be compared were scored on different posts or with different seeds.
    """
    scores = runs[table.rows[0].system][0].scores
    types = [f"f1_{kind}" for kind in scores["types"]] if table.types else []
    columns = [*table.columns, *types]
    return {
        "table": table.name,
        "title": table.title,
        "caption": table.caption,
        "split": scores["split"],
        "posts": scores["posts"],
        "model": table.model,
        "measure": table.measure,
        "paper": paper,
        "weak_accuracy_50": None if weak_accuracy_50 is None else 100 * weak_accuracy_50,
        "columns": columns,
        "rows": [_row_record(table, row, runs, columns, paper) for row in table.rows],
    }


def _row_record(
    table: PaperTable,
    row: Row,
    runs: Mapping[str, Sequence[ScoredRun]],
    columns: Sequence[str],
    paper: str | None,
) -> dict[str, Any]:
    ours = runs[row.system]
    record: dict[str, Any] = {
        "label": row.label,
        "system": row.system,
        "seeds": [run.seed for run in ours],
        "figures": {key: _figure(ours, key) for key in columns},
        "paper": row.paper[DATASETS.index(paper)] if row.paper and paper else None,
        "against": None,
        "p_over_posts": None,
        "p_over_seeds": None,
    }
    if row.against is not None:
        theirs = runs[row.against]
        _check_paired(row, ours, theirs)
        record["against"] = next(other.label for other in table.rows if other.system == row.against)
        record["p_over_posts"] = p_over_posts(_sums(ours, table.measure), _sums(theirs, table.measure))
        if len(ours) > 1:
            record["p_over_seeds"] = p_over_seeds(
                [run.scores[table.measure] for run in ours], [run.scores[table.measure] for run in theirs]
            )
    return record


def _figure(runs: Sequence[ScoredRun], key: str) -> dict[str, float | None] | None:
    """Mean and deviation over the seeds in percent; None for what the system does not answer."""
    values = [run.scores[key] for run in runs]
    if any(value is None for value in values):
        return None
    mean, deviation = mean_and_deviation([100 * value for value in values])
    return {"mean": mean, "deviation": deviation}


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
    """A record of `table_record` as a Markdown table with its caption."""
    head, rows = ["system"], [[row["label"]] for row in record["rows"]]
    for key in record["columns"]:
        head.append(_HEADINGS.get(key) or f"F1 {key.removeprefix('f1_')}")
        _extend(rows, [_percent(row["figures"][key]) for row in record["rows"]])
        if key == record["measure"] and record["paper"] is not None:
            head.append(f"{head[-1]}, paper")
            _extend(rows, [_known(row["paper"], "{:.2f}") for row in record["rows"]])
    head += ["seeds", "tested against", "p over posts", "p over seeds"]
    for cells, row in zip(rows, record["rows"], strict=True):
        cells += [str(len(row["seeds"])), row["against"] or UNKNOWN]
        cells += [_p_value(row["p_over_posts"]), _p_value(row["p_over_seeds"])]
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
    return "\n".join([f"**{record['title']}.** {_caption(record)}", "", *lines, ""])


def _extend(rows: list[list[str]], cells: Sequence[str]) -> None:
    for row, cell in zip(rows, cells, strict=True):
        row.append(cell)


def _caption(record: Mapping[str, Any]) -> str:
    paper = "" if record["paper"] is None else f" Beside ours the paper's figures on {record['paper']}."
    quality = record["weak_accuracy_50"]
    weak = "" if quality is None else f" Accu@0.5 of the weak boxes of these posts is {quality:.2f}."
    chosen = " on which epochs and thresholds were chosen, too," if record["split"] == "valid" else ""
    return (
        f"{record['caption']}{weak}{paper} Percent on {record['posts']:,} posts ({record['split']}),{chosen} "
        f"mean ± sample deviation over the seeds; p, two-sided, of {_HEADINGS[record['measure']]} by a paired "
        "randomisation test over posts (of these very models) and a paired t-test over seeds. The paper claims p < "
        f"0.05. {UNKNOWN}: not known, or not answered by the system."
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
