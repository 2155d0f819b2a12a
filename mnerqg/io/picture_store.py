"""Pictures whose URIs stand in somebody's posts (DESIGN §6).

They are read under the configured roots only, and every failure is a value.
"""

import errno
import ipaddress
import math
import os
import random
import re
import socket
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import botocore.exceptions
import urllib3
import urllib3.exceptions

from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import StorageError, one_line
from mnerqg.io import s3
from mnerqg.io.s3 import BAD_CREDENTIALS, NO_CREDENTIALS, UNREACHABLE, error_answer, s3_client
from mnerqg.io.storage import S3Place, join, locate, scheme_of
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


@dataclass(frozen=True, slots=True)
class _Http:
    scheme: str
    host: str
    port: int
    target: str
    named: bool  # a root names exactly this host, not only a domain above it


class _FetchError(Exception):
    def __init__(self, status: ImageStatus, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.status: ImageStatus = status
        self.transient = transient


class PictureStore:
    """Reads pictures whose URIs come from strangers; without roots none. Pickles; holds no connection itself.

    Statuses: ok (any bytes, not looked at), none (no URI), missing, forbidden (not below a root, or the store
    refuses), too_large.

    Raises:
        StorageError: see `check_roots`.
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
            return Fetched(None, "forbidden", f"the URI is of the type {type(uri).__name__}, not text")
        if not uri.strip():
            return Fetched(None, "none", None)
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
        try:
            target = _allowed(uri, self.config)
            if isinstance(target, Path):
                data = _fetch_local(target, self.config)
            elif isinstance(target, S3Place):
                data = _fetch_s3(target, self.config)
            else:
                data = _fetch_http(target, self.config)
        except _FetchError as failure:
            return Fetched(None, failure.status, str(failure), failure.transient)
        except Exception as error:
            return Fetched(None, "missing", f"{type(error).__name__}: {one_line(error)}")
        return Fetched(data, "ok", None)


def check_roots(roots: Sequence[str]) -> None:
    """Raises StorageError for a root that is no place at all, so that no run begins with it."""
    for root in roots:
        if scheme_of(root) in ("http", "https"):
            _check_http_root(root)
        else:
            locate(root)


def _allowed(uri: str, config: PicturesConfig) -> Path | S3Place | _Http:
    """Where to read `uri`, or a _FetchError 'forbidden'."""
    if not config.roots:
        raise _FetchError("forbidden", "no picture root is configured; name the ones that pictures lie under")
    _refuse_tricks(uri)
    if not uri.startswith("/") and not scheme_of(uri):
        uri = join(config.roots[0], uri)
    scheme = scheme_of(uri) or "file"
    if scheme not in config.schemes:
        raise _FetchError("forbidden", f"pictures are read over {', '.join(config.schemes)} only")
    if scheme in ("http", "https"):
        return _allowed_http(uri, config)
    try:
        place = locate(uri)
    except StorageError as error:
        raise _FetchError("forbidden", str(error)) from error
    roots = [locate(root) for root in config.roots if scheme_of(root) not in ("http", "https")]
    if isinstance(place, Path):
        # The real path is also what is opened, so that a link inside a root cannot lead out of it.
        place = Path(os.path.realpath(place))
        inside = any(place.is_relative_to(os.path.realpath(root)) for root in roots if isinstance(root, Path))
    else:
        inside = bool(place.key) and any(
            place.bucket == root.bucket and place.key.startswith(root.prefix)
            for root in roots
            if isinstance(root, S3Place)
        )
    if not inside:
        raise _FetchError("forbidden", "the picture is not under a configured root")
    return place


def _refuse_tricks(uri: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", uri):
        raise _FetchError("forbidden", "the URI contains control characters")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(?!//)", uri):
        raise _FetchError("forbidden", "the URI has a scheme without //")
    decoded = uri
    for _ in range(5):
        if any(part.partition(";")[0].strip() == ".." for part in re.split(r"[/\\]", decoded)):
            raise _FetchError("forbidden", "the URI climbs with '..'")
        previous, decoded = decoded, urllib.parse.unquote(decoded)
        if decoded == previous:
            return
    raise _FetchError("forbidden", "the URI is percent-encoded over and over")


def _fetch_local(path: Path, config: PicturesConfig) -> bytes:
    try:
        # Not blocking: opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _FetchError("forbidden", "not a regular file")
            return _bounded(file.read, status.st_size, config)
    except OSError as error:
        message = error.strerror or one_line(error)
        if error.errno in _FORBIDDEN_ERRNOS:
            raise _FetchError("forbidden", message) from error
        raise _FetchError("missing", message, transient=error.errno in _PASSING_ERRNOS) from error


def _fetch_s3(place: S3Place, config: PicturesConfig) -> bytes:
    try:
        # functools.cache alone would let every thread make a client of its own at the start.
        with _client_lock:
            client = s3_client(attempts=1, timeout_s=config.timeout_s, connections=config.concurrency)
        answer = client.get_object(Bucket=place.bucket, Key=place.key)
        with answer["Body"] as body:
            return _bounded(body.read, answer.get("ContentLength"), config)
    except botocore.exceptions.ClientError as error:
        code, http_status = error_answer(error)
        if http_status in (403, 401) or code == "AccessDenied" or code in BAD_CREDENTIALS:
            raise _FetchError("forbidden", one_line(error)) from error
        if http_status == 404:
            raise _FetchError("missing", code) from error
        if s3.is_passing(code, http_status):
            raise _FetchError("missing", f"{http_status} {code}".strip(), transient=True) from error
        raise _FetchError("missing", one_line(error)) from error
    except NO_CREDENTIALS as error:
        raise _FetchError("forbidden", one_line(error)) from error
    except (*UNREACHABLE, botocore.exceptions.IncompleteReadError, urllib3.exceptions.HTTPError) as error:
        raise _FetchError("missing", type(error).__name__, transient=True) from error


def _bounded(read: Callable[[int], bytes], size: int | None, config: PicturesConfig) -> bytes:
    """Reads a picture whose size is said to be `size`, but never more than one byte over the limit."""
    too_large = f"more than {config.max_bytes:,} bytes"
    if size is not None and size > config.max_bytes:
        raise _FetchError("too_large", f"{too_large} ({size:,})")
    data = read((config.max_bytes if size is None else size) + 1)
    if len(data) > config.max_bytes:
        raise _FetchError("too_large", too_large)
    if size is not None and len(data) < size:
        raise _FetchError("missing", f"cut short at {len(data):,} of {size:,} bytes", transient=True)
    return data


# ---- pictures over HTTP --------------------------------------------------------------------------


def _allowed_http(uri: str, config: PicturesConfig) -> _Http:
    try:
        asked = urllib.parse.urlsplit(uri)
        port = asked.port or _default_port(asked.scheme)
    except ValueError as error:
        raise _FetchError("forbidden", f"not a proper URL: {error}") from error
    host = asked.hostname or ""
    if (
        asked.username is not None
        or asked.password is not None
        or re.search(r"[\\\s]", uri)
        or not uri.isascii()
    ):
        raise _FetchError(
            "forbidden", "the URL has user information, a backslash, white space or other characters"
        )
    matches = []
    for root in (urllib.parse.urlsplit(root) for root in config.roots if scheme_of(root) == asked.scheme):
        name = root.hostname or ""
        prefix = root.path.rstrip("/") + "/"
        same_port = port == (root.port or _default_port(root.scheme))
        if same_port and asked.path.startswith(prefix) and (host == name or _is_below(host, name)):
            matches.append(host == name)
    if not matches:
        raise _FetchError("forbidden", "the picture is not under a configured root")
    target = asked.path + (f"?{asked.query}" if asked.query else "")
    return _Http(asked.scheme, host, port, target, named=any(matches))


def _check_http_root(root: str) -> None:
    try:
        parts = urllib.parse.urlsplit(root)
        proper = bool(parts.hostname) and parts.port != 0
    except ValueError:
        proper = False
    if not proper:
        raise StorageError(f"pictures: the root {root} is not a proper URL; write https://host/prefix")


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _is_below(host: str, pattern: str) -> bool:
    return pattern.startswith("*.") and host.endswith(pattern[1:])


def _fetch_http(target: _Http, config: PicturesConfig) -> bytes:
    deadline = time.monotonic() + config.timeout_s
    options: dict[str, Any] = {"timeout": config.timeout_s, "maxsize": 1, "retries": False}
    # Connecting to the very address that was checked: a second look-up could give another one.
    address = _checked_address(target)
    pool: urllib3.HTTPConnectionPool
    if target.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(
            address, target.port, server_hostname=target.host, assert_hostname=target.host, **options
        )
    else:
        pool = urllib3.HTTPConnectionPool(address, target.port, **options)
    name = f"[{target.host}]" if ":" in target.host else target.host
    if target.port != _default_port(target.scheme):
        name = f"{name}:{target.port}"
    # Not compressed, or a small answer could unpack to any size.
    headers = {"Host": name, "Accept-Encoding": "identity", "User-Agent": "mnerqg"}
    try:
        with (
            pool,
            pool.urlopen(
                "GET",
                target.target,
                headers=headers,
                redirect=False,
                preload_content=False,
                decode_content=False,
            ) as response,
        ):
            _check_http_status(response.status)
            return _bounded(lambda limit: _read_until(response, limit, deadline), _length(response), config)
    except urllib3.exceptions.SSLError as error:
        raise _FetchError("forbidden", one_line(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _FetchError("missing", type(error).__name__, transient=True) from error


def _checked_address(target: _Http) -> str:
    """The host's address, after each of its addresses has been found to be one that may be asked."""
    try:
        answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise _FetchError("missing", f"host {target.host}: {one_line(error)}", transient=passing) from error
    addresses = [str(answer[4][0]) for answer in answers]
    for address in addresses:
        if not _may_ask(address, target):
            raise _FetchError(
                "forbidden", f"host {target.host} has the address {address}, which is not public"
            )
    return addresses[0]


def _may_ask(address: str, target: _Http) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or _nat64(ip) or ip
    if ip.is_link_local:
        # Cloud machines hand out credentials there: a name that resolves to it is an attack.
        return target.named and target.host == address
    return target.named or (ip.is_global and not ip.is_multicast)


def _nat64(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def _check_http_status(status: int) -> None:
    if 300 <= status < 400:
        raise _FetchError("forbidden", f"{status}: redirects are not followed")
    if status in (401, 403):
        raise _FetchError("forbidden", str(status))
    if status != 200:
        raise _FetchError("missing", str(status), transient=status == 429 or status >= 500)


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _read_until(response: urllib3.BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    """Up to `limit` bytes; what trickles in past the deadline is a timeout, however lively."""
    chunks: list[bytes] = []
    size = 0
    while size < limit and (chunk := response.read1(min(limit - size, 1 << 16), decode_content=False)):
        chunks.append(chunk)
        size += len(chunk)
        if time.monotonic() > deadline:
            raise _FetchError("missing", "timeout", transient=True)
    return b"".join(chunks)
