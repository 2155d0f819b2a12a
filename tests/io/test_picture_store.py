import contextlib
import datetime
import errno
import io
import os
import pickle
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from mnerqg.config_jobs import PicturesConfig
from mnerqg.errors import StorageError
from mnerqg.io import storage
from mnerqg.io.picture_store import Fetched, PictureStore
from tests.servers import ScriptedServer, s3_error


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = jpeg()


def put(bucket: str, key: str, data: bytes = PICTURE) -> str:
    storage.write_bytes(f"{bucket}/{key}", data)
    return f"{bucket}/{key}"


def test_no_credentials(s3_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert PictureStore(PicturesConfig(roots=("s3://bucket",))).fetch("s3://bucket/x").status == "forbidden"


def test_unreachable_endpoint(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        storage.s3_client.cache_clear()
        try:
            fetched = PictureStore(PicturesConfig(roots=("s3://bucket",), attempts=2)).fetch("s3://bucket/x")
        finally:
            storage.s3_client.cache_clear()
    assert (fetched.status, fetched.transient) == ("missing", True)
    assert fetched.error == "EndpointConnectionError after 2 attempts"


# ---- pictures: local and S3 ------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A root with one picture, and a secret beside the root."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(PICTURE)
    (root / "100%.jpg").write_bytes(PICTURE)
    (tmp_path / "pictures-other").mkdir()
    (tmp_path / "pictures-other" / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "secret").write_bytes(b"secret")
    return root


def test_local_statuses(pictures: Path) -> None:
    store = PictureStore(PicturesConfig(roots=(str(pictures),), max_bytes=len(PICTURE)))
    assert store.fetch(str(pictures / "a.jpg")) == Fetched(PICTURE, "ok", None)
    assert store.fetch("a.jpg").status == "ok"
    assert store.fetch((pictures / "100%.jpg").as_uri()).status == "ok"
    assert store.fetch("100%.jpg").status == "ok"
    for empty in (None, "", "  \n"):
        assert store.fetch(empty) == Fetched(None, "none", None)
    assert store.fetch(float("nan")) == Fetched(None, "none", None)
    for odd in (b"a.jpg", 1.5, ["a.jpg"], {}):
        assert store.fetch(odd).status == "forbidden"
    assert [one.status for one in store.fetch_many([["a"], "a.jpg", float("nan"), b"x", "a.jpg"])] == [
        "forbidden", "ok", "none", "forbidden", "ok",
    ]  # fmt: skip
    for missing in ("b.jpg", "a.jpg/b.jpg", "x" * 300):
        assert store.fetch(missing).status == "missing"
        assert not store.fetch(missing).transient
    (pictures / "big.jpg").write_bytes(PICTURE + b"1")
    assert store.fetch("big.jpg").status == "too_large"
    (pictures / "zero.jpg").write_bytes(b"")
    assert store.fetch("zero.jpg") == Fetched(b"", "ok", None)
    os.mkfifo(pictures / "pipe")
    for odd in ("sub", "pipe", ".", str(pictures)):
        assert store.fetch(odd).status == "forbidden", odd


def test_local_device_is_forbidden() -> None:
    assert PictureStore(PicturesConfig(roots=("/dev",))).fetch("/dev/zero").status == "forbidden"


def test_local_links(pictures: Path) -> None:
    (pictures / "inside.jpg").symlink_to(pictures / "a.jpg")
    (pictures / "out.jpg").symlink_to(pictures.parent / "secret")
    (pictures / "out").symlink_to(pictures.parent)
    (pictures / "loop").symlink_to(pictures / "loop")
    (pictures.parent / "link").symlink_to(pictures)
    store = PictureStore(PicturesConfig(roots=(str(pictures.parent / "link"),)))
    assert store.fetch("inside.jpg").status == "ok"
    assert store.fetch(str(pictures / "a.jpg")).status == "ok"
    for uri in ("out.jpg", "out/secret", "loop"):
        assert store.fetch(uri).status == "forbidden", uri


@pytest.mark.parametrize("as_uri", [False, True])
def test_local_tricks(pictures: Path, as_uri: bool) -> None:
    root = pictures.as_uri() if as_uri else str(pictures)
    store = PictureStore(PicturesConfig(roots=(root,)))
    for uri in (
        "../secret",
        "sub/../../secret",
        "sub/../a.jpg",
        "..%2fsecret",
        "%2e%2e/secret",
        "%252e%252e/secret",
        "%25252525252e%25252525252e/secret",
        "..\\secret",
        "a.jpg\0.png",
        "a.jpg\n",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file://elsewhere/etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "file:etc/passwd",
        f"{root}/../secret",
        f"{root}/%2e%2e/secret",
        f"{root}-other/a.jpg",
        str(pictures.parent / "secret"),
        (pictures.parent / "pictures-other" / "a.jpg").as_uri(),
        "s3://bucket/a.jpg",
        "http://127.0.0.1/a.jpg",
        "https://example.com/a.jpg",
        "gopher://127.0.0.1/a",
        "ftp://example.com/a.jpg",
        "data:image/png;base64,AAAA",
        "~/secret/../x",
    ):
        fetched = store.fetch(uri)
        assert (fetched.status, fetched.data) == ("forbidden", None), uri
        assert fetched.error
        assert "\n" not in fetched.error


def test_nothing_is_read_without_roots_or_schemes(pictures: Path) -> None:
    assert PictureStore(PicturesConfig()).fetch(str(pictures / "a.jpg")).status == "forbidden"
    only_s3 = PicturesConfig(roots=(str(pictures),), schemes=("s3",))
    assert PictureStore(only_s3).fetch(str(pictures / "a.jpg")).status == "forbidden"


def test_local_passing_failure(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*arguments: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "open", stale)
    fetched = PictureStore(PicturesConfig(roots=(str(pictures),), attempts=2)).fetch("a.jpg")
    assert (fetched.status, fetched.transient) == ("missing", True)
    assert fetched.error == "Stale file handle after 2 attempts"


def test_anything_unexpected_is_a_value(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PictureStore(PicturesConfig(roots=(str(pictures),)))
    assert store.fetch("\ud800.jpg").status == "missing"
    monkeypatch.setattr(os, "open", lambda *_: 1 / 0)
    assert store.fetch("a.jpg") == Fetched(None, "missing", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("root", ["gs://b", "s3://", "https:///x", "https://host:port/x"])
def test_a_root_that_is_no_place(root: str) -> None:
    with pytest.raises(StorageError):
        PictureStore(PicturesConfig(roots=(root,)))


def test_s3_statuses(s3_bucket: str) -> None:
    uri = put(s3_bucket, "pic/a b#?%41.jpg")
    put(s3_bucket, "pic/big.jpg", PICTURE + b"1")
    put(s3_bucket, "pic/zero.jpg", b"")
    store = PictureStore(PicturesConfig(roots=(f"{s3_bucket}/pic/",), max_bytes=len(PICTURE)))
    store = pickle.loads(pickle.dumps(store))
    assert store.fetch(uri) == Fetched(PICTURE, "ok", None)
    assert store.fetch("a b#?%41.jpg").status == "ok"
    assert store.fetch(uri.replace("s3://", "S3://")).status == "ok"
    assert store.fetch("zero.jpg") == Fetched(b"", "ok", None)
    assert store.fetch("big.jpg").status == "too_large"
    assert store.fetch("big.jpg").error == f"more than {len(PICTURE)} bytes ({len(PICTURE) + 1})"
    assert store.fetch("none.jpg") == Fetched(None, "missing", "NoSuchKey")
    gone = PictureStore(PicturesConfig(roots=("s3://no-such-bucket",)))
    assert gone.fetch("x.jpg") == Fetched(None, "missing", "NoSuchBucket")


def test_s3_tricks(s3_bucket: str) -> None:
    for key in ("pictures-other/a.jpg", "a.jpg", "pic/a.jpg", "pic/../a.jpg"):
        put(s3_bucket, key)
    store = PictureStore(PicturesConfig(roots=(f"{s3_bucket}/pic",)))
    assert store.fetch(f"{s3_bucket}/pic/a.jpg").status == "ok"
    for uri in (
        f"{s3_bucket}/pictures-other/a.jpg",
        f"{s3_bucket}/a.jpg",
        f"{s3_bucket}/pic/../a.jpg",
        f"{s3_bucket}/pic/%2e%2e/a.jpg",
        f"{s3_bucket}/pic",
        f"{s3_bucket}-x/pic/a.jpg",
        f"{s3_bucket}%2fpic/a.jpg",
        "s3://other/pic/a.jpg",
        "s3:///pic/a.jpg",
        "s3://",
        "s3:pic/a.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
    ):
        assert store.fetch(uri).status == "forbidden", uri


def test_s3_passing_failures_are_retried(s3_server: ScriptedServer) -> None:
    store = PictureStore(PicturesConfig(roots=("s3://bucket",), attempts=3))
    for busy in (s3_error(503, "SlowDown"), s3_error(429, "TooMany"), s3_error(500, "InternalError")):
        s3_server.script = [busy, (200, {}, PICTURE)]
        s3_server.requests.clear()
        assert store.fetch("a.jpg").status == "ok"
        assert len(s3_server.requests) == 2
    s3_server.script = [s3_error(503, "SlowDown")]
    s3_server.requests.clear()
    fetched = store.fetch("a.jpg")
    assert fetched == Fetched(None, "missing", "503 SlowDown after 3 attempts", transient=True)
    assert len(s3_server.requests) == 3


def test_s3_lasting_failures_are_not_retried(s3_server: ScriptedServer) -> None:
    store = PictureStore(PicturesConfig(roots=("s3://bucket",)))
    for answer, status in (
        (s3_error(403, "AccessDenied"), "forbidden"),
        (s3_error(403, "SignatureDoesNotMatch"), "forbidden"),
        (s3_error(400, "ExpiredToken"), "forbidden"),
        (s3_error(404, "NoSuchKey"), "missing"),
        (s3_error(400, "InvalidRequest"), "missing"),
    ):
        s3_server.script = [answer]
        s3_server.requests.clear()
        fetched = store.fetch("a.jpg")
        assert (fetched.status, fetched.transient) == (status, False)
        assert len(s3_server.requests) == 1


def test_s3_answer_cut_short(s3_server: ScriptedServer) -> None:
    s3_server.script = [(200, {"Content-Length": "999999", "Connection": "close"}, PICTURE)]
    fetched = PictureStore(PicturesConfig(roots=("s3://bucket",), attempts=2)).fetch("a.jpg")
    assert (fetched.status, fetched.data, fetched.transient) == ("missing", None, True)


def test_s3_timeout(s3_server: ScriptedServer) -> None:
    store = PictureStore(PicturesConfig(roots=("s3://bucket",), attempts=1, timeout_s=0.3))
    s3_server.delay_s = 1
    fetched = store.fetch("a.jpg")
    assert (fetched.error, fetched.transient) == ("ReadTimeoutError after 1 attempts", True)


def test_fetch_many(s3_server: ScriptedServer) -> None:
    s3_server.delay_s = 0.2
    store = PictureStore(PicturesConfig(roots=("s3://bucket",), concurrency=8))
    uris = [None, *[f"{number % 12}.jpg" for number in range(24)], "../x"]
    fetched = store.fetch_many(uris)
    assert [one.status for one in fetched] == ["none", *["ok"] * 24, "forbidden"]
    assert len(s3_server.requests) == 12
    assert s3_server.most_in_flight > 4
    assert store.fetch_many([]) == []


# ---- pictures over HTTP ----------------------------------------------------------------------------


def web(*roots: str, **options: object) -> PictureStore:
    return PictureStore(PicturesConfig(roots=roots, schemes=("http", "https"), **options))  # type: ignore[arg-type]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Names have these addresses, whatever the DNS of this machine says."""

    def getaddrinfo(host: str, port: int, *arguments: object, **options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_http_statuses(server: ScriptedServer) -> None:
    server.script = [(200, {}, PICTURE)]
    store = web(f"{server.url}/pics", max_bytes=len(PICTURE), attempts=2)
    assert store.fetch(f"{server.url}/pics/a.jpg?size=1") == Fetched(PICTURE, "ok", None)
    assert server.requests == ["/pics/a.jpg?size=1"]
    assert store.fetch("b.jpg").status == "ok"
    cases: list[tuple[list[tuple[int, dict[str, str], bytes]], str, bool]] = [
        ([(404, {}, b"")], "missing", False),
        ([(410, {}, b"")], "missing", False),
        ([(403, {}, b"")], "forbidden", False),
        ([(302, {"Location": f"{server.url}/pics/b.jpg"}, b"")], "forbidden", False),
        ([(503, {}, b"")], "missing", True),
        ([(503, {}, b""), (200, {}, PICTURE)], "ok", False),
        ([(200, {}, PICTURE + b"1")], "too_large", False),
        ([(200, {"Content-Length": str(len(PICTURE)), "Connection": "close"}, b"x")], "missing", True),
        ([(200, {"Content-Encoding": "gzip"}, b"not unpacked")], "ok", False),
        ([(200, {"Content-Length": "9999"}, PICTURE)], "too_large", False),
        ([(200, {"Content-Length": "10000000000"}, PICTURE)], "too_large", False),
    ]
    for script, status, transient in cases:
        server.script = script
        fetched = store.fetch("a.jpg")
        assert (fetched.status, fetched.transient) == (status, transient), fetched
    assert "/pics/b.jpg" not in server.requests[2:]


def test_http_slow_trickle_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        fetched = web(url, attempts=1, timeout_s=0.5).fetch(f"{url}/a.jpg")
    assert (fetched.status, fetched.transient) == ("missing", True)
    assert time.monotonic() - started < 3


def test_http_needs_scheme_and_root(server: ScriptedServer) -> None:
    asked = f"{server.url}/pics/a.jpg"
    assert PictureStore(PicturesConfig(roots=(server.url,))).fetch(asked).status == "forbidden"
    https_only = PicturesConfig(roots=(server.url,), schemes=("https",))
    assert PictureStore(https_only).fetch(asked).status == "forbidden"
    store = web(f"http://good.example:{server.port}/pics", f"http://*.cdn.example:{server.port}")
    for uri in (
        asked,
        f"http://good.example:{server.port}/other/a.jpg",
        f"http://good.example:{server.port}/pics-other/a.jpg",
        f"http://good.example:{server.port}/pics/../a.jpg",
        f"http://good.example:{server.port}/pics%2f..%2fa.jpg",
        f"http://good.example:{server.port}/pics/..;/a.jpg",
        "http://good.example/pics/a.jpg",
        "http://good.example:x/pics/a.jpg",
        f"https://good.example:{server.port}/pics/a.jpg",
        f"http://good.example.evil.example:{server.port}/pics/a.jpg",
        f"http://good.example@127.0.0.1:{server.port}/pics/a.jpg",
        f"http://x@good.example:{server.port}/pics/a.jpg",
        f"http://127.0.0.1:{server.port}\\@good.example:{server.port}/pics/a.jpg",
        f"http://cdn.example:{server.port}/a.jpg",
        f"http://evilcdn.example:{server.port}/a.jpg",
        f"http://[::1]:{server.port}/pics/a.jpg",
        "http://[x/a.jpg",
        "http:///pics/a.jpg",
        "http:pics/a.jpg",
    ):
        assert store.fetch(uri).status == "forbidden", uri
    assert server.requests == []


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("10.1.2.3",),
        ("192.168.0.1",),
        ("169.254.169.254",),
        ("100.64.0.1",),
        ("0.0.0.0",),
        ("224.0.0.1",),
        ("::1",),
        ("::ffff:127.0.0.1",),
        ("fe80::1%eth0",),
        ("fd00::1",),
        ("64:ff9b::7f00:1",),
        ("2002:7f00:1::",),
        ("93.184.215.14", "127.0.0.1"),
    ],
)
def test_http_private_addresses_below_a_domain(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    resolve_to(monkeypatch, *addresses)
    fetched = web(f"http://*.cdn.example:{server.port}").fetch(f"http://a.cdn.example:{server.port}/x.jpg")
    assert fetched.status == "forbidden"
    assert "not public" in str(fetched.error)
    assert server.requests == []


def test_http_a_named_host_may_be_private_but_not_link_local(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = web(f"http://pics.internal:{server.port}")
    resolve_to(monkeypatch, "127.0.0.1")
    assert store.fetch("a.jpg").status == "ok"
    resolve_to(monkeypatch, "169.254.169.254")
    assert store.fetch("a.jpg").status == "forbidden"


def test_http_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fetched = web("http://nowhere.example").fetch("a.jpg")
    assert (fetched.status, fetched.transient) == ("missing", False)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """Files of a self-signed certificate for pics.internal and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pics.internal")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pics.internal")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def test_https_checks_the_name_in_the_certificate(
    server: ScriptedServer, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    resolve_to(monkeypatch, "127.0.0.1")
    own = web(f"https://pics.internal:{server.port}", attempts=1)
    other = web(f"https://other.internal:{server.port}", attempts=1)
    assert own.fetch("a.jpg").status == "forbidden"  # nobody vouches for the certificate
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    assert own.fetch("a.jpg").status == "ok"
    assert other.fetch("a.jpg").status == "forbidden"
    assert server.requests == ["/a.jpg"]
