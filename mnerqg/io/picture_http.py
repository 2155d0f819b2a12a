"""Pictures on the web, read from strangers' servers: the very address that was checked, in bounded time and memory."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import urllib3
import urllib3.exceptions

from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import one_line
from mnerqg.io.picture_places import PictureError, WebPlace


def fetch_web(target: WebPlace, config: PicturesConfig) -> bytes:
    """A picture on the web, within `timeout_s` from the first byte asked to the last one read. Raises PictureError."""
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
    # Not compressed, or a small answer could unpack to any size.
    headers = {"Host": target.authority, "Accept-Encoding": "identity", "User-Agent": "mnerqg"}
    try:
        with (
            _cut_off(pool, deadline),
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
            return read_bounded(
                lambda limit: _read_until(response, limit, deadline), _length(response), config
            )
    except urllib3.exceptions.SSLError as error:
        if time.monotonic() >= deadline:
            raise PictureError("missing", "timeout", transient=True) from error
        raise PictureError("forbidden", one_line(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        what = "timeout" if time.monotonic() >= deadline else type(error).__name__
        raise PictureError("missing", what, transient=True) from error


@contextmanager
def _cut_off(pool: urllib3.HTTPConnectionPool, deadline: float) -> Iterator[None]:
    """Within it, the pool's connections end at the deadline: a server that sends a byte now and then is no timeout."""
    timers: list[threading.Timer] = []

    class CutOff(pool.ConnectionCls):  # type: ignore[name-defined]
        def connect(self) -> None:
            super().connect()
            timer = threading.Timer(deadline - time.monotonic(), _shut_down, (self.sock,))
            timer.daemon = True
            timers.append(timer)
            timer.start()

    pool.ConnectionCls = CutOff
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        # Not the method of an SSLSocket, which would also forget the encryption that another thread is using.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _checked_address(target: WebPlace) -> str:
    """The host's address, after each of its addresses has been found to be one that may be asked."""
    try:
        answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise PictureError("missing", f"host {target.host}: {one_line(error)}", transient=passing) from error
    addresses = [str(answer[4][0]) for answer in answers]
    for address in addresses:
        if not _may_ask(address, target):
            raise PictureError(
                "forbidden", f"host {target.host} has the address {address}, which is not public"
            )
    return addresses[0]


def _may_ask(address: str, target: WebPlace) -> bool:
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
        raise PictureError("forbidden", f"{status}: redirects are not followed")
    if status in (401, 403):
        raise PictureError("forbidden", str(status))
    if status != 200:
        raise PictureError("missing", str(status), transient=status == 429 or status >= 500)


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
    # A connection that was cut off looks like the end of an answer.
    if time.monotonic() >= deadline:
        raise PictureError("missing", "timeout", transient=True)
    return b"".join(chunks)


def read_bounded(read: Callable[[int], bytes], size: int | None, config: PicturesConfig) -> bytes:
    """Reads a picture whose size is said to be `size`, but never more than one byte over the limit.

    Raises PictureError.
    """
    too_large = f"more than {config.max_bytes:,} bytes"
    if size is not None and size > config.max_bytes:
        raise PictureError("too_large", f"{too_large} ({size:,})")
    data = read((config.max_bytes if size is None else size) + 1)
    if len(data) > config.max_bytes:
        raise PictureError("too_large", too_large)
    if size is not None and len(data) < size:
        raise PictureError("missing", f"cut short at {len(data):,} of {size:,} bytes", transient=True)
    return data
