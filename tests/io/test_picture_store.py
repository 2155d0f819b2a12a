import base64
import errno
import io
import os
import pickle
import socket
from pathlib import Path

import pytest
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
    assert fetched.error == "EndpointConnectionError <s3://bucket/x> after 2 attempts"


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
        assert store.fetch(odd).status == "unreadable"
    assert [one.status for one in store.fetch_many([["a"], "a.jpg", float("nan"), b"x", "a.jpg"])] == [
        "unreadable", "ok", "none", "unreadable", "ok",
    ]  # fmt: skip
    for missing in ("b.jpg", "a.jpg/b.jpg", "x" * 300):
        assert store.fetch(missing).status == "missing"
        assert not store.fetch(missing).transient
    (pictures / "big.jpg").write_bytes(PICTURE + b"1")
    assert store.fetch("big.jpg").status == "too_large"
    (pictures / "zero.jpg").write_bytes(b"")
    assert store.fetch("zero.jpg") == Fetched(b"", "ok", None)
    for odd in ("sub", ".", str(pictures)):
        assert store.fetch(odd).status == "forbidden", odd


def test_what_would_block_is_not_read(pictures: Path) -> None:
    os.mkfifo(pictures / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pictures / "socket"))
        store = PictureStore(PicturesConfig(roots=(str(pictures), "/dev")))
        for uri, words in (
            ("pipe", "a FIFO, not a regular file"),
            ("socket", "No such device or address"),
            ("/dev/zero", "a device, not a regular file"),
            ("/dev/tty", None),
            (str(pictures / "sub"), "Is a directory"),
        ):
            fetched = store.fetch(uri)
            assert fetched.status == "forbidden", uri
            assert words is None or fetched.error == f"{words} <{pictures / uri}>"


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
        "a\n.jpg",
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
    assert fetched.error == f"Stale file handle <{pictures}/a.jpg> after 2 attempts"


def test_anything_unexpected_is_a_value(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PictureStore(PicturesConfig(roots=(str(pictures),)))
    assert store.fetch("\ud800.jpg").status == "missing"
    monkeypatch.setattr(os, "open", lambda *_: 1 / 0)
    failed = store.fetch("a.jpg")
    assert failed == Fetched(None, "missing", f"ZeroDivisionError: division by zero <{pictures}/a.jpg>")


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
    too_large = f"more than {len(PICTURE)} bytes ({len(PICTURE) + 1}) <{s3_bucket}/pic/big.jpg>"
    assert store.fetch("big.jpg").error == too_large
    assert store.fetch("none.jpg") == Fetched(None, "missing", f"NoSuchKey <{s3_bucket}/pic/none.jpg>")
    gone = PictureStore(PicturesConfig(roots=("s3://no-such-bucket",)))
    assert gone.fetch("x.jpg") == Fetched(None, "missing", "NoSuchBucket <s3://no-such-bucket/x.jpg>")


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
    for answer in (s3_error(503, "SlowDown"), s3_error(429, "TooMany"), s3_error(500, "InternalError")):
        s3_server.script = [answer, (200, {}, PICTURE)]
        s3_server.requests.clear()
        assert store.fetch("a.jpg").status == "ok"
        assert len(s3_server.requests) == 2
    s3_server.script = [s3_error(503, "SlowDown")]
    s3_server.requests.clear()
    fetched = store.fetch("a.jpg")
    busy = "503 SlowDown <s3://bucket/a.jpg> after 3 attempts"
    assert fetched == Fetched(None, "missing", busy, transient=True)
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
    assert (fetched.error, fetched.transient) == (
        "ReadTimeoutError <s3://bucket/a.jpg> after 1 attempts",
        True,
    )


# ---- as a browser or curl reads them ---------------------------------------------------------------


def test_paths_as_a_browser_reads_them(pictures: Path) -> None:
    for name in ("a b.jpg", "größe.jpg", "x#1.jpg", "q?.jpg", "IMG:1.jpg", "sub/c.jpg", "a%20b%41.jpg"):
        (pictures / name).write_bytes(name.encode())
    first = pictures.parent / "first"
    first.mkdir()
    (first / "a.jpg").write_bytes(b"first")
    store = PictureStore(PicturesConfig(roots=(str(first), str(pictures))))
    root = pictures.as_uri()
    for uri, name in (
        (" a b.jpg\ufeff", "a b.jpg"),
        ("\ufeffgröße.jpg\r\n", "größe.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("a%20b%41.jpg", "a%20b%41.jpg"),  # as it is written, before it is decoded
        ("gr%C3%B6%C3%9Fe.jpg", "größe.jpg"),
        ("./sub/c.jpg", "sub/c.jpg"),
        ("sub\\c.jpg", "sub/c.jpg"),
        ("sub//c.jpg", "sub/c.jpg"),
        ("x#1.jpg", "x#1.jpg"),
        ("a b.jpg#part", "a b.jpg"),
        ("sub/c.jpg?size=large", "sub/c.jpg"),
        ("q?.jpg", "q?.jpg"),
        ("IMG:1.jpg", "IMG:1.jpg"),
        (f"{root}/a%20b.jpg", "a b.jpg"),
        (f"{root}/a b.jpg ", "a b.jpg"),
        (f"{root}/a%2520b%2541.jpg", "a%20b%41.jpg"),
        (f"{root}/sub/c.jpg#part", "sub/c.jpg"),
        (root.replace("file://", "file:") + "/sub/c.jpg", "sub/c.jpg"),
        (root.replace("file://", "FILE:") + "/sub/c.jpg", "sub/c.jpg"),
        (root.replace("file://", "file://LOCALHOST") + "/sub/c.jpg", "sub/c.jpg"),
        (root.replace("file://", "File://localhost") + "/sub/c.jpg", "sub/c.jpg"),
        (f"{pictures}/sub/c.jpg\t", "sub/c.jpg"),
    ):
        assert store.fetch(uri) == Fetched(name.encode(), "ok", None), uri
    assert store.fetch("a.jpg").data == b"first"


def test_a_missing_picture_is_named(pictures: Path) -> None:
    store = PictureStore(PicturesConfig(roots=(str(pictures), str(pictures / "sub"))))
    assert store.fetch("no such.jpg").error == f"No such file or directory <{pictures}/no such.jpg>"
    refused = "the picture is not under a configured root <file:///etc/passwd>"
    assert store.fetch("file:///etc/passwd").error == refused
    error = str(store.fetch("<b>; " + "x" * 1000 + "\u2028.jpg").error)
    assert len(error) < 300
    assert error.endswith("xx\\u2028.jpg>")
    assert error.count("<") == error.count(">") == 1
    assert "; " not in error


def test_s3_uris_as_they_may_be_meant(s3_bucket: str) -> None:
    put(s3_bucket, "pic/a b.jpg", b"blank")
    put(s3_bucket, "pic/c%20d.jpg", b"percent")
    put(s3_bucket, "more/e.jpg", b"more")
    store = PictureStore(PicturesConfig(roots=(f"{s3_bucket}/pic", f"{s3_bucket}/more")))
    for uri, data in (
        ("a%20b.jpg", b"blank"),
        (f"{s3_bucket}/pic/a%20b.jpg", b"blank"),
        (f" {s3_bucket}/pic/a b.jpg\ufeff", b"blank"),
        ("c%20d.jpg", b"percent"),
        ("./e.jpg", b"more"),
        ("e.jpg", b"more"),
    ):
        assert store.fetch(uri) == Fetched(data, "ok", None), uri
    assert store.fetch("x.jpg").error == f"NoSuchKey <{s3_bucket}/pic/x.jpg>"


def test_data_uris_are_read_where_they_stand() -> None:
    store = PictureStore(PicturesConfig(roots=("/nowhere",)))
    encoded = base64.b64encode(PICTURE).decode()
    for uri in (f"data:image/jpeg;base64,{encoded}", f" DATA:;base64,{encoded} "):
        assert store.fetch(uri) == Fetched(PICTURE, "ok", None)
    assert store.fetch("data:,a%20b") == Fetched(b"a b", "ok", None)
    broken = store.fetch("data:image/png;base64,a(b")
    assert broken == Fetched(None, "unreadable", "the data URI is not base64: it has '(' at digit 2")


def test_fetch_many(s3_server: ScriptedServer) -> None:
    s3_server.delay_s = 0.2
    store = PictureStore(PicturesConfig(roots=("s3://bucket",), concurrency=8))
    uris = [None, *[f"{number % 12}.jpg" for number in range(24)], "../x"]
    fetched = store.fetch_many(uris)
    assert [one.status for one in fetched] == ["none", *["ok"] * 24, "forbidden"]
    assert len(s3_server.requests) == 12
    assert s3_server.most_in_flight > 4
    assert store.fetch_many([]) == []
