import contextlib
import datetime
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mnerqg.config_jobs import PicturesConfig
from mnerqg.io.picture_store import Fetched, PictureStore
from tests.servers import ScriptedServer

PICTURE = b"any bytes, not looked at"


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


def drip(listener: socket.socket, start: bytes) -> None:
    """Answers with `start`, and then with a byte every twentieth of a second for as long as anybody listens."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.recv(4096)
        connection.sendall(start)
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 ",
    ],
    ids=["body", "chunk", "header", "status"],
)
def test_http_slow_trickle_is_a_timeout(start: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener, start), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        fetched = web(url, attempts=1, timeout_s=0.5).fetch(f"{url}/a.jpg")
    assert (fetched.status, fetched.transient) == ("missing", True)
    assert fetched.error == f"timeout <{url}/a.jpg> after 1 attempts"
    assert time.monotonic() - started < 5


def test_http_timers_end_with_the_answer(server: ScriptedServer) -> None:
    server.script = [(200, {}, PICTURE)]
    store = web(server.url, timeout_s=600)
    assert [one.status for one in store.fetch_many([f"{number}.jpg" for number in range(40)])] == ["ok"] * 40
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@pytest.mark.parametrize(
    ("uri", "asked"),
    [
        (" {url}/pics/a.jpg\ufeff\n", "/pics/a.jpg"),
        ("{url}/pics/a b.jpg", "/pics/a%20b.jpg"),
        ("{url}/pics/größe.jpg?q=ä b", "/pics/gr%C3%B6%C3%9Fe.jpg?q=%C3%A4%20b"),
        ("{url}/pics/gr%C3%B6%c3%9fe%20x.jpg", "/pics/gr%C3%B6%C3%9Fe%20x.jpg"),
        ("{url}/pics/a.jpg#part", "/pics/a.jpg"),
        ("HTTP{rest}/pics/a.jpg", "/pics/a.jpg"),
        ("{url}\\pics\\a.jpg", "/pics/a.jpg"),
        ("{url}/pics/a.jpg:large", "/pics/a.jpg:large"),
        ("a b.jpg", "/pics/a%20b.jpg"),
        ("./sub/ä.jpg", "/pics/sub/%C3%A4.jpg"),
        ("/pics/a.jpg", "/pics/a.jpg"),
        ("//127.0.0.1:{port}/pics/a.jpg", "/pics/a.jpg"),
    ],
)
def test_urls_as_a_browser_reads_them(server: ScriptedServer, uri: str, asked: str) -> None:
    server.script = [(200, {}, PICTURE)]
    uri = uri.format(url=server.url, rest=server.url.removeprefix("http"), port=server.port)
    assert web(f"{server.url}/pics").fetch(uri) == Fetched(PICTURE, "ok", None)
    assert server.requests == [asked]


def test_hosts_beyond_ascii(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    for root in ("bücher.example", "xn--bcher-kva.example", "BÜCHER.example"):
        store = web(f"http://{root}:{server.port}")
        for host in ("bücher.example", "xn--bcher-kva.example", "Bücher.Example"):
            assert store.fetch(f"http://{host}:{server.port}/a.jpg").status == "ok", (root, host)
        for host in ("bucher.example", "b\u0000cher.example", "*.example", "böcher.example", "-ü.example"):
            assert store.fetch(f"http://{host}:{server.port}/a.jpg").status == "forbidden", (root, host)
    below = web(f"http://*.bücher.example:{server.port}")
    public = "the address 127.0.0.1, which is not public"
    assert public in str(below.fetch(f"http://x.bücher.example:{server.port}/a.jpg").error)
    for host in ("*.bücher.example", "a b.bücher.example", "bücher.example"):
        assert store.fetch(f"http://{host}:{server.port}/a.jpg").status != "ok" or host == "bücher.example"
        assert "public" not in str(below.fetch(f"http://{host}:{server.port}/a.jpg").error), host


def test_default_ports_and_relative_urls_below_several_roots(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [(404, {}, b""), (200, {}, PICTURE)]
    assert web(f"{server.url}/old", f"{server.url}/new").fetch("a.jpg").status == "ok"
    assert server.requests == ["/old/a.jpg", "/new/a.jpg"]
    resolve_to(monkeypatch, "10.0.0.1")
    for uri in ("http://*.example:80/a.jpg", "http://x.example:80/a.jpg", "http://x.example:/a.jpg"):
        answer = web("http://*.example", attempts=1).fetch(uri)
        assert answer.status == "forbidden"
    assert "10.0.0.1" in str(answer.error)


def test_a_root_whose_scheme_is_not_allowed_hides_no_other(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    store = PictureStore(PicturesConfig(roots=(server.url, str(tmp_path))))
    assert store.fetch("a.jpg") == Fetched(PICTURE, "ok", None)
    assert store.fetch("b.jpg").error == f"No such file or directory <{tmp_path}/b.jpg>"
    # A path is a file's where files may lie, and nobody is asked about it.
    both = PictureStore(PicturesConfig(roots=(server.url, str(tmp_path)), schemes=("file", "http")))
    assert both.fetch(str(tmp_path / "b.jpg")).status == "missing"
    assert both.fetch("/etc/passwd").status == "forbidden"
    assert server.requests == []


def test_errors_name_the_url_without_its_secrets(server: ScriptedServer) -> None:
    server.script = [(404, {}, b"")]
    store = web(server.url)
    assert store.fetch(f"{server.url}/a.jpg?X-Amz-Signature=1").error == f"404 <{server.url}/a.jpg>"
    refused = store.fetch(f"http://me:secret@127.0.0.1:{server.port}/a.jpg?token=1")
    assert refused.error == f"the URL has user information <http://…@127.0.0.1:{server.port}/a.jpg>"


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
