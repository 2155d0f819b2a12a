"""What the report says of all rows of tags: counts, scores and names, in memory that the rows do not decide."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mnerqg.archive.counts import TagCounts, reasons_of
from mnerqg.report.sampling import Mask
from mnerqg.schema import ROW_HASH

COLUMNS = ["image_status", "text_status", "error", "retryable", "entities", "regions", ROW_HASH]
"""What `Summary.add` reads of tags, and `images` where they have it."""

BINS = 20
_NAME_CHARACTERS = 80
_MOST_NAMES = 50_000
_SHOWN_REASONS = 20
_FIRST_TYPES = ("PER", "LOC", "ORG", "OTHER")

Ints = npt.NDArray[np.int64]


def ordered_types(types: Sequence[str]) -> list[str]:
    """Entity types as the report lists them: the datasets' four first, as the paper does, then others by name."""
    return sorted(
        set(types),
        key=lambda kind: (_FIRST_TYPES.index(kind) if kind in _FIRST_TYPES else len(_FIRST_TYPES), kind),
    )


class FrequentNames:
    """The most frequent names of a type, counted in bounded memory.

    Beyond `most` different names the rarer half is forgotten; `lost` is how much a count that is left, or one of a
    name that is not, may then be too low.
    """

    def __init__(self, most: int = _MOST_NAMES) -> None:
        self.counts: Counter[str] = Counter()
        self.lost = 0
        self._most = most

    def add(self, name: str, count: int) -> None:
        self.counts[name] += count
        if len(self.counts) > self._most:
            ranked = self.counts.most_common()
            self.lost += ranked[self._most // 2][1]
            self.counts = Counter(dict(ranked[: self._most // 2]))

    def top(self, number: int) -> list[tuple[str, int]]:
        """The most frequent ones; of equally frequent ones the first by name."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]


@dataclass
class Summary:
    """Counts over all rows that were added.

    Attributes:
        counts: statuses, types and reasons.
        tagged: posts with an entity, and posts with a region, by type.
        entity_scores, region_scores: histograms by type, `BINS` equal bins over [0, 1].
        score_sums: of the entities, by type.
        names: the most frequent entities by type.
        examples: for each reason the `row_hash` of a row that has it, the least one.
    """

    counts: TagCounts = field(default_factory=TagCounts)
    tagged: Counter[str] = field(default_factory=Counter)
    entity_scores: dict[str, Ints] = field(default_factory=lambda: defaultdict(_no_scores))
    region_scores: dict[str, Ints] = field(default_factory=lambda: defaultdict(_no_scores))
    score_sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    names: dict[str, FrequentNames] = field(default_factory=lambda: defaultdict(FrequentNames))
    examples: dict[str, int] = field(default_factory=dict)

    @property
    def types(self) -> list[str]:
        return ordered_types([*self.counts.entities, *self.counts.regions])

    @property
    def mean_scores(self) -> dict[str, float | None]:
        """Of the entities of each type."""
        counts = self.counts.entities
        return {kind: self.score_sums[kind] / counts[kind] if counts[kind] else None for kind in self.types}

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """The most frequent reasons of failures."""
        return self.counts.reasons.most_common(_SHOWN_REASONS)

    def add(self, rows: pa.RecordBatch) -> tuple[dict[str, Mask], dict[str, Mask]]:
        """Count rows; the masks of the strata that they belong to, and of those that are failures."""
        self.counts.add(rows)
        self.counts.row_hashes.clear()  # eight bytes a row, which nobody asks for here
        strata = self._add_entities(rows)
        self._add_regions(rows)
        return strata, self._failures(rows)

    def _add_entities(self, rows: pa.RecordBatch) -> dict[str, Mask]:
        entities = pc.list_flatten(rows["entities"])
        parents = pc.list_parent_indices(rows["entities"]).to_numpy(zero_copy_only=False)
        types = _texts(entities.field("type"))
        for kind, scores in _add_scores(self.entity_scores, entities).items():
            self.score_sums[kind] += float(scores.sum())
        names = pc.utf8_slice_codeunits(entities.field("text"), 0, _NAME_CHARACTERS)
        pairs = pa.table({"type": entities.field("type"), "name": names}).group_by(["type", "name"])
        for pair in pairs.aggregate([([], "count_all")]).to_pylist():
            if pair["type"] is not None and pair["name"]:
                self.names[pair["type"]].add(pair["name"], pair["count_all"])
        strata = {}
        for kind in set(types.tolist()) - {None}:
            mask = np.zeros(rows.num_rows, np.bool_)
            mask[parents[types == kind]] = True
            self.tagged[kind] += int(mask.sum())
            strata[f"type {kind}"] = mask
        empty = np.ones(rows.num_rows, np.bool_)
        empty[parents] = False
        return {**strata, "no entity": empty}

    def _add_regions(self, rows: pa.RecordBatch) -> None:
        _add_scores(self.region_scores, pc.list_flatten(rows["regions"]))

    def _failures(self, rows: pa.RecordBatch) -> dict[str, Mask]:
        """Rows by status of picture and text, where it is not ok, and by the reason of their error."""
        found: dict[str, Mask] = {}

        def mark(name: str, row: int) -> None:
            found.setdefault(name, np.zeros(rows.num_rows, np.bool_))[row] = True

        for name in ("image_status", "text_status"):
            statuses = _texts(rows[name])
            for status in set(statuses.tolist()) - {None, "ok"}:
                found[f"{name} {status}"] = statuses == status
        errors, hashes = rows["error"], rows[ROW_HASH]
        for row in np.flatnonzero(errors.is_valid().to_numpy(zero_copy_only=False)).tolist():
            for reason in reasons_of(errors[row].as_py()):
                if reason in self.examples or len(self.examples) < 10 * _SHOWN_REASONS:
                    row_hash = hashes[row].as_py()
                    self.examples[reason] = min(row_hash, self.examples.get(reason, row_hash))
                    mark(f"reason {reason}", row)
        return found


def _no_scores() -> Ints:
    return np.zeros(BINS, np.int64)


def _texts(column: pa.Array) -> npt.NDArray[np.object_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.object_)


def _add_scores(histograms: Mapping[str, Ints], found: pa.StructArray) -> dict[str, npt.NDArray[np.float64]]:
    """Add the scores of entities or regions to the histogram of their type; the scores by type."""
    scores = np.nan_to_num(found.field("score").to_numpy(zero_copy_only=False).astype(np.float64))
    bins = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    types = _texts(found.field("type"))
    by_type = {}
    for kind in set(types.tolist()) - {None}:
        histograms[kind] += np.bincount(bins[types == kind], minlength=BINS)
        by_type[kind] = scores[types == kind]
    return by_type


def differences(before: Summary, after: Summary) -> list[dict[str, Any]]:
    """Two nights beside each other: volumes, types, statuses and reasons, each also by the hundred posts."""
    # Those that are frequent in either night: what is rare in one of them is not none.
    reasons = dict(after.reasons) | dict(before.reasons)
    groups: list[tuple[str, Mapping[str, int], Mapping[str, int]]] = [
        ("volume", {"posts": before.counts.rows}, {"posts": after.counts.rows}),
        ("entities", before.counts.entities, after.counts.entities),
        ("regions", before.counts.regions, after.counts.regions),
        ("pictures", before.counts.image_status, after.counts.image_status),
        ("texts", before.counts.text_status, after.counts.text_status),
        (
            "failures",
            {name: before.counts.reasons[name] for name in reasons},
            {name: after.counts.reasons[name] for name in reasons},
        ),
    ]
    shown = []
    for group, old, new in groups:
        names = list({**new, **old})
        rows = [
            {
                "name": name,
                "before": old.get(name, 0),
                "after": new.get(name, 0),
                "rate_before": 100 * old.get(name, 0) / before.counts.rows,
                "rate_after": 100 * new.get(name, 0) / after.counts.rows,
            }
            for name in (ordered_types(names) if group in ("entities", "regions") else names)
            if old.get(name) or new.get(name)
        ]
        shown += [{"name": group, "rows": rows}] if rows else []
    return shown
