"""Files of this machine, looked at before they are opened: no read waits for ever, or never ends."""

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """What a path is that is no regular file, in words, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "something special")


def size_of(path: Path) -> int:
    """Bytes of a file. Raises OSError for what is not there and for what is no file (FIFO, socket, device)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(0, f"is a link to {path.readlink()}, which is not there", str(path)) from None
        raise
    _check(path, found.st_mode)
    return found.st_size


def open_file(path: Path) -> BinaryIO:
    """A file to be read. Raises OSError as `size_of`, and for a folder."""
    size_of(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(descriptor).st_mode)  # it may be another one by now
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "is a directory, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(0, f"is {kind_of(mode)}, not a file", str(path))


def find_files(
    folder: Path, wanted: Callable[[str], bool] | None, *, recursive: bool
) -> Iterator[tuple[Path, int]]:
    """The files of a folder and of its folders, with their sizes.

    Names that begin with `_` or `.`, and `lost+found`, are skipped, folders of that kind with all they hold; symbolic
    links to folders are not followed.

    Args:
        folder: where to look.
        wanted: given a path below the folder, says whether it counts; what is wanted must be a file. None: whatever
            is a file counts, and anything else (a link to nothing, a FIFO) is passed over.
        recursive: whether to look into its folders, too.

    Raises:
        OSError: a folder cannot be read, or what is wanted is no file.
    """
    for above, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if recursive and not is_hidden(name)]
        for path in (Path(above, name) for name in names if not is_hidden(name)):
            if wanted is None:
                try:
                    size = size_of(path)
                except OSError:
                    continue
                yield path, size
            elif wanted(str(path.relative_to(folder))):
                yield path, size_of(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end; on an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raises OSError where a folder above `path`, the first that is there, is none or is not ours to write."""
    folder = path.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "permission denied", str(folder))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one of those that keep the state of some tool."""
    return name.startswith(("_", ".")) or name == "lost+found"


def _raise(error: OSError) -> NoReturn:
    raise error
