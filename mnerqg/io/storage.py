"""The one place that turns a URI into a filesystem, a client or bytes.

A URI is a plain local path, `file://` (percent-encoded, as `pathlib.Path.as_uri` writes it) or
`s3://bucket/key` (the key as it is, nothing decoded). Endpoint, region and credentials come from the ambient
AWS environment, for boto3 and pyarrow alike; no key is ever passed on, so none ends up in a pickle, a config
or a log. Every failure is a `StorageError`. For URIs that stand in somebody's posts there is `pictures`.
"""

import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import boto3.exceptions
import botocore.exceptions
import botocore.session
import pyarrow.fs

from mnerqg.errors import StorageError
from mnerqg.io import local, s3
from mnerqg.io.s3 import s3_client


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file found by `list_files`: its URI, in the form of the URI asked for, and its size in bytes."""

    uri: str
    size: int


@dataclass(frozen=True, slots=True)
class S3Place:
    """An object or, with whatever lies below it, a directory in a bucket."""

    bucket: str
    key: str

    @property
    def prefix(self) -> str:
        """What the keys of this directory begin with."""
        return f"{self.key.rstrip('/')}/" if self.key.strip("/") else ""


# ---- URIs ----------------------------------------------------------------------------------------


def join(uri: str, *names: str) -> str:
    """`uri` with path components appended. Names are literal: under `file://` they get percent-encoded."""
    if not uri:
        raise StorageError(
            f"there is no URI to append {'/'.join(names)!r} to; give a path or s3://bucket/prefix"
        )
    parts = [name.strip("/") for name in names if name.strip("/")]
    if scheme_of(uri) == "file":
        parts = [urllib.parse.quote(part) for part in parts]
    return "/".join([uri.rstrip("/"), *parts]) if parts else uri


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of `uri` and the path in it (absolute, or `bucket/key`). Nothing is contacted.

    Raises StorageError for a scheme other than a plain path, file:// and s3://.
    """
    if isinstance(locate(uri), Path):
        return pyarrow.fs.LocalFileSystem(), path_of(uri)
    with reported(uri):
        session = botocore.session.Session()
        options: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 60}
        if region := session.get_config_variable("region"):
            options["region"] = region
        if endpoint := s3.configured_endpoint(session):
            scheme, _, host = endpoint.rpartition("://")
            options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
        # No access key here: an S3FileSystem pickles the one it is given, and Ray pickles filesystems. The
        # SDK finds the ambient credentials itself, in every process anew.
        return pyarrow.fs.S3FileSystem(**options), path_of(uri)


def path_of(uri: str) -> str:
    """The path that `filesystem` gives for `uri`, without making a filesystem, which takes milliseconds."""
    place = locate(uri)
    return str(place.absolute()) if isinstance(place, Path) else f"{place.bucket}/{place.key}".rstrip("/")


def absolute(uri: str) -> str:
    """The one name of a place, which every process understands whatever its working directory.

    A local path, made absolute, also for file://; s3:// without doubled or trailing slashes.
    """
    place = locate(uri)
    if isinstance(place, S3Place):
        return "/".join(["s3:/", place.bucket, *filter(None, place.key.split("/"))])
    path = place.resolve() if ".." in place.parts else place.absolute()
    return f"/{str(path).lstrip('/')}"


def scheme_of(uri: str) -> str:
    """What stands before `://`, in lower case; empty for a plain path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return match[1].lower() if match else ""


def locate(uri: str) -> Path | S3Place:
    """Where `uri` points to. Raises StorageError for a scheme other than a plain path, file:// and s3://."""
    scheme = scheme_of(uri)
    rest = uri.partition("://")[2]
    if not uri or "\0" in uri:
        raise StorageError(f"{uri!r} is not a URI; give a local path, file:///path or s3://bucket/prefix")
    if scheme == "":
        return Path(uri)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if not slash or host not in ("", "localhost"):
            raise StorageError(f"{uri} names the host {host!r}; write file:///absolute/path")
        return Path(urllib.parse.unquote("/" + path))
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise StorageError(f"{uri} names no bucket; write s3://bucket/prefix")
        return S3Place(bucket, key)
    raise StorageError(f"{uri}: the scheme '{scheme}' is not supported; use a local path, file:// or s3://")


# ---- errors --------------------------------------------------------------------------------------


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns whatever a filesystem or S3 raises into a StorageError of one line."""
    try:
        yield
    except (
        OSError,
        botocore.exceptions.BotoCoreError,
        botocore.exceptions.ClientError,
        boto3.exceptions.Boto3Error,
    ) as error:
        raise StorageError(_explain(uri, error)) from error


def _explain(uri: str, error: BaseException) -> str:
    if isinstance(error, boto3.exceptions.Boto3Error):
        error = error.__cause__ or error.__context__ or error
    if isinstance(error.__cause__, botocore.exceptions.ClientError):  # as smart_open wraps it
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or uri} does not exist; check the path"
    if isinstance(error, PermissionError):
        return f"{error.filename or uri}: permission denied; check the owner and mode of the path"
    if isinstance(error, OSError) and error.errno == 0:  # `local` says what is wrong with the path
        return f"{error.filename} {error.strerror}; remove it, or give another path"
    if isinstance(error, OSError) and error.strerror:
        return f"{uri}: {error.strerror.lower()}; check the path"
    return s3.explain(uri, error)


# ---- files and directories -----------------------------------------------------------------------


def exists(uri: str) -> bool:
    """Whether a file or a directory stands at `uri`. A missing bucket is a StorageError, not False."""
    place = locate(uri)
    with reported(uri):
        if isinstance(place, Path):
            return place.exists()
        if not place.prefix:
            s3_client().head_bucket(Bucket=place.bucket)
            return True
        # Two requests, since other keys may sort between `a` and `a/`, such as `a-b`.
        file = [entry.key for entry in s3.list_objects(place.bucket, place.key, limit=1)]
        return file == [place.key] or any(True for _ in s3.list_objects(place.bucket, place.prefix, limit=1))


def check_writable(uri: str) -> None:
    """Raises StorageError where a directory at `uri` could not be written, as far as can be told untried.

    That is: a local folder above that is none or is not ours to write, or a bucket that is not there.
    """
    place = locate(uri)
    with reported(uri):
        if isinstance(place, S3Place):
            s3_client().head_bucket(Bucket=place.bucket)
            return
        local.check_writable(place)


def list_files(
    uri: str,
    suffix: str | tuple[str, ...] = "",
    *,
    recursive: bool = True,
    matching: re.Pattern[str] | None = None,
) -> list[FileEntry]:
    """The files under a directory, sorted by URI, whose names end with `suffix`; with or without its folders.

    Names that begin with `_` or `.` are skipped, directories of that kind with all they hold; symbolic links
    to directories are not followed. With `matching`, only files count whose path below the directory it matches. What
    counts by its name must be a file: a FIFO, a socket, a device and a link to nothing are refused, and passed over
    where neither suffix nor pattern says that they are meant. A file gives itself. Raises StorageError where there is
    nothing.
    """
    place = locate(uri)
    wanted = None if not suffix and matching is None else _Wanted(suffix, matching)
    with reported(uri):
        if isinstance(place, Path):
            if not place.is_dir():
                return [FileEntry(uri, local.size_of(place))]
            as_uri = scheme_of(uri) == "file"
            found = [
                FileEntry(path.as_uri() if as_uri else str(path), size)
                for path, size in local.find_files(place, wanted, recursive=recursive)
            ]
        else:
            found = _list_s3(place, uri, wanted, recursive=recursive)
    return sorted(found, key=lambda entry: entry.uri)


@dataclass(frozen=True)
class _Wanted:
    suffix: str | tuple[str, ...]
    matching: re.Pattern[str] | None

    def __call__(self, path: str) -> bool:
        return path.endswith(self.suffix) and (self.matching is None or bool(self.matching.match(path)))


def _list_s3(place: S3Place, uri: str, wanted: _Wanted | None, *, recursive: bool) -> list[FileEntry]:
    if place.key and not place.key.endswith("/"):
        for entry in s3.list_objects(place.bucket, place.key, limit=1):
            if entry.key == place.key:
                return [FileEntry(uri, entry.size)]
    objects = list(s3.list_objects(place.bucket, place.prefix, recursive=recursive))
    if not objects and place.prefix and not exists(uri):
        raise StorageError(f"{uri} does not exist; check the URI")
    start = len(place.prefix)
    return [
        FileEntry(f"s3://{place.bucket}/{entry.key}", entry.size)
        for entry in objects
        if not entry.key.endswith("/")  # the empty objects that some tools leave as directories
        and not any(local.is_hidden(name) for name in entry.key[start:].split("/"))
        and (wanted is None or wanted(entry.key[start:]))
    ]


def read_bytes(uri: str) -> bytes:
    """The contents of a file. Raises StorageError where it is missing."""
    place = locate(uri)
    with reported(uri):
        if isinstance(place, S3Place):
            return s3.read_object(place.bucket, place.key)
        with local.open_file(place) as file:
            return file.read()


def read_range(uri: str, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` up to `stop`; fewer where it ends before. Raises StorageError."""
    place = locate(uri)
    if stop <= start:
        return b""
    with reported(uri):
        if isinstance(place, S3Place):
            return s3.read_object(place.bucket, place.key, (start, stop))
        with local.open_file(place) as file:
            file.seek(start)
            return file.read(stop - start)


@contextmanager
def open_stream(uri: str) -> Iterator[BinaryIO]:
    """The bytes of a file from its beginning, of whatever size it is; broken connections are mended.

    Raises StorageError, for what a read in the `with` block raises, too.
    """
    place = locate(uri)
    with reported(uri):
        if isinstance(place, Path):
            stream: Any = local.open_file(place)
        else:
            # Imported here, since it brings half of Google's client along: most processes can do without.
            import smart_open.s3

            stream = smart_open.s3.open(place.bucket, place.key, "rb", client=s3_client())
        with stream:
            yield stream


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file as a whole or not at all; parent directories are created. Raises StorageError."""
    place = locate(uri)
    with reported(uri):
        if isinstance(place, Path):
            with local.replacing(place) as temporary:
                temporary.write_bytes(data)
        else:
            s3_client().put_object(Bucket=place.bucket, Key=place.key, Body=data)


def read_text(uri: str) -> str:
    """The contents of a UTF-8 file. Raises StorageError where it is missing or not UTF-8."""
    data = read_bytes(uri)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{uri} is not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def write_text(uri: str, text: str) -> None:
    """Writes a UTF-8 file as `write_bytes` does."""
    write_bytes(uri, text.encode("utf-8"))


def read_with_etag(uri: str) -> tuple[str, str] | None:
    """The text of an object and its ETag, None where there is no object; within seconds or not at all.

    For s3:// only. Raises StorageError.
    """
    place = _object_at(uri)
    with reported(uri):
        return s3.read_with_etag(place.bucket, place.key)


def write_if_etag(uri: str, text: str, etag: str | None) -> str | None:
    """Writes an object that is still as `etag` says, or is not there where that is None; within seconds or not at all.

    For s3:// only. Returns the new ETag, or None where the object was another one: then nothing is written. Raises
    StorageError.
    """
    place = _object_at(uri)
    with reported(uri):
        return s3.write_if_etag(place.bucket, place.key, text, etag)


def _object_at(uri: str) -> S3Place:
    place = locate(uri)
    assert isinstance(place, S3Place), uri
    return place


def delete_file(uri: str) -> None:
    """Deletes a file; none there is fine. Raises StorageError."""
    place = locate(uri)
    with reported(uri):
        if isinstance(place, Path):
            place.unlink(missing_ok=True)
        else:
            s3_client().delete_object(Bucket=place.bucket, Key=place.key)


def copy_file(source: str, target: str) -> None:
    """Copies a file as a whole, within a store on the store's side. Raises StorageError."""
    old, new = locate(source), locate(target)
    with reported(source):
        if isinstance(old, Path) and isinstance(new, Path):
            with local.replacing(new) as temporary:
                shutil.copyfile(old, temporary)
        elif isinstance(old, S3Place) and isinstance(new, S3Place):
            s3_client().copy({"Bucket": old.bucket, "Key": old.key}, new.bucket, new.key)
        else:
            write_bytes(target, read_bytes(source))


def delete_directory(uri: str, *, keep: str | None = None) -> None:
    """Deletes a directory and all it holds; none there is fine. With `keep`, a file of that name in it stays, and it.

    Raises StorageError for a file, for a whole bucket and for the root of the machine.
    """
    place = locate(uri)
    with reported(uri):
        if isinstance(place, Path):
            if place.absolute() == Path(place.absolute().anchor):
                raise StorageError(
                    f"{uri} is the root of the machine, which is not deleted; name a directory"
                )
            if keep is not None and place.is_dir():
                for child in place.iterdir():
                    if child.is_dir() and not child.is_symlink():
                        shutil.rmtree(child)
                    elif child.name != keep:
                        child.unlink()
            elif os.path.lexists(place):
                shutil.rmtree(place)
            return
        if not place.prefix:
            raise StorageError(f"{uri} is a whole bucket, which is not deleted; name a prefix in it")
        kept = None if keep is None else place.prefix + keep
        keys = [entry.key for entry in s3.list_objects(place.bucket, place.prefix) if entry.key != kept]
        for key, code in s3.delete_objects(place.bucket, keys):
            raise StorageError(f"s3://{place.bucket}/{key} was not deleted: {code}")
