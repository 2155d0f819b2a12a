"""What a night can do to a tagging run: after all of it, every row is there once, and says what it would have said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from mnerqg.archive.run import MANIFEST_FILE, SUCCESS_FILE
from mnerqg.io import storage
from mnerqg.io.run_folder import RUN_FILE
from tests import archives
from tests.archives import assert_same_rows, finished_writes, read_tags, write_archive, write_cheap_archive
from tests.cheap_tagger import DELAY
from tests.servers import ceph_environment, ceph_missing, create_bucket, faults
from tests.tag_driver import driver

POSTS = 800
SETTINGS = (
    "--columns.pass_through=[row, lang]",
    "--min_rows_per_file=50",
    "--max-failed=0.1",
    "--actors=1",
    "--cpus_per_actor=0.5",
    "--batch_posts=8",
    f"--pictures.max_bytes={archives.MAX_BYTES}",
)
PATIENT = ("--pictures.attempts=8", "--pictures.timeout_s=3")

# A dozen jobs one after another, each of which imports torch in several processes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_to_end(*arguments: str, log: Path, **environment: str) -> int:
    with driver(*arguments, log=log, **environment) as process:
        return process.wait(timeout=500)


def wait_until(
    happened: Callable[[], object], process: subprocess.Popen[bytes], log: Path, seconds: float = 400
) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"the driver ended by itself: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"nothing after {seconds} s: {log.read_text()[-3000:]}"
        time.sleep(0.05)


def is_finished(output: str) -> bool:
    return storage.exists(storage.join(output, SUCCESS_FILE))


@pytest.fixture
def address(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' own cluster, for drivers in other processes."""
    found: str = ray.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", found)
    return found


# The real store where there is one; both would take ten minutes more.
STORE = "moto" if ceph_missing() else pytest.param("ceph", marks=pytest.mark.real_s3)


@pytest.fixture(scope="module", params=[STORE])
def store(s3_endpoint: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an S3 server, to which the AWS environment points."""
    if request.param == "moto":
        yield s3_endpoint
    else:
        endpoint: str = request.getfixturevalue("ceph_endpoint")
        with ceph_environment(endpoint):
            yield endpoint


@pytest.fixture
def bucket(store: str) -> str:
    return create_bucket()


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: None, store: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, pa.Table]:
    """An archive on S3 and the tags of a run that nothing happened to."""
    bucket = create_bucket()
    archive = f"{bucket}/archive"
    write_archive(archive, POSTS, files=3, seed=1, bad_share=0.05, side=(160, 120))
    log = tmp_path_factory.mktemp("undisturbed") / "log"
    address = ray.get_runtime_context().gcs_address
    output = f"{bucket}/undisturbed"
    code = run_to_end(str(tiny_model), archive, output, *SETTINGS, log=log, RAY_ADDRESS=address)
    assert code == 0, log.read_text()[-3000:]
    tags = read_tags(output)
    assert sorted(tags["row"].to_pylist()) == list(range(POSTS))
    return archive, tags


def test_five_thousand_posts(address: str, bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    """The job itself, with a real model, over HTTP; 3 % of the posts are odd in every way there is."""
    archive, output, log = f"{bucket}/archive", f"{bucket}/tags", tmp_path / "log"
    planted = write_archive(archive, 5000, files=4, seed=5, bad_share=0.03)
    command = [
        sys.executable,
        "jobs/tag.py",
        "--model",
        str(tiny_model),
        "--input",
        archive,
        "--output",
        output,
    ]
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    assert aws["AWS_ENDPOINT_URL"]
    # What `ray job submit --runtime-env` hands to the job, here for the store's environment.
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": aws}})}
    with log.open("wb") as out:
        code = subprocess.run(
            [*command, *SETTINGS[0:1], SETTINGS[-1]], env={**os.environ, **job}, stdout=out, stderr=out
        ).returncode
    assert code == 0, log.read_text()[-3000:]
    tags = read_tags(output)
    assert len(tags) == 5000 == len(set(tags["row_hash"].to_pylist()))
    rows = {row["post_id"]: row for row in tags.to_pylist()}
    assert rows.keys() == planted.rows.keys()
    assert len(planted.oddities) > 25
    for post_id, expected in planted.rows.items():
        row = rows[post_id]
        found = row["image_status"], row["text_status"], (row["image_width"], row["image_height"])
        assert found == (expected.image_status, expected.text_status, expected.size or (None, None)), row
    manifest = json.loads(storage.read_text(f"{output}/{MANIFEST_FILE}"))
    assert {name: count for name, count in manifest["image_status"].items() if count} == planted.image_status
    assert {name: count for name, count in manifest["text_status"].items() if count} == planted.text_status


def test_driver_killed_at_three_moments(
    address: str, undisturbed: tuple[str, pa.Table], bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Before the first write, in the middle, and near the end; then the driver may finish."""
    archive, expected = undisturbed
    output, log = f"{bucket}/tags", tmp_path / "log"
    arguments = (str(tiny_model), archive, output, *SETTINGS)
    seen = []
    for writes in (0, 2, 6):  # of eight
        with driver(*arguments, log=log, **{DELAY: "0.15"}) as process:
            wait_until(lambda: storage.exists(storage.join(output, RUN_FILE)), process, log)
            if not writes:
                time.sleep(1)
            wait_until(lambda writes=writes: finished_writes(output) >= writes, process, log)
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen.append(finished_writes(output))
        assert not is_finished(output)
    assert seen == sorted(seen)
    assert run_to_end(*arguments, log=log) == 0, log.read_text()[-3000:]
    assert json.loads(storage.read_text(storage.join(output, MANIFEST_FILE)))["rows_this_time"] < POSTS / 2
    assert_same_rows(expected, read_tags(output))


def test_model_actor_killed(
    address: str, undisturbed: tuple[str, pa.Table], bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    archive, expected = undisturbed
    output, log = f"{bucket}/tags", tmp_path / "log"
    arguments = (str(tiny_model), archive, output, *SETTINGS)
    with driver(*arguments, log=log, **{DELAY: "0.15"}) as process:
        wait_until(lambda: finished_writes(output) >= 2, process, log)
        actors = [one for one in psutil.process_iter(["cmdline"]) if is_model_actor(one)]
        actors[0].kill()
        assert process.wait(timeout=400) == 0, log.read_text()[-3000:]
    assert_same_rows(expected, read_tags(output))


def is_model_actor(process: psutil.Process) -> bool:
    title = " ".join(process.info["cmdline"] or [])
    return title.startswith("ray::") and "TagPosts" in title


def test_worker_node_killed(
    undisturbed: tuple[str, pa.Table],
    bucket: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive, expected = undisturbed
    output, log = f"{bucket}/tags", tmp_path / "log"
    node: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={**node, "num_cpus": 2})
    try:
        cluster.add_node(**node)
        lost = cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        arguments = (str(tiny_model), archive, output, *SETTINGS)
        with driver(*arguments, log=log, **{DELAY: "0.15"}) as process:
            wait_until(lambda: finished_writes(output) >= 2, process, log)
            cluster.remove_node(lost, allow_graceful=False)
            code = process.wait(timeout=400)
        if code:  # Ray may give up on it; the same command then goes on
            assert run_to_end(*arguments, log=log) == 0, log.read_text()[-3000:]
    finally:
        cluster.shutdown()
    assert_same_rows(expected, read_tags(output))


def test_store_that_fails_one_request_in_twenty(
    address: str,
    undisturbed: tuple[str, pa.Table],
    bucket: str,
    store: str,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    archive, expected = undisturbed
    output, log = f"{bucket}/tags", tmp_path / "log"
    arguments = (str(tiny_model), archive, output, *SETTINGS, *PATIENT)
    codes = []
    with faults(store) as proxy:
        while not codes or (codes[-1] == 1 and len(codes) < 4):
            codes.append(run_to_end(*arguments, log=log))
    assert codes[-1] == 0, log.read_text()[-3000:]
    assert {"slow_down", "internal_error", "stall"} <= set(proxy.faults)
    assert sum(proxy.faults.values()) > 20
    assert_same_rows(expected, read_tags(output))


@pytest.mark.real_s3
def test_wrong_credentials_are_one_line(ceph_s3: str, tiny_model: Path) -> None:
    archive = f"{ceph_s3}/archive"
    storage.write_bytes(f"{archive}/a.parquet", b"not even looked at")
    command = [sys.executable, "jobs/tag.py", "--model", str(tiny_model), "--input", archive]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wrong"}
    refused = subprocess.run(
        [*command, "--output", f"{ceph_s3}/tags"], env=environment, capture_output=True, text=True
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith(f"error: {archive}")
    assert "refuses the AWS credentials (SignatureDoesNotMatch)" in line


def test_memory_stays_flat(tiny_model: Path, tmp_path: Path) -> None:
    """With 100,000 rows, in files of the same size, neither driver nor model takes a tenth more than with 20,000.

    The heaps of the tasks' workers grow a little with their tasks: 190 to 233 MiB was seen.
    """
    few, many = (memory_peaks(str(tiny_model), tmp_path / str(rows), rows) for rows in (20_000, 100_000))
    for name, most in (("driver", 1.1), ("ray::MapWorker(MapBatches(TagPosts))", 1.1), ("ray::", 1.5)):
        before, after = (
            max(mib for key, mib in seen.items() if key.startswith(name)) for seen in (few, many)
        )
        assert after <= most * before, (name, before, after)


def memory_peaks(model: str, folder: Path, rows: int) -> dict[str, float]:
    """The most MiB that the driver and each kind of worker took in a run over a cheap archive."""
    archive, output, log = folder / "archive", str(folder / "tags"), folder / "log"
    write_cheap_archive(str(archive), rows, files=rows // 2500)
    peaks: dict[str, float] = {}
    settings = ("--actors=1", "--cpus_per_actor=0.5", "--min_rows_per_file=1000")
    with driver(model, str(archive), output, *settings, log=log) as process:
        while process.poll() is None:
            measure(psutil.Process(process.pid), peaks)
            time.sleep(0.25)
    assert process.returncode == 0, log.read_text()[-3000:]
    assert read_tags(output).num_rows == rows
    assert len(storage.list_files(output, ".parquet")) <= rows // 1000
    return peaks


def measure(driver_process: psutil.Process, peaks: dict[str, float]) -> None:
    """Raises the peaks to the MiB of memory that the driver and each kind of worker take now."""
    try:
        family = driver_process.children(recursive=True)
        seen = [("driver", driver_process)]
        seen += [(" ".join(one.cmdline()), one) for one in family]
        for name, process in seen:
            if name.startswith(("driver", "ray::")):
                peaks[name] = max(peaks.get(name, 0.0), anonymous_mib(process.pid))
    except (psutil.Error, OSError):
        pass  # it ended while it was looked at


def anonymous_mib(pid: int) -> float:
    """Heaps and stacks. Of the libraries a process is charged more whenever another one that has them ends."""
    rollup = Path("/proc", str(pid), "smaps_rollup").read_text()
    kib = next(line.split()[1] for line in rollup.splitlines() if line.startswith("Anonymous:"))
    return int(kib) / 1024
