"""The archive of posts that is to be tagged (DESIGN §3 "Archive"): its files, rows and columns."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg import storage
from mnerqg.config import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.schema import tags_schema

_FOOTERS_IN_FLIGHT = 16


@dataclass(frozen=True)
class Archive:
    """An archive that has been found fit to be tagged.

    Attributes:
        uri: as it was given.
        folder: the directory of its files; relative picture URIs are meant below it.
        files: its Parquet files.
        rows: posts in all files together, from the footers.
        pictures: whether it holds the pictures themselves, their URIs, or neither.
        pass_through: the fields to be copied to the tags, with plain types.
    """

    uri: str
    folder: str
    files: tuple[storage.FileEntry, ...]
    rows: int
    pictures: Literal["bytes", "uris", "none"]
    pass_through: tuple[pa.Field, ...]


def open_archive(uri: str, columns: ColumnsConfig) -> Archive:
    """Look at the footers of all files of an archive.

    Args:
        uri: a Parquet file, or a directory of `*.parquet` files.
        columns: the names of the columns.

    Raises:
        StorageError: the URI cannot be read.
        DataError: no files, no rows, a file that is not Parquet, or columns missing or of a wrong type.
    """
    files = storage.list_files(uri, ".parquet")
    if not files:
        raise DataError(f"{uri} holds no *.parquet files; give a Parquet file or a directory of them")
    with ThreadPoolExecutor(_FOOTERS_IN_FLIGHT) as pool:
        footers = list(pool.map(_read_footer, files))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    rows = sum(footer.num_rows for footer in footers)
    if rows == 0:
        raise DataError(f"{uri} holds no posts: its {len(files)} file(s) have no rows; check --input")
    for entry, schema in zip(files, schemas, strict=True):
        _check_columns(entry.uri, schema, columns, first=schemas[0])
    is_file = len(files) == 1 and files[0].uri == uri
    folder = uri.rstrip("/").rpartition("/")[0] if is_file else uri
    return Archive(
        uri=uri,
        folder=folder or "/",
        files=tuple(files),
        rows=rows,
        pictures=_pictures(schemas[0], columns),
        pass_through=tuple(
            pa.field(name, _plain(schemas[0].field(name).type)) for name in columns.pass_through
        ),
    )


def _read_footer(entry: storage.FileEntry) -> pq.FileMetaData:
    filesystem, path = storage.filesystem(entry.uri)
    try:
        return pq.read_metadata(path, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{entry.uri} is not readable as Parquet ({reason}); remove or replace the file"
        ) from None


def _check_columns(uri: str, schema: pa.Schema, columns: ColumnsConfig, *, first: pa.Schema) -> None:
    _check_pass_through(uri, schema, columns)
    wanted: list[tuple[str, str, Callable[[pa.DataType], bool], str]] = [
        (
            "post_id",
            columns.post_id,
            lambda kind: _is_text(kind) or pa.types.is_integer(kind),
            "text or integers",
        ),
        ("text", columns.text, _is_text, "text"),
    ]
    match _pictures(first, columns):
        case "bytes":
            wanted.append(("image", columns.image, _is_bytes, "binary"))
        case "uris":
            wanted.append(("image_uri", columns.image_uri, _is_text, "text"))
        case "none":
            for key in ("image", "image_uri"):
                if (
                    key in columns.model_fields_set
                ):  # asked for, so tagging the text alone would be a surprise
                    wanted.append((key, getattr(columns, key), _is_text, "pictures"))
    for key, name, fits, kind in wanted:
        field = _field(uri, schema, name, f"--columns.{key} NAME")
        if not fits(_plain(field.type)):
            raise DataError(
                f"{uri}: the column {name} holds {field.type}, not {kind}; "
                f"convert it or name another one with --columns.{key} NAME"
            )
    for name in [name for _, name, _, _ in wanted] + list(columns.pass_through):
        here, there = _plain(schema.field(name).type), _plain(first.field(name).type)
        if here != there:
            raise DataError(
                f"{uri}: the column {name} holds {here}, but {there} in the archive's first file; "
                "tag the files of each kind apart"
            )


def _check_pass_through(uri: str, schema: pa.Schema, columns: ColumnsConfig) -> None:
    tags = tags_schema().names
    for name in columns.pass_through:
        if name in tags:
            raise DataError(
                f"--columns.pass_through names {name}, which is a column of the tags; rename it in the "
                f"archive or leave it out (columns of the tags: {', '.join(tags)})"
            )
        if columns.pass_through.count(name) > 1:
            raise DataError(f"--columns.pass_through names {name} twice; name it once")
        _field(uri, schema, name, "--columns.pass_through [NAME, …]")


def _field(uri: str, schema: pa.Schema, name: str, remedy: str) -> pa.Field:
    if name not in schema.names:
        raise DataError(
            f"{uri} has no column {name}; it has: {', '.join(schema.names)}; name the right one with {remedy}"
        )
    if schema.names.count(name) > 1:
        raise DataError(f"{uri} has {schema.names.count(name)} columns called {name}; give each its own name")
    return schema.field(name)


def _pictures(schema: pa.Schema, columns: ColumnsConfig) -> Literal["bytes", "uris", "none"]:
    if columns.image in schema.names:
        return "bytes"
    return "uris" if columns.image_uri in schema.names else "none"


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary (pandas' categories), and any other type as it is."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_null(kind)
    )


def text_values(column: pa.ChunkedArray) -> tuple[list[str | None], list[bool]]:
    """A column of text (or integers) as Python strings, and which of them were not valid UTF-8.

    Parquet promises UTF-8, but writers break that promise; the broken characters become U+FFFD.
    """
    try:
        return [None if value is None else str(value) for value in column.to_pylist()], [False] * len(column)
    except UnicodeDecodeError:
        raw: Sequence[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    values = [None if value is None else value.decode("utf-8", "replace") for value in raw]
    broken = [
        value is not None and value.encode() != original for value, original in zip(values, raw, strict=True)
    ]
    return values, broken
