"""Import of a public dataset, whichever it is: its splits, text lines and pictures are read, Parquet is written.

`twitter` and `flickr30k` say how a release is laid out and what its lines and boxes mean. What comes out is
`OUTPUT/<split>/part-00000.parquet`, … with `schema.TRAINING_SCHEMA`, and `OUTPUT/summary.json`, which tells what was
found in the release and what of it was left out (`refusals`).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow.fs as pafs

from mnerqg.datasets.prepared import ROWS_PER_FILE, write_split
from mnerqg.datasets.refusals import DATASET_FORMAT, DatasetSummary, Figures, SplitFigures
from mnerqg.errors import DataError, StorageError, one_line
from mnerqg.inputs.images import decode
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.io import storage
from mnerqg.schema import Post

SUMMARY_FILE = "summary.json"

# Stands in the output while an import runs: an object store cannot rename a finished directory into place.
_UNFINISHED = "_unfinished"

_PICTURE_ID = re.compile(r"\w[\w.-]*")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


# ---- reading --------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without line ends and BOM.

    Raises:
        DataError: the file cannot be read or, naming the line, is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the split's file there") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8; convert the file"
        ) from error
    # Only the line feed ends a line: tokens may hold U+0085 or U+2028, at which str.splitlines would cut.
    return [line.removesuffix("\r") for line in text.split("\n")]


def is_picture_id(text: str) -> bool:
    """Whether `text` can name a picture: it leads to no other directory."""
    return _PICTURE_ID.fullmatch(text) is not None


def choose_splits(
    root: Path, files: Mapping[str, str], named: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """The splits to import and those absent. `named` ones must exist; without, those that exist are taken.

    `files` are the names of the splits' files in `root` by split, in the order of import.

    Raises:
        DataError: if `root` is no directory, a name is no split's, or a split that is needed is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; give --root the directory that holds train.txt")
    present = [split for split, file in files.items() if (root / file).is_file()]
    for split in named or ():
        if split not in files:
            raise DataError(f"--splits: {split!r} is no split; choose from {', '.join(files)}")
        if split not in present:
            raise DataError(
                f"{root / files[split]}: missing; put it there or leave {split!r} out of --splits"
            )
    if not present:
        raise DataError(f"{root}: none of {', '.join(files.values())}; give --root the directory with them")
    return [split for split in present if split in (named or present)], [
        split for split in files if split not in present
    ]


def index_pictures(root: Path, pattern: str) -> dict[str, Path]:
    """The pictures in the directories of `root` that `pattern` matches, by name without suffix.

    Raises:
        DataError: there is no such directory.
    """
    directories = sorted(path for path in root.glob(pattern) if path.is_dir())
    if not directories:
        raise DataError(
            f"{root}: no directory {pattern}; put the pictures in one (an empty one imports the text alone)"
        )
    pictures: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.iterdir(), key=lambda path: path.suffix.lower() != ".jpg"):
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                pictures.setdefault(path.stem, path)
    return pictures


def read_picture(
    pictures: Mapping[str, Path], picture_id: str, figures: SplitFigures
) -> tuple[bytes, tuple[int, int]] | None:
    """The encoded picture and its upright (width, height) in pixels, None if it is missing or does not decode.

    Counts which of the three it is and names a picture that is not read.
    """
    path = pictures.get(picture_id)
    if path is None:
        figures.pictures_missing += 1
        figures.picture_problems.append(f"{picture_id}: no such picture")
        return None
    try:
        data = path.read_bytes()
        height, width = decode(data).shape[:2]
    except (ImageProblem, OSError) as problem:
        figures.pictures_unreadable += 1
        figures.picture_problems.append(f"{path.name}: {problem}")
        return None
    figures.pictures_found += 1
    return data, (width, height)


# ---- writing --------------------------------------------------------------------------------------------


def write_dataset(
    streams: Mapping[str, Iterable[Post]],
    summary: DatasetSummary[Figures],
    output: str,
    rows_per_file: int = ROWS_PER_FILE,
) -> None:
    """Write the posts of each split and then the summary to `output`, all or nothing.

    A local output is written in a hidden sibling directory and renamed when it is complete; in an object store
    an import that fails deletes what it wrote. What `output` holds is replaced: `check_output` comes first.
    The summary is read once all posts are, and so may be filled by their streams.

    Raises:
        StorageError: `output` cannot be written.
    """
    final = _local_path(output)
    target = output if final is None else str(final.with_name(f".{final.name}.unfinished"))
    storage.delete_directory(target)
    try:
        marker = storage.join(target, _UNFINISHED)
        storage.write_text(storage.join(marker, "marker.txt"), "an import is under way or was cut off\n")
        for split, posts in streams.items():
            write_split(posts, storage.join(target, split), rows_per_file)
        document = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False)
        storage.write_text(storage.join(target, SUMMARY_FILE), document + "\n")
        storage.delete_directory(marker)
        if final is not None:
            _put_in_place(Path(target), final)
    except BaseException:
        with suppress(StorageError):  # the first error is the one to tell
            storage.delete_directory(target)
        raise


def check_output(output: str, overwrite: bool) -> None:
    """Nothing but a prepared dataset is ever replaced, and that only where it is asked for.

    Raises:
        DataError: `output` is a file, or holds something that may not be replaced.
        StorageError: `output` cannot be listed.
    """
    names = _names(output)
    if not names or _UNFINISHED in names:
        return
    if SUMMARY_FILE not in names or not _is_dataset(storage.join(output, SUMMARY_FILE)):
        raise DataError(f"{output}: holds files that are no prepared dataset; give an empty or new directory")
    if not overwrite:
        raise DataError(
            f"{output}: holds a prepared dataset; give --overwrite to replace it, or another output"
        )


def _local_path(uri: str) -> Path | None:
    filesystem, path = storage.filesystem(uri)
    return Path(path).resolve() if isinstance(filesystem, pafs.LocalFileSystem) else None


def _names(uri: str) -> set[str]:
    """The names directly under a URI; none where there is nothing."""
    filesystem, path = storage.filesystem(uri)
    try:
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            raise DataError(f"{uri}: is a file; give a directory")
        selector = pafs.FileSelector(path, allow_not_found=True)
        return {info.base_name for info in filesystem.get_file_info(selector)}
    except OSError as error:
        raise StorageError(
            f"{uri}: cannot be listed ({one_line(error)}); check the name and your rights"
        ) from error


def _is_dataset(uri: str) -> bool:
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("format") == DATASET_FORMAT


def _put_in_place(finished: Path, final: Path) -> None:
    replaced = final.with_name(f".{final.name}.replaced")
    storage.delete_directory(str(replaced))
    if final.exists():
        final.rename(replaced)
    finished.rename(final)
    storage.delete_directory(str(replaced))
