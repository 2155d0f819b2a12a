"""Which files are an archive, and what their folders say of them."""

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fsspec.utils import glob_translate

from mnerqg.errors import DataError
from mnerqg.io import storage

Format = Literal["parquet", "jsonl"]

PARQUET = ".parquet"
JSON_LINES = tuple(kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst"))
_ENDINGS = (PARQUET, *JSON_LINES)
_WILDCARD = re.compile(r"[*?[]")
_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Found:
    """The files of an archive, all of one format, each once.

    Attributes:
        folders: of each input its directory, of a glob the part before the first wildcard.
        files: sorted by URI.
        format: of the files.
    """

    folders: tuple[str, ...]
    files: tuple[storage.FileEntry, ...]
    format: Format


def find_files(uris: Sequence[str]) -> Found:
    """The files of an archive that lies at one or several places; what does not end as its files do is passed over.

    Args:
        uris: files, directories, or globs (`*`, `?`, `[...]`, and `**` for any folders). A name with such characters
            in it is no glob where something of that name exists.

    Raises:
        StorageError: a URI cannot be read, or what is named as a file is none.
        DataError: no files, or both formats.
    """
    found = [_find_files(uri) for uri in uris]
    files = {storage.path_of(entry.uri): entry for _, entries in found for entry in entries}
    entries = tuple(sorted(files.values(), key=lambda entry: entry.uri))
    folders = tuple(dict.fromkeys(folder for folder, _ in found))
    return Found(folders, entries, _format(uris, folders, entries))


def _find_files(uri: str) -> tuple[str, list[storage.FileEntry]]:
    wildcard = _WILDCARD.search(uri)
    if wildcard and not storage.exists(uri):
        return _match_files(uri, uri[: wildcard.start()])
    files = storage.list_files(uri, _ENDINGS)
    if [entry.uri for entry in files] == [uri]:
        if not uri.endswith(_ENDINGS):
            raise DataError(f"{uri} ends in none of {', '.join(_ENDINGS)}; rename it to what it is")
        return uri.rpartition("/")[0] or ("/" if uri.startswith("/") else "."), files
    if not files:
        raise DataError(
            f"{uri} holds no *.parquet files and no JSON Lines ({', '.join(JSON_LINES)}); check --input"
        )
    return uri, files


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
    recursive = "/" in asked or "**" in asked
    files = storage.list_files(folder, _ENDINGS, recursive=recursive, matching=pattern)
    if not files:
        raise DataError(
            f"{uri} matches no file that ends in {', '.join(_ENDINGS)}; a glob names files, "
            "with /** at its end all files of the folders"
        )
    return folder, files


def _format(uris: Sequence[str], folders: Sequence[str], files: Sequence[storage.FileEntry]) -> Format:
    parquet = [entry.uri for entry in files if entry.uri.endswith(PARQUET)]
    lines = [entry.uri for entry in files if not entry.uri.endswith(PARQUET)]
    if parquet and lines:
        raise DataError(
            f"{', '.join(uris)} holds both Parquet ({parquet[0]}) and JSON Lines ({lines[0]}); tag each apart with a "
            f"glob, such as {folders[0].rstrip('/')}/**/*{PARQUET}"
        )
    return "parquet" if parquet else "jsonl"


def path_values(path: str) -> dict[str, str | None]:
    """What the folders of a file are named to say of all its rows, as Hive writes it: `lang=de/` is lang, "de".

    Values are text, percent-decoded; null where a writer had none. Of two folders with the same name the inner one
    counts.

    Args:
        path: in the filesystem, as `storage.path_of` gives it.
    """
    values: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if name and equals:
            values[urllib.parse.unquote(name)] = None if value == _NULL else urllib.parse.unquote(value)
    return values
