"""A directory of a store as a local one: what libraries that read files by their paths are given."""

import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path, PurePosixPath

from mnerqg.errors import StorageError
from mnerqg.io import storage
from mnerqg.io.s3 import S3Object, list_objects, s3_client


def download_directory(uri: str) -> Path:
    """A local directory with the files of `uri`, to be read only. A local one is given as it is.

    A remote one is copied, once per state of its files, into this user's cache in the temporary directory.
    Any number of processes may ask at once: each downloads apart, and the first to finish is kept. Raises
    StorageError.
    """
    place = storage.locate(uri)
    with storage.reported(uri):
        if isinstance(place, Path):
            if not place.is_dir():
                raise StorageError(f"{uri} does not exist or is not a directory; check the path")
            return place
        objects = [entry for entry in list_objects(place.bucket, place.prefix) if not entry.key.endswith("/")]
        if not objects:
            raise StorageError(f"{uri} does not exist or is empty; check the URI")
        return _cached_copy(place, objects)


def _cached_copy(place: storage.S3Place, objects: list[S3Object]) -> Path:
    cache = _cache_directory()
    client = s3_client()
    state = repr((client.meta.endpoint_url, place.bucket, place.prefix, objects))
    target = cache / hashlib.sha256(state.encode()).hexdigest()[:32]
    files = {_inside(target, entry.key[len(place.prefix) :]): entry for entry in objects}
    if _is_complete(files):
        return target
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
        fresh = Path(folder, "fresh")
        for file, entry in files.items():
            copy = fresh / file.relative_to(target)
            copy.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(place.bucket, entry.key, str(copy))
        if target.exists() and not _is_complete(files):  # something cleaned the temporary directory in part
            target.replace(Path(folder, "stale"))
        try:
            fresh.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # otherwise another process was first, with the same files
    return target


def _cache_directory() -> Path:
    cache = Path(tempfile.gettempdir(), f"mnerqg-{os.getuid()}")
    cache.mkdir(mode=0o700, exist_ok=True)
    status = cache.lstat()
    # The temporary directory is everybody's: another user could have put a model there for us to load.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StorageError(f"{cache} is not a private directory of this user; remove it or set TMPDIR")
    return cache


def _inside(folder: Path, relative: str) -> Path:
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts:
        raise StorageError(f"the key …/{relative} cannot be a file in a directory; rename the object")
    return folder.joinpath(*parts)


def _is_complete(files: dict[Path, S3Object]) -> bool:
    return all(file.is_file() and file.stat().st_size == entry.size for file, entry in files.items())
