"""cluster/spot.py: EC2's notice is understood, and Ray is told of it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster import spot

SCRIPT = Path(__file__).parents[2] / "cluster" / "spot.py"


def wait_until(happened: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


@ray.remote(num_cpus=1)
def be_busy() -> None:
    time.sleep(60)


class Metadata(BaseHTTPRequestHandler):
    """EC2's instance metadata, version 2: a token first, then 404 until there is a notice."""

    notices: list[str | None]
    asked = 0

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self.answer(200, "secret")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != "secret":
            return self.answer(401, "")
        notice = self.notices[min(type(self).asked, len(self.notices) - 1)]
        type(self).asked += 1
        if notice is None:
            return self.answer(404, "")
        return self.answer(200, json.dumps({"action": "terminate", "time": notice}))

    def answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/latest"
    server.shutdown()
    server.server_close()


def test_it_waits_for_the_notice(metadata: str) -> None:
    reclaimed = datetime.now(UTC) + timedelta(seconds=120)
    Metadata.notices = [None, None, f"{reclaimed:%Y-%m-%dT%H:%M:%SZ}"]
    assert 110 <= spot.wait_for_notice(metadata, poll_seconds=0.01) <= 120
    assert Metadata.asked == 3


def test_no_metadata_is_no_notice() -> None:
    assert spot.read_notice("http://127.0.0.1:1/latest") is None  # nobody listens there


@pytest.mark.slow
def test_ray_is_told(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    Metadata.notices = [f"{datetime.now(UTC) + timedelta(seconds=90):%Y-%m-%dT%H:%M:%SZ}"]
    cluster = Cluster(
        initialize_head=True, connect=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        work = be_busy.remote()  # an idle node goes at once
        wait_until(lambda: not ray.available_resources().get("CPU"), 30)
        command = [sys.executable, str(SCRIPT), "watch", "--metadata", metadata]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        subprocess.run(command, env=environment, check=True, timeout=60)
        wait_until(ray._private.state.state.get_draining_nodes, 10)
        (deadline,) = ray._private.state.state.get_draining_nodes().values()
        assert not ray.wait([work], timeout=0)[0]
        assert deadline / 1000 == pytest.approx(datetime.now(UTC).timestamp() + 90, abs=30)
    finally:
        ray.shutdown()
        cluster.shutdown()
