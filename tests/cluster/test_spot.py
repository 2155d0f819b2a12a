"""cluster/spot.py: EC2's notice is understood, and Ray is told of it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from cluster import spot
from tests.cluster.heads import wait_until

SCRIPT = Path(__file__).parents[2] / "cluster" / "spot.py"


BUSY = """
import ray, time
ray.init()
ray.get(ray.remote(num_cpus=1)(lambda: time.sleep(300)).remote())
"""


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
    # Not of this process, which has another cluster when the whole suite runs.
    cluster = Cluster(
        initialize_head=True, connect=False, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    state = cluster.global_state
    work = subprocess.Popen([sys.executable, "-c", BUSY], env=environment)  # an idle node goes at once
    try:
        wait_until(
            lambda: not any(free.get("CPU") for free in state.available_resources_per_node().values()), 60
        )
        command = [sys.executable, str(SCRIPT), "--metadata", metadata]
        subprocess.run(command, env=environment, check=True, timeout=60)
        wait_until(state.get_draining_nodes, 10)
        (deadline,) = state.get_draining_nodes().values()
        assert work.poll() is None
        assert deadline / 1000 == pytest.approx(datetime.now(UTC).timestamp() + 90, abs=30)
    finally:
        work.kill()
        work.wait()
        cluster.shutdown()
