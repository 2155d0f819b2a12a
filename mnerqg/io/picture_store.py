"""Pictures whose URIs stand in somebody's posts.

They are read under the configured roots only, and every failure is a value.
"""

import errno
import math
import os
import random
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import botocore.exceptions
import urllib3.exceptions

from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import one_line
from mnerqg.io import s3
from mnerqg.io.local import kind_of
from mnerqg.io.picture_http import fetch_web, read_bounded
from mnerqg.io.picture_places import PictureError, Place, check_roots, places_of, shown
from mnerqg.io.picture_text import BLANKS, is_data_uri, read_picture_text
from mnerqg.io.s3 import BAD_CREDENTIALS, NO_CREDENTIALS, UNREACHABLE, error_answer, s3_client
from mnerqg.io.storage import S3Place
from mnerqg.schema import ImageStatus

_PASSING_ERRNOS = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
_FORBIDDEN_ERRNOS = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EISDIR}

_client_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Fetched:
    """The encoded picture, or why there is none. `transient`: trying again later may help."""

    data: bytes | None
    status: ImageStatus
    error: str | None
    transient: bool = False


class PictureStore:
    """Reads pictures whose URIs come from strangers; without roots none. Pickles; holds no connection itself.

    Statuses: ok (any bytes, not looked at), none (no URI), missing, forbidden (not below a root, or the store
    refuses), too_large, unreadable (not text, or a broken data URI).

    Raises:
        StorageError: see `picture_places.check_roots`.
    """

    def __init__(self, config: PicturesConfig) -> None:
        check_roots(config.roots)
        self.config = config

    def fetch_many(self, uris: Sequence[object]) -> list[Fetched]:
        """One result per URI, in order; `concurrency` in flight, equal URIs fetched once. Never raises."""
        distinct = list(dict.fromkeys(uri for uri in uris if isinstance(uri, str)))
        fetched: dict[str, Fetched] = {}
        if distinct:
            with ThreadPoolExecutor(min(self.config.concurrency, len(distinct))) as pool:
                fetched = dict(zip(distinct, pool.map(self.fetch, distinct), strict=True))
        return [fetched[uri] if isinstance(uri, str) else self.fetch(uri) for uri in uris]

    def fetch(self, uri: object) -> Fetched:
        """The picture at one URI. Never raises; None, NaN (pandas' null) and an empty string mean none."""
        if uri is None or (isinstance(uri, float) and math.isnan(uri)):
            return Fetched(None, "none", None)
        if not isinstance(uri, str):
            return Fetched(None, "unreadable", f"the URI is of the type {type(uri).__name__}, not text")
        if not uri.strip(BLANKS):
            return Fetched(None, "none", None)
        if is_data_uri(uri):
            return _read_data_uri(uri)
        fetched = self._attempt(uri)
        for attempt in range(2, self.config.attempts + 1):
            if not fetched.transient:
                return fetched
            # Full jitter: the workers of a cluster that were throttled together must not come back together.
            time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))
            fetched = self._attempt(uri)
        if fetched.transient:
            return replace(fetched, error=f"{fetched.error} after {self.config.attempts} attempts")
        return fetched

    def _attempt(self, uri: str) -> Fetched:
        """The picture at the first of the places that has it; else what is wrong with the first place."""
        try:
            places = places_of(uri, self.config)
        except PictureError as refusal:
            return Fetched(None, refusal.status, f"{refusal} {shown(uri)}")
        except Exception as error:
            return Fetched(None, "missing", f"{type(error).__name__}: {one_line(error)} {shown(uri)}")
        results: list[Fetched] = []
        for place in places:
            results.append(self._read(place))
            if results[-1].status == "too_large" or results[-1].transient or results[-1].status == "ok":
                return results[-1]
        return results[0]

    def _read(self, place: Place) -> Fetched:
        try:
            if isinstance(place, Path):
                data = _fetch_local(place, self.config)
            elif isinstance(place, S3Place):
                data = _fetch_s3(place, self.config)
            else:
                data = fetch_web(place, self.config)
        except PictureError as failure:
            return Fetched(None, failure.status, f"{failure} {shown(place)}", failure.transient)
        except Exception as error:
            return Fetched(None, "missing", f"{type(error).__name__}: {one_line(error)} {shown(place)}")
        return Fetched(data, "ok", None)


def _read_data_uri(uri: str) -> Fetched:
    try:
        return Fetched(read_picture_text(uri), "ok", None)
    except ValueError as error:
        return Fetched(None, "unreadable", f"the data URI {error}")


def _fetch_local(path: Path, config: PicturesConfig) -> bytes:
    try:
        # Not blocking: opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PictureError("forbidden", f"{kind_of(status.st_mode)}, not a regular file")
            return read_bounded(file.read, status.st_size, config)
    except OSError as error:
        message = error.strerror or one_line(error)
        if error.errno in _FORBIDDEN_ERRNOS:
            raise PictureError("forbidden", message) from error
        raise PictureError("missing", message, transient=error.errno in _PASSING_ERRNOS) from error


def _fetch_s3(place: S3Place, config: PicturesConfig) -> bytes:
    try:
        # functools.cache alone would let every thread make a client of its own at the start.
        with _client_lock:
            client = s3_client(attempts=1, timeout_s=config.timeout_s, connections=config.concurrency)
        answer = client.get_object(Bucket=place.bucket, Key=place.key)
        with answer["Body"] as body:
            return read_bounded(body.read, answer.get("ContentLength"), config)
    except botocore.exceptions.ClientError as error:
        code, http_status = error_answer(error)
        if http_status in (403, 401) or code == "AccessDenied" or code in BAD_CREDENTIALS:
            raise PictureError("forbidden", one_line(error)) from error
        if http_status == 404:
            raise PictureError("missing", code) from error
        if s3.is_passing(code, http_status):
            raise PictureError("missing", f"{http_status} {code}".strip(), transient=True) from error
        raise PictureError("missing", one_line(error)) from error
    except NO_CREDENTIALS as error:
        raise PictureError("forbidden", one_line(error)) from error
    except (*UNREACHABLE, botocore.exceptions.IncompleteReadError, urllib3.exceptions.HTTPError) as error:
        raise PictureError("missing", type(error).__name__, transient=True) from error
