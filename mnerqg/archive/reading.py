"""The archive of posts that is to be tagged (DESIGN §3 "Archive"): its files, rows and columns."""

import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from mnerqg.archive import jsonlines
from mnerqg.archive.json_values import Picture
from mnerqg.archive.jsonlines import LINE_ERROR, Layout, Scan
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.schema import ROW_HASH, tags_schema

Pictures = Literal["bytes", "structs", "uris", "lists", "none"]

_PARQUET = ".parquet"
_ENDINGS = (_PARQUET, *jsonlines.ENDINGS)
_PICTURES: dict[Picture, Pictures] = {"image": "bytes", "image_uris": "lists", "image_uri": "uris"}
"""The first of these columns that an archive has is read."""
_WILDCARD = re.compile(r"[*?[]")
_FILES_IN_FLIGHT = 16
_SHOWN_KEYS = 30
_SCANNED_HERE_BYTES = 32 * 2**20
"""JSON Lines of no more bytes are scanned by the process that asks: seconds, even where they are compressed tenfold,
and less than it takes to ask a cluster [chosen]."""

ScanFiles = Callable[[Sequence[storage.FileEntry], ColumnsConfig], list[Scan]]


@dataclass(frozen=True)
class Archive:
    """An archive that has been found fit to be tagged.

    Attributes:
        uri: as it was given.
        folder: the directory of its files, of a glob the part before the first wildcard; relative picture URIs
            are meant below it.
        files: its files, all of one format.
        rows: posts in all files together.
        format: of the files.
        pictures: whether it holds the pictures themselves (as bytes or text, or as structs that may have a URI in the
            place of bytes), a URI a post, lists of URIs, or nothing of them.
        pass_through: the fields to be copied to the tags, with plain types.
        layout: how JSON Lines become columns; None for Parquet.
    """

    uri: str
    folder: str
    files: tuple[storage.FileEntry, ...]
    rows: int
    format: Literal["parquet", "jsonl"]
    pictures: Pictures
    pass_through: tuple[pa.Field, ...]
    layout: Layout | None = None

    def picture_column(self, columns: ColumnsConfig) -> str | None:
        """The column of the pictures, or of their URIs; None where nothing is of them."""
        if self.pictures == "none":
            return None
        names = {"uris": columns.image_uri, "lists": columns.image_uris}
        return names.get(self.pictures, columns.image)


def scan_here(files: Sequence[storage.FileEntry], columns: ColumnsConfig) -> list[Scan]:
    """`jsonlines.scan` of each file, in this process."""
    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        return list(pool.map(lambda entry: jsonlines.scan(entry, columns), files))


def open_archive(uri: str, columns: ColumnsConfig, scan_large: ScanFiles = scan_here) -> Archive:
    """Find the files of an archive and look at them: at the footers of Parquet, through all of JSON Lines.

    Args:
        uri: a file, a directory, or a glob (`*`, `?`, `[...]`, and `**` for any folders). A name with such
            characters in it is no glob where something of that name exists.
        columns: the names of the columns.
        scan_large: does what `scan_here` does, for JSON Lines of more than 32 MiB; before, the head of each file is
            looked at here.

    Raises:
        StorageError: the URI cannot be read.
        DataError: no files, both formats, no rows, a file that is not what its name says, or columns missing or
            of a wrong type.
    """
    _check_pass_through(columns)
    folder, files = _find_files(uri)
    if _format(uri, folder, files) == "parquet":
        return _open_parquet(uri, folder, files, columns)
    return _open_json_lines(uri, folder, files, columns, scan_large)


# ---- files ---------------------------------------------------------------------------------------


def _find_files(uri: str) -> tuple[str, list[storage.FileEntry]]:
    """The archive's folder and its files with an ending that is known."""
    wildcard = _WILDCARD.search(uri)
    if wildcard and not storage.exists(uri):
        return _match_files(uri, uri[: wildcard.start()])
    files = storage.list_files(uri)
    if [entry.uri for entry in files] == [uri]:
        if not uri.endswith(_ENDINGS):
            raise DataError(f"{uri} ends in none of {', '.join(_ENDINGS)}; rename it to what it is")
        return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else "."), files
    known = [entry for entry in files if entry.uri.endswith(_ENDINGS)]
    if not known:
        raise DataError(
            f"{uri} holds no *.parquet files and no JSON Lines ({', '.join(jsonlines.ENDINGS)}); check --input"
        )
    return uri, known


def _match_files(uri: str, start: str) -> tuple[str, list[storage.FileEntry]]:
    """What `_find_files` gives for a glob with the part `start` before the first wildcard."""
    folder = start.rpartition("/")[0] or ("/" if start.startswith("/") else ".")
    root = storage.path_of(folder).rstrip("/") + "/"
    try:
        asked = storage.path_of(uri).removeprefix(root)
        pattern = re.compile(glob_translate(asked))
    except ValueError:
        raise DataError(f"{uri}: in a glob ** stands alone between slashes; write /**/ or *") from None
    # Beside an archive often lie its pictures, by the million: do not list them for nothing.
    matching = [
        entry
        for entry in storage.list_files(folder, recursive="/" in asked or "**" in asked)
        if pattern.match(storage.path_of(entry.uri).removeprefix(root))
    ]
    known = [entry for entry in matching if entry.uri.endswith(_ENDINGS)]
    if not known:
        raise DataError(
            f"{uri} matches {len(matching)} file(s), none of them {', '.join(_ENDINGS)}; a glob names files, "
            "with /** at its end all files of the folders"
        )
    return folder, known


def _format(uri: str, folder: str, files: Sequence[storage.FileEntry]) -> Literal["parquet", "jsonl"]:
    parquet = [entry.uri for entry in files if entry.uri.endswith(_PARQUET)]
    lines = [entry.uri for entry in files if not entry.uri.endswith(_PARQUET)]
    if parquet and lines:
        raise DataError(
            f"{uri} holds both Parquet ({parquet[0]}) and JSON Lines ({lines[0]}); tag each apart with a glob, "
            f"such as {folder.rstrip('/')}/**/*{_PARQUET}"
        )
    return "parquet" if parquet else "jsonl"


# ---- Parquet -------------------------------------------------------------------------------------


def _open_parquet(
    uri: str, folder: str, files: Sequence[storage.FileEntry], columns: ColumnsConfig
) -> Archive:
    if columns.types:
        raise DataError(
            f"--columns.types is for JSON Lines, and {uri} is Parquet, which says itself what its columns hold; "
            "leave it out"
        )
    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        footers = list(pool.map(_read_footer, files))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    rows = sum(footer.num_rows for footer in footers)
    if rows == 0:
        raise DataError(f"{uri} holds no posts: its {len(files)} file(s) have no rows; check --input")
    picture = _picture(schemas[0].names, columns)
    _check_pass_through(columns, picture)
    for entry, schema in zip(files, schemas, strict=True):
        _check_columns(entry.uri, schema, columns, picture, first=schemas[0])
    return Archive(
        uri=uri,
        folder=folder,
        files=tuple(files),
        rows=rows,
        format="parquet",
        pictures=_pictures(schemas[0], columns, picture),
        pass_through=tuple(
            pa.field(name, _plain(schemas[0].field(name).type)) for name in columns.pass_through
        ),
    )


def _pictures(schema: pa.Schema, columns: ColumnsConfig, picture: Picture | None) -> Pictures:
    if picture == "image" and pa.types.is_struct(schema.field(columns.image).type):
        return "structs"
    return _PICTURES[picture] if picture else "none"


def _read_footer(entry: storage.FileEntry) -> pq.FileMetaData:
    with open_parquet(entry) as file:
        return file.metadata


def _check_columns(
    uri: str, schema: pa.Schema, columns: ColumnsConfig, picture: Picture | None, *, first: pa.Schema
) -> None:
    for name in columns.pass_through:
        _field(uri, schema, name, "--columns.pass_through [NAME, …]")
    for asked in _expected_pictures(columns, picture):
        _field(uri, schema, getattr(columns, asked), f"--columns.{asked} NAME")
    wanted: list[str] = ["post_id", "text", *([picture] if picture else [])]
    for key in wanted:
        fits, kind = _FITTING[key]
        field = _field(uri, schema, getattr(columns, key), f"--columns.{key} NAME")
        if not fits(_plain(field.type)):
            raise DataError(
                f"{uri}: the column {field.name} holds {field.type}, not {kind}; "
                f"convert it or name another one with --columns.{key} NAME"
            )
    for name in [getattr(columns, key) for key in wanted] + list(columns.pass_through):
        here, there = _plain(schema.field(name).type), _plain(first.field(name).type)
        if here != there:
            raise DataError(
                f"{uri}: the column {name} holds {here}, but {there} in the archive's first file; "
                "tag the files of each kind apart"
            )


def _field(uri: str, schema: pa.Schema, name: str, remedy: str) -> pa.Field:
    if name not in schema.names:
        raise DataError(
            f"{uri} has no column {name}; it has: {', '.join(schema.names)}; name the right one with {remedy}"
        )
    if schema.names.count(name) > 1:
        raise DataError(f"{uri} has {schema.names.count(name)} columns called {name}; give each its own name")
    return schema.field(name)


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


def _is_image(kind: pa.DataType) -> bool:
    """Bytes, base64, or Hugging Face's `Image`: a struct of bytes and path, which are null where the other is given."""
    if not pa.types.is_struct(kind):
        return _is_bytes(kind) or _is_text(kind)
    parts = {part.name: _plain(part.type) for part in kind}
    data, path = parts.pop("bytes", pa.int8()), parts.pop("path", pa.null())
    return not parts and (_is_bytes(data) or _is_text(data)) and _is_text(path)


def _is_text_list(kind: pa.DataType) -> bool:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind)
    return types.is_null(kind) or (is_list and _is_text(_plain(kind.value_type)))


_FITTING: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "post_id": (lambda kind: _is_text(kind) or pa.types.is_integer(kind), "text or integers"),
    "text": (_is_text, "text"),
    "image": (_is_image, "binary, base64 or structs of bytes and path"),
    "image_uris": (_is_text_list, "lists of text"),
    "image_uri": (_is_text, "text"),
}


# ---- JSON Lines ----------------------------------------------------------------------------------


def _open_json_lines(
    uri: str,
    folder: str,
    files: Sequence[storage.FileEntry],
    columns: ColumnsConfig,
    scan_large: ScanFiles,
) -> Archive:
    if sum(entry.size for entry in files) <= _SCANNED_HERE_BYTES:
        found = Scan.total(scan_here(files, columns))
    else:
        with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
            list(pool.map(jsonlines.check_head, files))
        found = Scan.total(scan_large(files, columns))
    if found.rows == 0:
        raise DataError(f"{uri} holds no posts: its {len(files)} file(s) have no lines; check --input")
    picture = _picture(found.keys, columns)
    _check_pass_through(columns, picture)
    _check_keys(uri, found, columns, picture)
    layout = jsonlines.make_layout(columns, picture)
    return Archive(
        uri=uri,
        folder=folder,
        files=tuple(files),
        rows=found.rows,
        format="jsonl",
        pictures=_PICTURES[picture] if picture else "none",
        pass_through=tuple(layout.schema.field(name) for name in columns.pass_through),
        layout=layout,
    )


def _check_keys(uri: str, found: Scan, columns: ColumnsConfig, picture: Picture | None) -> None:
    if not found.keys:
        raise DataError(
            f"{uri}: no line holds a JSON object with keys ({found.problem or 'all are empty'}); "
            "JSON Lines has one object a line"
        )
    named = [(f"--columns.{key} NAME", getattr(columns, key)) for key in ("post_id", "text")]
    named += [
        (f"--columns.{key} NAME", getattr(columns, key)) for key in _expected_pictures(columns, picture)
    ]
    named += [("--columns.pass_through [NAME, …]", name) for name in columns.pass_through]
    keys = [key if key.isprintable() else ascii(key) for key in found.keys[:_SHOWN_KEYS]]
    for remedy, name in named:
        if name not in found.keys:
            raise DataError(
                f"{uri}: no line has the key {name}; the keys there: {', '.join(key[:60] for key in keys)}; "
                f"name the right one with {remedy}"
            )
        if name in (ROW_HASH, LINE_ERROR):
            raise DataError(
                f"{uri}: the key {name} has the name of a column that tagging adds; rename the key"
            )


# ---- columns of both -----------------------------------------------------------------------------


def _picture(names: Collection[str], columns: ColumnsConfig) -> Picture | None:
    """Which of the columns for pictures is read."""
    return next((key for key in _PICTURES if getattr(columns, key) in names), None)


def _expected_pictures(columns: ColumnsConfig, picture: Picture | None) -> list[Picture]:
    """The settings of picture columns without whose columns an archive is refused.

    Somebody who sets `image_uri: url` means that there is a column url: to tag the texts alone would hide a slip of the
    pen. But a setting with its default value says less: a configuration that is written out in full has
    `image: image`, `image_uri: image_uri` and `image_uris: image_uris` for an archive with one of the three. So these
    are expected only where the archive has no picture column at all.

    Args:
        columns: of which `model_fields_set` says what was set.
        picture: the column that is read, None where the archive has none of the three.
    """
    were_set = [key for key in _PICTURES if key in columns.model_fields_set]
    if picture is None:
        return were_set
    return [key for key in were_set if getattr(columns, key) != ColumnsConfig.model_fields[key].default]


def _check_pass_through(columns: ColumnsConfig, picture: Picture | None = None) -> None:
    tags = tags_schema(several_pictures=picture == "image_uris").names
    for name in columns.pass_through:
        if name in tags:
            raise DataError(
                f"--columns.pass_through names {name}, which is a column of the tags; rename it in the "
                f"archive or leave it out (columns of the tags: {', '.join(tags)})"
            )
        if columns.pass_through.count(name) > 1:
            raise DataError(f"--columns.pass_through names {name} twice; name it once")


# ---- values --------------------------------------------------------------------------------------


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
