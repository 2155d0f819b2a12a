import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from mnerqg.errors import StorageError
from mnerqg.io import storage
from tests.servers import ScriptedServer, s3_error

PICTURE = b"bytes of a picture"


def put(bucket: str, key: str, data: bytes = PICTURE) -> str:
    storage.write_bytes(f"{bucket}/{key}", data)
    return f"{bucket}/{key}"


# ---- URIs, files and directories -------------------------------------------------------------------


def test_join() -> None:
    assert storage.join("s3://b", "x", "y.jpg") == "s3://b/x/y.jpg"
    assert storage.join("s3://b/p/", "/x/") == "s3://b/p/x"
    assert storage.join("/", "x") == "/x"
    assert storage.join("data", "x", "", "y") == "data/x/y"
    assert storage.join("/data/") == "/data/"
    assert storage.join("file:///data", "a b%.jpg") == "file:///data/a%20b%25.jpg"
    with pytest.raises(StorageError, match="no URI"):
        storage.join("", "x")


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One place has one name, however it is written."""
    monkeypatch.chdir(tmp_path)
    for uri in (
        "a/b c",
        "./a//b c/",
        f"../{tmp_path.name}/a/b c",
        f"//{tmp_path}/a/b c",
        f"file://{tmp_path}/a/b%20c",
    ):
        assert storage.absolute(uri) == str(tmp_path / "a" / "b c")
    for uri in ("s3://bucket/a/b", "s3://bucket//a//b/", "S3://bucket/a/b"):
        assert storage.absolute(uri) == "s3://bucket/a/b"
    assert storage.absolute("s3://bucket/") == "s3://bucket"


@pytest.fixture(params=["path", "file", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An existing, empty place of each kind."""
    if request.param == "s3":
        bucket: str = request.getfixturevalue("s3_bucket")
        put(bucket, "base/_keep", b"")
        return f"{bucket}/base"
    folder = tmp_path / "with space"
    folder.mkdir()
    return folder.as_uri() if request.param == "file" else str(folder)


def test_bytes_and_text_round_trip(base: str) -> None:
    uri = storage.join(base, "deep", "er", "file name%41.bin")
    assert not storage.exists(uri)
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes(uri)
    storage.write_bytes(uri, b"\x00\xff")
    assert storage.exists(uri)
    assert storage.exists(storage.join(base, "deep"))
    assert not storage.exists(storage.join(base, "de"))
    assert storage.read_bytes(uri) == b"\x00\xff"
    with pytest.raises(StorageError, match="not UTF-8 at byte 1"):
        storage.read_text(uri)
    storage.write_text(uri, "naïve 👍")
    assert storage.read_text(uri) == "naïve 👍"
    assert [entry.uri for entry in storage.list_files(base)] == [uri]


def test_list_files(base: str) -> None:
    for name in ("b.parquet", "a/x.parquet", "a/y.txt", "_SUCCESS", ".hidden", "_tmp/z.parquet", "a/.git/c"):
        storage.write_bytes(storage.join(base, name), name.encode())
    names = ("a/x.parquet", "a/y.txt", "b.parquet")
    listed = storage.list_files(base)
    assert [(entry.uri, entry.size) for entry in listed] == [
        (storage.join(base, name), len(name)) for name in names
    ]
    assert [entry.uri for entry in storage.list_files(base + "/", ".parquet")] == [
        storage.join(base, name) for name in ("a/x.parquet", "b.parquet")
    ]
    assert [entry.uri for entry in storage.list_files(base, recursive=False)] == [
        storage.join(base, "b.parquet")
    ]
    storage.write_bytes(storage.join(base, "only", "folders", "x"), b"")
    assert storage.list_files(storage.join(base, "only"), recursive=False) == []
    single = storage.join(base, "_SUCCESS")
    assert storage.list_files(single) == [storage.FileEntry(single, 8)]
    with pytest.raises(StorageError, match="does not exist"):
        storage.list_files(storage.join(base, "b.par"))


def test_what_is_no_file(tmp_path: Path) -> None:
    """What is not meant is passed over; what is, is refused before a read could wait for ever."""
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "zero").symlink_to("/dev/zero")
    here = str(tmp_path)
    assert [entry.uri for entry in storage.list_files(here)] == [f"{here}/a.txt"]
    assert [entry.uri for entry in storage.list_files(here, (".txt", ".md"))] == [f"{here}/a.txt"]
    assert storage.list_files(here, "l", matching=re.compile("^a")) == []
    with pytest.raises(StorageError, match=r"b\.jsonl is a FIFO, not a file; remove it"):
        storage.list_files(here, ".jsonl")
    with pytest.raises(StorageError, match=r"gone\.jpg is a link to nowhere\.jpg, which is not there"):
        storage.list_files(here, ".jpg")
    for name, words in (("b.jsonl", "a FIFO"), ("zero", "a device")):
        uri = f"{here}/{name}"
        for read in (storage.read_bytes, storage.list_files, lambda uri: storage.read_range(uri, 0, 9)):
            with pytest.raises(StorageError, match=f"{name} is {words}, not a file"):
                read(uri)
        with pytest.raises(StorageError, match=words), storage.open_stream(uri):
            pass


def test_delete_and_copy_a_file(base: str, tmp_path: Path) -> None:
    first, second = storage.join(base, "a", "x"), storage.join(base, "b", "y")
    storage.write_bytes(first, b"1")
    for target in (second, str(tmp_path / "elsewhere")):  # also from one kind of store to the other
        storage.copy_file(first, target)
        assert storage.read_bytes(target) == b"1"
    storage.delete_file(first)
    storage.delete_file(first)
    assert not storage.exists(first)
    with pytest.raises(StorageError, match="does not exist"):
        storage.copy_file(first, second)


def test_check_writable(base: str, tmp_path: Path) -> None:
    storage.check_writable(storage.join(base, "a", "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a directory"):
        storage.check_writable(str(tmp_path / "file" / "a"))


@pytest.mark.parametrize("store", ["s3_bucket", pytest.param("ceph_s3", marks=pytest.mark.real_s3)])
def test_conditional_writes(store: str, request: pytest.FixtureRequest) -> None:
    """Of two writers that have seen the same, one writes."""
    uri = f"{request.getfixturevalue(store)}/lock"
    assert storage.read_with_etag(uri) is None
    assert storage.write_if_etag(uri, "nothing to replace", '"0123456789abcdef0123456789abcdef"') is None
    first = storage.write_if_etag(uri, "a", None)
    assert first is not None
    assert storage.write_if_etag(uri, "b", None) is None
    assert storage.read_with_etag(uri) == ("a", first)
    second = storage.write_if_etag(uri, "c", first)
    assert second not in (None, first)
    assert storage.write_if_etag(uri, "d", first) is None
    assert storage.read_with_etag(uri) == ("c", second)


def test_delete_directory_but_one_file(base: str) -> None:
    for names in (("keep",), ("file",), ("folder", "keep"), ("keep-not",)):
        storage.write_text(storage.join(base, "a", *names), "x")
    storage.delete_directory(storage.join(base, "a"), keep="keep")
    assert storage.list_files(storage.join(base, "a")) == [
        storage.FileEntry(storage.join(base, "a", "keep"), 1)
    ]
    storage.delete_directory(storage.join(base, "nothing"), keep="keep")
    storage.write_text(storage.join(base, "a", "None"), "x")
    storage.delete_directory(storage.join(base, "a"))
    assert not storage.exists(storage.join(base, "a"))


def test_delete_directory(base: str) -> None:
    keep = storage.join(base, "ab", "keep")
    for uri in (storage.join(base, "a", "x"), storage.join(base, "a", "y", "z"), keep):
        storage.write_bytes(uri, b"1")
    storage.delete_directory(storage.join(base, "a"))
    storage.delete_directory(storage.join(base, "a"))
    assert not storage.exists(storage.join(base, "a"))
    assert storage.exists(keep)


def test_delete_refuses_roots(s3_bucket: str) -> None:
    for uri in ("/", "file:///", s3_bucket, s3_bucket + "/"):
        with pytest.raises(StorageError, match="not deleted"):
            storage.delete_directory(uri)


def test_write_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()  # a file cannot replace a directory
    with pytest.raises(StorageError, match="target"):
        storage.write_bytes(str(tmp_path / "target"), b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_filesystem(base: str) -> None:
    system, path = storage.filesystem(storage.join(base, "t.parquet"))
    table = pa.table({"x": [1, 2]})
    pyarrow.parquet.write_table(table, path, filesystem=system)
    again = pickle.loads(pickle.dumps(system))
    assert pyarrow.parquet.read_table(path, filesystem=again).equals(table)
    assert storage.exists(storage.join(base, "t.parquet"))


def test_filesystem_holds_no_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    system, _ = storage.filesystem(s3_bucket)
    assert b"very-secret" not in pickle.dumps(system)


def test_endpoint_of_a_profile_serves_boto3_and_pyarrow(
    s3_bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = f"endpoint_url = {s3_endpoint}\nregion = eu-west-1\n"
    keys = "aws_access_key_id = k\naws_secret_access_key = s\n"
    (tmp_path / "config").write_text(f"[profile lab]\n{profile}{keys}")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    storage.s3_client.cache_clear()
    try:
        put(s3_bucket, "x")
        assert storage.s3_client().meta.region_name == "eu-west-1"
        system, path = storage.filesystem(f"{s3_bucket}/x")
        assert system.region == "eu-west-1"
        assert system.get_file_info(path).size == len(PICTURE)
        assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    finally:
        storage.s3_client.cache_clear()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gs://bucket/x", "'gs' is not supported; use a local path, file:// or s3://"),
        ("http://host/x", "'http' is not supported"),
        ("s3:///x", "names no bucket"),
        ("file://host/x", "names the host"),
        ("file://x", "names the host"),
        ("", "not a URI"),
        ("a\0b", "not a URI"),
    ],
)
def test_bad_uris(uri: str, words: str) -> None:
    calls: list[Callable[[str], object]] = [
        storage.filesystem,
        storage.exists,
        storage.list_files,
        storage.read_bytes,
        storage.delete_directory,
    ]
    for call in calls:
        with pytest.raises(StorageError, match=words) as caught:
            call(uri)
        assert "\n" not in str(caught.value)


def test_missing_bucket(s3_endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    for call in (storage.exists, storage.list_files, storage.read_bytes):
        with pytest.raises(StorageError, match="bucket does not exist; create it"):
            call("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="does not exist"):
        storage.exists("s3://no-such-bucket")
    with pytest.raises(StorageError, match="bucket does not exist"):
        storage.write_bytes("s3://no-such-bucket/x", b"")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", r"access denied \(AccessDenied\); the AWS credentials in use lack"),
        ("SignatureDoesNotMatch", "refuses the AWS credentials"),
        ("InvalidAccessKeyId", "refuses the AWS credentials"),
    ],
)
def test_refusals(s3_server: ScriptedServer, code: str, words: str) -> None:
    s3_server.script = [s3_error(403, code)]
    for call in (storage.exists, storage.list_files, storage.read_bytes):
        with pytest.raises(StorageError, match=words) as caught:
            call("s3://bucket/x")
        assert "\n" not in str(caught.value)


def test_no_credentials(s3_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no usable AWS credentials"):
        storage.read_bytes("s3://bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "unheard-of")
    storage.s3_client.cache_clear()
    for call in (storage.read_bytes, storage.filesystem):
        with pytest.raises(StorageError, match="unheard-of"):
            call("s3://bucket/x")


def test_a_body_that_ends_early(s3_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the client itself takes no notice."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    cut = (200, {"Content-Length": str(len(PICTURE)), "Connection": "close"}, PICTURE[:5])
    s3_server.script = [cut, cut, (200, {}, PICTURE)]
    assert storage.read_bytes("s3://bucket/x") == PICTURE
    s3_server.script = [cut]
    with pytest.raises(StorageError, match=r"^s3://bucket/x: .*run the same command again$"):
        storage.read_bytes("s3://bucket/x")


def test_unreachable_endpoint(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's back-off
        storage.s3_client.cache_clear()
        try:
            with pytest.raises(StorageError, match=r"does not answer.*AWS_ENDPOINT_URL"):
                storage.read_bytes("s3://bucket/x")
        finally:
            storage.s3_client.cache_clear()
