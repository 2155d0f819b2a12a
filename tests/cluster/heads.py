"""A head of Ray's own command line, as a process of this machine, without a fixed port."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray._private.services import get_node_ip_address

from tests.servers import free_ports

STORE_BYTES = 100_000_000
RAY = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class Head:
    """Where it listens.

    Attributes:
        address: of the cluster, for RAY_ADDRESS of a driver.
        dashboard: of the job server, for RAY_ADDRESS of `ray job`.
    """

    address: str
    dashboard: str


@contextmanager
def head(
    log: Path, *arguments: Callable[[str], str] | str, environment: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """A running head; it and all that it has started is gone afterwards.

    Args:
        log: file for what it prints.
        arguments: of `ray start`; a function is given the head's address.
        environment: variables besides this process's own.
    """
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    address = f"{get_node_ip_address()}:{ports['--port']}"
    given = [one if isinstance(one, str) else one(address) for one in arguments]
    # Not in the test's own folder: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        command = [*RAY, "start", "--head", "--block", f"--object-store-memory={STORE_BYTES}"]
        command += [f"--temp-dir={temporary}", *(f"{name}={port}" for name, port in ports.items()), *given]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, "PATH": path, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            for port in (ports["--port"], ports["--dashboard-port"]):
                wait_until(lambda port=port: process.poll() is not None or _listens(port), 90)
            assert process.poll() is None, log.read_text()[-3000:]
            yield Head(address, f"http://127.0.0.1:{ports['--dashboard-port']}")
        finally:
            process.send_signal(signal.SIGTERM)  # it ends the nodes that it has started
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


_PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--ray-client-server-port",
)


def drain(address: str, node_id: str, seconds: int) -> None:
    """Tell Ray, as cluster/spot.py does it, that a node is going to be taken away. The node itself stays."""
    command = [*RAY, "drain-node", f"--address={address}", f"--node-id={node_id}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=reclaimed"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    subprocess.run(
        [*command, f"--deadline-remaining-seconds={seconds}"],
        env=environment,
        check=True,
        capture_output=True,
    )


def wait_until(happened: Callable[[], object], seconds: float) -> None:
    """Raises AssertionError where it has not happened by then."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)


def _listens(port: int) -> bool:
    return any(_connects(host, port) for host in ("127.0.0.1", get_node_ip_address()))


def _connects(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0
