"""HTTP servers for tests: one whose answers are written down beforehand, a faulty proxy, a real Ceph gateway."""

import contextlib
import functools
import http.client
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mnerqg.io import storage


class ScriptedServer:
    """Answers each request with the next of `script`, the last one again and again."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], bytes]] = [(200, {}, b"")]
        self.requests: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.delay_s = 0.0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return self.http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.requests.append(handler.path)
            status, headers, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        time.sleep(self.delay_s)
        with self.lock:
            self.in_flight -= 1
        with contextlib.suppress(OSError):  # the client may have hung up
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)


def s3_error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the store</Message></Error>"
    return status, {"Content-Type": "application/xml"}, body.encode()


# ---- a faulty proxy --------------------------------------------------------------------------------

FAULTS = ("slow_down", "internal_error", "drop", "stall", "cut")
"""503 and 500 as S3 words them, no answer at all, none after a wait, and half of the body."""
LOST_ANSWER = "lost_answer"
"""Also understood: what was asked is done, but no answer comes."""

_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    "expect",  # answered here: the body is read as a whole before it is passed on
}


class FaultyProxy:
    """An HTTP/1.1 proxy on 127.0.0.1 in front of an S3 server that spoils a share of the requests.

    A spoilt request never reaches the server, so that trying again is all that a client has to do; only "cut",
    which befalls GET alone, and LOST_ANSWER spoil a real answer. `share`, `kinds` and `stall_s` may be changed at
    any time.

    Args:
        upstream: the server's URL.
        share: of the requests that get a fault.
        seed: of the faults; which request gets one depends on the order in which they come.
        kinds: of `FAULTS` and LOST_ANSWER, all equally likely.
        stall_s: how long a stalled request waits for its end.
    """

    def __init__(
        self,
        upstream: str,
        share: float,
        seed: int,
        *,
        kinds: Sequence[str] = FAULTS,
        stall_s: float = 1.0,
    ) -> None:
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.share, self.kinds, self.stall_s = share, tuple(kinds), stall_s
        self.requests: Counter[str] = Counter()  # by method
        self.faults: Counter[str] = Counter()  # by kind
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._http = _ProxyServer(("127.0.0.1", 0), functools.partial(_ProxyHandler, self))
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def draw(self, method: str) -> str | None:
        """Counts a request; gives the fault that befalls it, None for most."""
        with self._lock:
            self.requests[method] += 1
            kinds = [kind for kind in self.kinds if kind != "cut" or method == "GET"]
            if self._random.random() >= self.share or not kinds:
                return None
            kind = self._random.choice(kinds)
            self.faults[kind] += 1
            return kind

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        # Clients keep their connections, and would be served for as long as they like.
        for connection in tuple(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _ProxyServer(ThreadingHTTPServer):
    request_queue_size = 256  # connections of a whole cluster come at once


class _ProxyHandler(BaseHTTPRequestHandler):
    """One connection of a client, and one of its own to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, which Nagle holds 40 ms apart

    def __init__(self, proxy: FaultyProxy, *arguments: Any) -> None:
        self.proxy = proxy
        self.server_side = http.client.HTTPConnection(proxy.upstream, timeout=300)
        super().__init__(*arguments)

    def setup(self) -> None:
        super().setup()
        self.proxy.connections.add(self.connection)

    def handle(self) -> None:
        # Either side may hang up; the other one's connection then ends, too.
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle()

    def finish(self) -> None:
        self.proxy.connections.discard(self.connection)
        self.server_side.close()
        super().finish()

    def serve(self) -> None:
        body = self._body()
        match self.proxy.draw(self.command):
            case None:
                self._relay(self._ask(body))
            case "slow_down":
                self._refuse(503, "SlowDown")
            case "internal_error":
                self._refuse(500, "InternalError")
            case "cut":
                self._cut(self._ask(body))
            case "lost_answer":
                self._ask(body).read()
                self.close_connection = True
            case kind:
                self.proxy.closing.wait(self.proxy.stall_s if kind == "stall" else 0)
                self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815 - the names that http.server calls

    @property
    def _is_chunked(self) -> bool:
        return str(self.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    def _body(self) -> bytes | None:
        """The body of the request, without its framing; None where there is none."""
        if not self._is_chunked:
            length = self.headers.get("Content-Length")
            return self._read(int(length)) if length else None
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self._read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers, up to an empty line
            pass
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client hung up")
        return data

    def _ask(self, body: bytes | None) -> http.client.HTTPResponse:
        is_reused = self.server_side.sock is not None
        try:
            return self._send(body)
        except (ConnectionError, http.client.HTTPException):
            self.server_side.close()
            if not is_reused:
                raise
        return self._send(body)  # the server had closed the idle connection

    def _send(self, body: bytes | None) -> http.client.HTTPResponse:
        # The client's own Host, byte for byte: its signature covers it.
        self.server_side.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.server_side.putheader(name, value)
        if self._is_chunked:
            self.server_side.putheader("Transfer-Encoding", "chunked")
        self.server_side.endheaders(body, encode_chunked=self._is_chunked)
        return self.server_side.getresponse()

    def _relay(self, answer: http.client.HTTPResponse) -> None:
        is_chunked = self._head(answer)
        while block := answer.read1(1 << 16):
            self.wfile.write(_chunk(block) if is_chunked else block)
        if answer.length:  # read1 takes an early end for the end
            self.close_connection = True
        elif is_chunked:
            self.wfile.write(_chunk(b""))
        answer.close()

    def _cut(self, answer: http.client.HTTPResponse) -> None:
        data = answer.read()
        self.close_connection = True
        if data:  # where there is nothing to cut, no answer comes
            half = data[: len(data) // 2]
            self.wfile.write(_chunk(half) if self._head(answer) else half)

    def _head(self, answer: http.client.HTTPResponse) -> bool:
        """Sends status and headers; whether a body of unknown length follows, in chunks."""
        has_body = self.command != "HEAD" and answer.status not in (204, 304)
        is_chunked = has_body and answer.getheader("Content-Length") is None
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        return is_chunked

    def _refuse(self, status: int, code: str) -> None:
        _, headers, body = s3_error(status, code)
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.contextmanager
def faults(
    endpoint: str, share: float = 0.05, seed: int = 1, kinds: Sequence[str] = FAULTS
) -> Iterator[FaultyProxy]:
    """A proxy that spoils a share of the requests, between this process (and its children) and the S3 server."""
    proxy = FaultyProxy(endpoint, share=share, seed=seed, kinds=kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage.s3_client.cache_clear()
        yield proxy
    storage.s3_client.cache_clear()
    proxy.close()


def create_bucket() -> str:
    """The URI of a fresh, empty bucket on the S3 server of the environment."""
    name = f"bucket-{uuid.uuid4().hex}"
    storage.s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"


# ---- Ceph ------------------------------------------------------------------------------------------

_CEPH_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_CEPH_SCRIPT = Path(__file__).resolve().parents[2] / "shared" / "tools" / "ceph-rgw.sh"
CEPH_KEY, CEPH_SECRET = "testkey", "testsecret123"


def ceph_missing() -> str | None:
    """What keeps a Ceph gateway from running here, if anything does."""
    if not _CEPH_SCRIPT.is_file():
        return f"{_CEPH_SCRIPT} is not there"
    missing = [program for program in _CEPH_PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}; {_CEPH_SCRIPT.name} says how" if missing else None


@contextlib.contextmanager
def ceph_gateway() -> Iterator[str]:
    """The URL of a Ceph RADOS gateway with empty storage in memory; it takes half a minute to start."""
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, contextlib.ExitStack() as stack:
        log = Path(folder, "up.log")
        # One start in three fails within seconds: Ceph 16 sends its monitor a command before it has been told the
        # cluster's id (`wrong fsid`).
        for attempt in range(10):
            port, monitor_port = free_ports(2)
            cluster = Path(folder, str(attempt))  # short: it holds Unix sockets
            stack.callback(_stop_ceph, cluster)
            command = ["bash", str(_CEPH_SCRIPT), "up", str(cluster), str(port), str(monitor_port)]
            with log.open("wb") as output:  # not a pipe: the daemons would keep it open
                code = subprocess.run(
                    command, stdout=output, stderr=output, timeout=180, check=False
                ).returncode
            if not code:
                break
        else:
            raise RuntimeError(f"{_CEPH_SCRIPT} up ended with {code}: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def ceph_environment(endpoint: str) -> Iterator[None]:
    """The AWS environment of this process and its children points to that gateway, and nothing else is in it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", CEPH_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CEPH_SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage.s3_client.cache_clear()
        yield
    storage.s3_client.cache_clear()


def _stop_ceph(cluster: Path) -> None:
    pids = [file.read_text().strip() for file in cluster.glob("run/*.pid")]
    subprocess.run(["bash", str(_CEPH_SCRIPT), "down", str(cluster)], check=True)
    deadline = time.monotonic() + 60
    while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)  # they still write to the directory


def _is_running(pid: str) -> bool:
    try:
        return bool(Path("/proc", pid, "cmdline").read_bytes())  # a zombie's is empty
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
