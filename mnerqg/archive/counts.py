"""Reading tags back: what a run wrote, counted."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mnerqg.errors import one_line
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.schema import IMAGE_STATUSES, ROW_HASH, TEXT_STATUSES

_COLUMNS = [
    "image_status",
    "text_status",
    "error",
    "retryable",
    # Of lists one leaf: each that is read takes a page of memory.
    "entities.list.element.type",
    "regions.list.element.type",
    "existence.list.element.type",
    ROW_HASH,
]
_MODEL_RAISED = "the model raised "
"""How the error of a post begins that the model could not answer."""
_UNREAD = r"(^|; )(line|row) \d+(:| is )"
"""How the error of a row begins that could not be read, or not all of it."""
_SHOWN_REASONS = 20
_ROWS_AT_ONCE = 1024


def model_raised(error: Exception) -> str:
    """What a row says of whatever the model, its tokenizer or its decoder raised about the post."""
    return f"{_MODEL_RAISED}{type(error).__name__}: {one_line(error)}"


@dataclass
class TagCounts:
    """Counts over the rows of tags; every status is there, also with 0.

    Attributes:
        rows: posts.
        errors: rows whose `error` says something: a picture or the post itself could not be used.
        untagged: rows that the model raised on.
        unread: rows whose line or values could not be read, or not all of them (`jsonlines`, `parquet_files`).
        retryable: rows with a picture that failed for a reason that may pass.
        image_status: pictures by status; a post without any counts as one `none`.
        reasons: errors, with numbers made alike so that they can be counted.
        row_hashes: of all rows, one array a file.
    """

    rows: int = 0
    errors: int = 0
    untagged: int = 0
    unread: int = 0
    retryable: int = 0
    image_status: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(IMAGE_STATUSES, 0)))
    text_status: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(TEXT_STATUSES, 0)))
    entities: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    row_hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)

    @classmethod
    def of_file(cls, entry: storage.FileEntry) -> Self:
        """The counts of one file."""
        counts = cls()
        with open_parquet(entry) as file:
            images = ["images.list.element.status"] if "images" in file.schema_arrow.names else []
            # Every thread of Arrow's would keep memory of its own.
            for rows in file.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS + images, use_threads=False):
                counts.add(rows)
        return counts

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """The sum of counts."""
        total = cls()
        for part in parts:
            for name, value in vars(part).items():
                setattr(total, name, getattr(total, name) + value)
        for status, zeros in ((total.image_status, IMAGE_STATUSES), (total.text_status, TEXT_STATUSES)):
            for name in zeros:  # adding Counters drops what is 0
                status[name] += 0
        return total

    def summary(self) -> dict[str, Any]:
        """What the manifest says."""
        return {
            "rows": self.rows,
            "rows_with_error": self.errors,
            "rows_untagged": self.untagged,
            "rows_unread": self.unread,
            "rows_retryable": self.retryable,
            "image_status": {name: self.image_status[name] for name in IMAGE_STATUSES},
            "text_status": {name: self.text_status[name] for name in TEXT_STATUSES},
            "entities": dict(sorted(self.entities.items())),
            "regions": dict(sorted(self.regions.items())),
            "reasons": dict(self.reasons.most_common(_SHOWN_REASONS)),
        }

    def add(self, rows: pa.RecordBatch) -> None:
        """Count rows of tags, which have all the columns of `of_file`."""
        self.rows += rows.num_rows
        self.errors += rows.num_rows - rows["error"].null_count
        # Not by what is empty: some models answer no existence (BERT, FA-VG), some posts have no entities.
        raised = pc.match_substring_regex(rows["error"], f"(^|; ){_MODEL_RAISED}")
        self.untagged += pc.sum(raised).as_py() or 0
        self.unread += pc.sum(pc.match_substring_regex(rows["error"], _UNREAD)).as_py() or 0
        self.retryable += pc.sum(rows["retryable"]).as_py() or 0
        self.image_status.update(_image_statuses(rows))
        self.text_status.update(_values(rows["text_status"]))
        self.entities.update(_values(pc.list_flatten(rows["entities"]).field("type")))
        self.regions.update(_values(pc.list_flatten(rows["regions"]).field("type")))
        for error, count in _values(rows["error"].drop_null()).items():
            for reason in reasons_of(error):
                self.reasons[reason] += count
        self.row_hashes.append(rows[ROW_HASH].to_numpy(zero_copy_only=False))


def _image_statuses(rows: pa.RecordBatch) -> dict[str, int]:
    if "images" not in rows.schema.names:
        return _values(rows["image_status"])
    without = pc.sum(pc.equal(pc.list_value_length(rows["images"]), 0)).as_py() or 0
    counts = Counter(_values(pc.list_flatten(rows["images"]).field("status")))
    return counts + Counter({"none": without})


def _values(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def reasons_of(error: str) -> list[str]:
    """The reasons that the `error` of a row names, so that they can be counted over many rows."""
    return [_alike(reason) for reason in error.split("; ")]


# Where a picture lies, which differs from row to row (`picture_places.shown`).
_PLACE = re.compile(r" <[^<>]*>(?= after \d+ attempts$|$)")
# What a reason may end with: the file of a line. It may have blanks in its name.
_FILE = re.compile(r" \([^()]*\.[a-zA-Z]\w*\)$")
_WORD = re.compile(r"(?<!\S)(?<!Errno )[(\[{<,]*(\S*?)[)\]}>,;:.]*(?!\S)")
_QUOTED = re.compile(r"""('[^']*'|"[^"]*")""")
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
# A number alone, perhaps with its unit; two of them as the size of a picture; an address in memory; NAME=number; the
# port of a host.
_COUNTED = re.compile(
    rf"(?P<keep>[a-z_]+=|[\w.-]*[a-zA-Z.][\w.-]*:|[\da-fA-F:.]+\]:|)"
    rf"(?:0x[\da-fA-F]+|{_NUMBER}[x×]{_NUMBER}|{_NUMBER}(?P<unit>%|ms|s|[kKMG]i?B|)?)"
)


def _alike(reason: str) -> str:
    """An error without the place of its picture, and without the numbers that differ from row to row. The row has them.

    Numbers in names, hosts, schemes and paths stay, and so do the codes of errors: what an error begins with, an HTTP
    status, and errno.
    """
    _, status, rest = re.split(
        r"^((?:\d{3}(?![^\s:]))?)", _PLACE.sub("", re.sub(r"^picture \d+: ", "", reason))
    )
    file = match[0] if (match := _FILE.search(rest)) else ""
    parts = _QUOTED.split(rest.removesuffix(file))
    folded = "".join(part if place % 2 else _WORD.sub(_fold, part) for place, part in enumerate(parts))
    return f"{status}{folded}{file}"[:200]


def _fold(word: re.Match[str]) -> str:
    counted = _COUNTED.fullmatch(word[1])
    if counted is None:
        return word[0]
    return word[0].replace(word[1], f"{counted['keep']}N{counted['unit'] or ''}")
