import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.exceptions
import pyarrow.fs
import pytest

from mnerqg.errors import StorageError
from mnerqg.io import storage
from tests.servers import FAULTS, FaultyProxy

# Longer than a part of pyarrow's multipart uploads, and different in every place.
BIG = b"".join(number.to_bytes(4, "big") for number in range(3_000_000))


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked; /none with 204, /stream with a body of unknown length."""

    protocol_version = "HTTP/1.1"

    def serve(self) -> None:
        asked = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.body().decode(),
            "client": self.client_address[1],
        }
        data = json.dumps(asked).encode()
        self.send_response(204 if self.path == "/none" else 200)
        if self.path == "/stream":
            self.send_header("Transfer-Encoding", "chunked")
            data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:9], data[9:], b""))
        elif self.path != "/none":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and self.path != "/none":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

    def body(self) -> bytes:
        if "Transfer-Encoding" not in self.headers:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    """A proxy without faults in front of `Echo`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as echo:
        echo.daemon_threads = True
        threading.Thread(target=echo.serve_forever, args=(0.05,), daemon=True).start()
        proxy = FaultyProxy(f"http://127.0.0.1:{echo.server_address[1]}", share=0, seed=0, stall_s=0.2)
        yield proxy
        proxy.close()
        echo.shutdown()


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, method: str, path: str = "/a%2Fb?x=1", **options: Any) -> Any:
    client.request(method, path, **options)
    with client.getresponse() as answer:
        return json.loads(answer.read())


def test_requests_arrive_as_they_were_sent(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    headers = {"Host": "signed.example:81", "X-Amz-Meta-A": "é".encode().decode("latin-1")}
    for method in ("GET", "PUT", "POST", "DELETE"):
        asked = ask(client, method, body="ada", headers=headers)
        assert (asked["method"], asked["path"], asked["body"]) == (method, "/a%2Fb?x=1", "ada")
        assert asked["headers"]["host"] == "signed.example:81"
        assert asked["headers"]["content-length"] == "3"
        assert "accept-encoding" in asked["headers"]
    chunked = ask(client, "PUT", body=iter([b"ada", b" in ", b"Lisbon"]), encode_chunked=True)
    assert (chunked["body"], chunked["headers"]["transfer-encoding"]) == ("ada in Lisbon", "chunked")
    assert "content-length" not in chunked["headers"]
    assert ask(client, "PUT", body="x", headers={"Expect": "100-continue"})["body"] == "x"
    assert proxy.requests == {"GET": 1, "PUT": 3, "POST": 1, "DELETE": 1}
    assert proxy.faults.total() == 0


def test_answers_of_every_shape_keep_the_connections(client: http.client.HTTPConnection) -> None:
    first = ask(client, "GET")["client"]
    client.request("HEAD", "/")
    with client.getresponse() as answer:
        assert int(answer.headers["Content-Length"]) > 100
        assert answer.read() == b""
    client.request("DELETE", "/none")
    with client.getresponse() as answer:
        assert (answer.status, answer.read()) == (204, b"")
    assert ask(client, "GET", "/stream")["path"] == "/stream"
    assert ask(client, "GET")["client"] == first


@pytest.mark.parametrize("kind", FAULTS)
def test_faults(proxy: FaultyProxy, client: http.client.HTTPConnection, kind: str) -> None:
    proxy.share, proxy.kinds = 1.0, (kind,)
    for path in ("/", "/stream"):
        client.request("GET", path)
        match kind:
            case "slow_down" | "internal_error":
                with client.getresponse() as answer:
                    code = re.search(rb"<Code>(\w+)</Code>", answer.read())
                    assert code is not None
                    assert (answer.status, code[1]) in [(503, b"SlowDown"), (500, b"InternalError")]
            case "cut":
                with client.getresponse() as answer, pytest.raises(http.client.IncompleteRead) as raised:
                    answer.read()
                assert raised.value.partial.startswith(b'{"method": "GET"')
            case _:
                with pytest.raises(http.client.RemoteDisconnected):
                    client.getresponse()
        client.close()
    assert proxy.faults == {kind: 2}
    proxy.share = 0
    assert ask(client, "GET")["method"] == "GET"


def test_cut_befalls_reads_only(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    proxy.share, proxy.kinds = 1.0, ("cut",)
    assert ask(client, "PUT", body="x")["body"] == "x"
    proxy.kinds = ("cut", "slow_down")
    client.request("HEAD", "/")
    with client.getresponse() as answer:
        assert (answer.status, answer.read()) == (503, b"")
    assert proxy.faults == {"slow_down": 1}


def test_the_same_seed_gives_the_same_faults(proxy: FaultyProxy) -> None:
    other = FaultyProxy("http://127.0.0.1:1", share=0.05, seed=0)
    proxy.share = 0.05
    drawn = [[one.draw("GET") for _ in range(2000)] for one in (proxy, other)]
    other.close()
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {None, *FAULTS}
    assert 60 < proxy.faults.total() < 140


def test_close_ends_connections(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    ask(client, "GET")
    proxy.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(client, "GET")
    client.close()
    with pytest.raises(ConnectionRefusedError):
        ask(client, "GET")


def test_s3_clients_survive_faults(faulty_s3: FaultyProxy, s3_bucket: str) -> None:
    faulty_s3.stall_s = 0.1
    for number in range(100):
        storage.write_bytes(f"{s3_bucket}/a/{number:03}", b"x" * number)
    assert [entry.size for entry in storage.list_files(f"{s3_bucket}/a")] == list(range(100))
    faulty_s3.kinds = ("slow_down", "internal_error", "drop", "stall")
    assert storage.read_bytes(f"{s3_bucket}/a/077") == b"x" * 77
    faulty_s3.kinds = FAULTS
    use_pyarrow(s3_bucket)
    storage.delete_directory(f"{s3_bucket}/a")
    assert not storage.exists(f"{s3_bucket}/a")
    assert faulty_s3.faults.total() > 5


@pytest.mark.slow
def test_outage(faulty_s3: FaultyProxy, s3_bucket: str) -> None:
    faulty_s3.share, faulty_s3.kinds = 1.0, ("slow_down",)
    before = faulty_s3.requests.total()
    with pytest.raises(StorageError):
        storage.write_bytes(f"{s3_bucket}/a", b"x")
    assert faulty_s3.faults["slow_down"] == faulty_s3.requests.total() - before > 1
    faulty_s3.share = 0
    storage.write_bytes(f"{s3_bucket}/a", b"x")
    assert storage.read_bytes(f"{s3_bucket}/a") == b"x"


def use_pyarrow(bucket: str) -> None:
    """A multipart upload, reads, a listing, copies, and a directory that goes as a whole."""
    filesystem, path = storage.filesystem(f"{bucket}/arrow")
    for number in range(3):
        with filesystem.open_output_stream(f"{path}/in/{number}") as stream:
            stream.write(BIG if number == 0 else b"y" * number)
    filesystem.move(f"{path}/in/1", f"{path}/in/moved")
    filesystem.copy_file(f"{path}/in/2", f"{path}/in/copied")
    with filesystem.open_input_file(f"{path}/in/0") as file:
        assert file.read() == BIG
        # pyarrow does not try a read again that is smaller than the answer with the error.
        assert file.read_at(4000, 8000) == BIG[8000:12000]
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    sizes = {info.base_name: info.size for info in found if info.is_file}
    assert sizes == {"0": len(BIG), "2": 2, "moved": 1, "copied": 2}
    filesystem.delete_dir(path)
    assert filesystem.get_file_info(path).type is pyarrow.fs.FileType.NotFound


@pytest.mark.real_s3
def test_ceph(ceph_s3: str, ceph_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_storage(ceph_s3)
    use_pyarrow(ceph_s3)
    proxy = FaultyProxy(ceph_endpoint, share=0.05, seed=1, stall_s=0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    storage.s3_client.cache_clear()
    use_storage(ceph_s3)
    use_pyarrow(ceph_s3)
    proxy.close()
    assert proxy.faults.total() > 0


def use_storage(bucket: str) -> None:
    for number in range(30):
        storage.write_bytes(f"{bucket}/a/{number:02} é%+.txt", b"x" * number)
    assert [entry.size for entry in storage.list_files(f"{bucket}/a")] == list(range(30))
    storage.s3_client().download_file(bucket.removeprefix("s3://"), "a/07 é%+.txt", os.devnull)
    storage.delete_directory(f"{bucket}/a")
    assert not storage.exists(f"{bucket}/a")


@pytest.mark.real_s3
def test_ceph_refuses_a_wrong_secret(ceph_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage.s3_client.cache_clear()
    with pytest.raises(StorageError, match="refuses the AWS credentials"):
        storage.write_bytes(f"{ceph_s3}/a", b"x")
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        storage.s3_client().get_object(Bucket=ceph_s3.removeprefix("s3://"), Key="a")
    # pyarrow reads the secret once a process.
    code = "import sys; from mnerqg.io import storage; f, p = storage.filesystem(sys.argv[1]); f.open_output_stream(p)"
    run = subprocess.run(
        [sys.executable, "-c", code, f"{ceph_s3}/a"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "SIGNATURE_DOES_NOT_MATCH" in run.stderr
