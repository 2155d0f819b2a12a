"""Archives of Parquet with any mix of types, nulls and columns, for the fuzz tests."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

USED = ("post_id", "text", "image_uri", "lang")
"""Those that tagging is asked for; others lie beside them."""

_WORDS = st.sampled_from(["", "a", "Lisbon", "naïve 👍", "x" * 40])
_TIMES = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2100, 1, 1)).map(
    lambda one: one.replace(microsecond=0)
)
_TEXT = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
_WHOLE = [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()]
_OTHER: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.float32(), st.sampled_from([0.5, -2.0])),
    (pa.float64(), st.sampled_from([0.1, 1e300, -2.0])),
    (pa.decimal128(5, 2), st.sampled_from([Decimal("1.25"), Decimal("-99.99")])),
    (pa.decimal128(12, 4), st.sampled_from([Decimal("12345.6789")])),
    (pa.timestamp("s"), _TIMES),
    (pa.timestamp("ns"), _TIMES),
    (pa.timestamp("us", "UTC"), _TIMES),
    (pa.timestamp("ms", "Europe/Berlin"), _TIMES),
    (pa.date32(), _TIMES.map(dt.datetime.date)),
    (pa.time64("us"), _TIMES.map(dt.datetime.time)),
    (pa.binary(), _WORDS.map(str.encode)),
    (pa.large_binary(), _WORDS.map(str.encode)),
    (pa.binary_view(), _WORDS.map(str.encode)),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
    (pa.list_(pa.string()), st.lists(_WORDS | st.none(), max_size=3)),
    (pa.list_(pa.null()), st.lists(st.none(), max_size=2)),
    (pa.large_list(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.struct([("a", pa.int32())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (
        pa.struct([("b", pa.string()), ("a", pa.int64())]),
        st.fixed_dictionaries({"a": st.integers(0, 9), "b": _WORDS}),
    ),
    (
        pa.map_(pa.string(), pa.int32()),
        st.lists(st.tuples(_WORDS.filter(bool), st.integers(0, 9)), max_size=1),
    ),
    (pa.dictionary(pa.int8(), pa.int64()), st.integers(0, 2**60)),
]
_NULL = (pa.null(), st.none())
_TEXTS = [(kind, _WORDS) for kind in _TEXT]
_NUMBERS = [(kind, st.integers(0, 127)) for kind in _WHOLE] + [(pa.int64(), st.integers(-(2**63), 2**63 - 1))]
_ANY = [*_TEXTS, *_NUMBERS, *_OTHER, _NULL]


def _column(
    rows: int, kinds: list[tuple[pa.DataType, st.SearchStrategy[Any]]]
) -> st.SearchStrategy[pa.Array]:
    def of_kind(kind: tuple[pa.DataType, st.SearchStrategy[Any]]) -> st.SearchStrategy[pa.Array]:
        cells = st.lists(kind[1] | st.none(), min_size=rows, max_size=rows)
        return cells.map(lambda values: pa.array(values, kind[0]))

    return st.sampled_from(kinds).flatmap(of_kind)


def any_column(rows: int) -> st.SearchStrategy[pa.Array]:
    """A column of any type."""
    return _column(rows, _ANY)


@st.composite
def _tables(draw: st.DrawFn, like: str) -> pa.Table:
    """A file whose `lang` is mostly of the kind that `like` names, so that many archives fit."""
    rows = draw(st.integers(0, 3))
    kinds = {"text": [*_TEXTS, _NULL], "numbers": [*_NUMBERS, _NULL], "any": _ANY}
    usual = draw(st.integers(0, 19)) > 0
    columns = {
        "post_id": draw(_column(rows, [*_TEXTS, *_NUMBERS, _NULL] if usual else _ANY)),
        "text": draw(_column(rows, [*_TEXTS, _NULL] if usual else _ANY)),
        "lang": draw(_column(rows, kinds[like])),
        "image_uri": draw(_column(rows, [*_TEXTS, _NULL] if usual else _ANY)),
        "extra": draw(_column(rows, _ANY)),
        "text_2": draw(_column(rows, _ANY)),
    }
    missing = draw(
        st.sets(st.sampled_from(["lang", "image_uri", "extra", "text_2"] + ["text"] * (not usual)))
    )
    names = draw(st.permutations([name for name in columns if name not in missing]))
    return pa.table({name: columns[name] for name in names})


ANY_ARCHIVE: st.SearchStrategy[list[pa.Table]] = st.sampled_from(["text", "numbers", "any"]).flatmap(
    lambda like: st.lists(_tables(like), min_size=1, max_size=4)
)


def write_tables(folder: Path, tables: list[pa.Table]) -> None:
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"f{number}.parquet", row_group_size=2)
