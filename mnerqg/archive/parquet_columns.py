"""The one type of every used column of a Parquet archive, over all its files."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from mnerqg.archive.column_types import can_become, common, is_text, plain, without_nulls
from mnerqg.archive.columns import PICTURES, check_name, expected_pictures
from mnerqg.archive.files import path_values
from mnerqg.archive.json_values import Picture
from mnerqg.archive.parquet_files import ParquetFacts, ParquetLayout
from mnerqg.archive.parquet_pictures import IMAGES, holds_images, images_type
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.io import storage


def make_layout(
    files: Sequence[ParquetFacts], columns: ColumnsConfig, picture: Picture | None
) -> ParquetLayout:
    """The one type of every column that is used."""
    kinds: dict[str, pa.DataType] = {}
    for key in ("post_id", "text"):
        for one in files:
            _field(one, getattr(columns, key), f"--columns.{key} NAME")
        kinds.setdefault(getattr(columns, key), _role_type(files, columns, key))
    for key in expected_pictures(columns, picture):
        _check_anywhere(files, getattr(columns, key), f"--columns.{key} NAME")
    if picture is not None:
        _check_pictures(files, columns, picture)
        kinds.setdefault(getattr(columns, picture), _role_type(files, columns, picture))
    for name in columns.pass_through:
        if name not in kinds:
            if not any(name in path_values(storage.path_of(one.entry.uri)) for one in files):
                _check_anywhere(files, name, "--columns.pass_through [NAME, …]")
            kinds[name] = without_nulls(_one_type(files, name))
    for name in kinds:
        check_name(files[0].entry.uri, name)
    return ParquetLayout(tuple(kinds.items()), columns.image if picture == "image" else None)


def _role_type(files: Sequence[ParquetFacts], columns: ColumnsConfig, key: str) -> pa.DataType:
    name = getattr(columns, key)
    fits, words, target = _FITTING[key]
    holding = [(one, one.schema.field(name).type) for one in files if name in one.schema.names]
    for one, kind in holding:
        if not fits(plain(kind)):
            raise DataError(
                f"{one.entry.uri}: the column {name} holds {kind}, not {words}; "
                f"convert it or name another one with --columns.{key} NAME"
            )
    if key == "image":
        return images_type(kind for _, kind in holding)
    if target is None:  # ids: numbers where all are numbers
        merged = common(kind for _, kind in holding)
        return pa.string() if merged is None else without_nulls(merged)
    return target


def _one_type(files: Sequence[ParquetFacts], name: str) -> pa.DataType:
    """The type of a column over all files, those with it in their path included."""
    merged, first = pa.null(), None
    for one in files:
        if name in one.schema.names:
            _field(one, name, "")
            kind = one.schema.field(name).type
        elif name in path_values(storage.path_of(one.entry.uri)):
            kind = pa.string()
        else:
            continue
        both = common([merged, kind])
        if both is None or not can_become(kind, without_nulls(both)):
            there = f", but {merged} in {first}" if first else ""
            raise DataError(
                f"{one.entry.uri}: the column {name} holds {plain(kind)}{there}, and no type holds both; tag the files "
                "of each kind apart"
            )
        merged, first = both, first if first and plain(kind) == pa.null() else first or one.entry.uri
    return merged


def _field(file: ParquetFacts, name: str, remedy: str) -> None:
    """Check that a file has a column once."""
    names, uri = file.schema.names, file.entry.uri
    if name not in names:
        raise DataError(
            f"{uri} has no column {name}; it has: {', '.join(names)}; name the right one with {remedy}"
        )
    if names.count(name) > 1:
        raise DataError(f"{uri} has {names.count(name)} columns called {name}; give each its own name")


def _check_anywhere(files: Sequence[ParquetFacts], name: str, remedy: str) -> None:
    if not any(name in one.schema.names for one in files):
        _field(files[0], name, remedy)


def _check_pictures(files: Sequence[ParquetFacts], columns: ColumnsConfig, picture: Picture) -> None:
    """A file that lacks the column has no pictures; but where it has others, they would be lost without a word."""
    name = getattr(columns, picture)
    for one in files:
        if name in one.schema.names:
            _field(one, name, "")
            continue
        others = [getattr(columns, key) for key in PICTURES if getattr(columns, key) in one.schema.names]
        if others:
            raise DataError(
                f"{one.entry.uri} has its pictures in the column {others[0]}, other files have them in {name}; "
                "tag the files of each kind apart"
            )


def _is_text_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or (pa.types.is_list(kind) and is_text(kind.value_type)))


_FITTING: dict[str, tuple[Callable[[pa.DataType], bool], str, pa.DataType | None]] = {
    "post_id": (lambda kind: is_text(kind) or pa.types.is_integer(kind), "text or integers", None),
    "text": (is_text, "text", pa.string()),
    "image": (holds_images, "binary, base64 or structs of bytes and path", IMAGES),
    "image_uris": (_is_text_list, "lists of text", pa.list_(pa.string())),
    "image_uri": (is_text, "text", pa.string()),
}
"""Which plain types a column may hold, in words, and what it becomes; None: what holds the values of all files."""
