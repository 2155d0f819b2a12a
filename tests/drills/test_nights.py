"""The nightly job over many nights, with all that happens in a month: in the end every night is complete, exactly once.

Six nights by default; `MNERQG_TEST_NIGHTS=30 pytest tests/drills/test_nights.py` is the whole month.
"""

import os
import subprocess
from contextlib import AbstractContextManager
from datetime import date, timedelta
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from mnerqg.archive.run import SUCCESS_FILE
from mnerqg.config_jobs import ColumnsConfig, TagConfig
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import plan_tagging
from mnerqg.errors import RunError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE
from tests.archives import finished_writes, read_tags, write_archive
from tests.cheap_tagger import DELAY, CheapTagger
from tests.cluster.heads import wait_until
from tests.servers import FaultyProxy
from tests.tag_driver import driver

COUNT = int(os.environ.get("MNERQG_TEST_NIGHTS", "6"))
NIGHTS = [f"{date(2026, 11, 1) + timedelta(days=day)}" for day in range(COUNT)]
KILLED, NODE_DIES, STORE_FAILS, RUN_TWICE = (NIGHTS[COUNT * place // 6] for place in (1, 2, 3, 4))
POSTS = 120
CONFIG = TagConfig(
    columns=ColumnsConfig(pass_through=("row",)),
    min_rows_per_file=20,
    max_failed=0.5,
    actors=1,
    cpus_per_actor=0.5,
    batch_posts=8,
)
OPTIONS = (
    "--columns.pass_through=[row]",
    "--min_rows_per_file=20",
    "--max_failed=0.5",
    "--actors=1",
    "--cpus_per_actor=0.5",
    "--batch_posts=8",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 + 60 * COUNT)]


class Month:
    """The archive and the tags of the nights."""

    def __init__(self, bucket: str, model: str, folder: Path) -> None:
        self.posts, self.tags, self.model, self.folder = f"{bucket}/posts", f"{bucket}/tags", model, folder

    def places(self, night: str) -> tuple[str, str]:
        return f"{self.posts}/date={night}", f"{self.tags}/date={night}"

    def driver(self, night: str, **environment: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The job in a process of its own, slow enough to meet what is going to happen to it."""
        log = self.folder / f"{night}.log"
        return driver(self.model, *self.places(night), *OPTIONS, log=log, **{DELAY: "0.3", **environment})

    def run(self, night: str) -> None:
        """The job as on any other night."""
        tag_archive(plan_tagging(CONFIG, self.model, *self.places(night)), load_tagger=CheapTagger.load)  # type: ignore[arg-type]

    def wait_for_writes(self, night: str, count: int) -> None:
        wait_until(lambda: finished_writes(self.places(night)[1]) >= count, 240)


def test_every_night_is_complete_exactly_once(
    ray_cluster: None, s3_endpoint: str, s3_bucket: str, tiny_model: Path, tmp_path: Path
) -> None:
    month = Month(s3_bucket, str(tiny_model), tmp_path)
    for number, night in enumerate(NIGHTS):
        write_archive(month.places(night)[0], POSTS, files=2, seed=number, bad_share=0.05, side=(80, 60))
    address = ray.get_runtime_context().gcs_address
    for night in NIGHTS:
        if night == KILLED:
            with month.driver(night, RAY_ADDRESS=address) as job:
                month.wait_for_writes(night, 1)
                job.kill()
                job.wait()
        elif night == NODE_DIES:
            on_a_cluster_that_loses_a_node(month, night)
        elif night == STORE_FAILS:
            while_the_store_is_away(month, night, s3_endpoint, address)
        elif night == RUN_TWICE:
            on_two_clusters_at_once(month, night)
        month.run(night)

    for night in NIGHTS:
        tags = month.places(night)[1]
        assert storage.exists(storage.join(tags, SUCCESS_FILE)), night
        assert sorted(read_tags(tags)["row"].to_pylist()) == list(range(POSTS)), night


def on_a_cluster_that_loses_a_node(month: Month, night: str) -> None:
    """Whatever becomes of the job: the node that it worked on is gone for good."""
    node = {"num_cpus": 2, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=node)
    try:
        lost = cluster.add_node(**node)
        with month.driver(night, RAY_ADDRESS=cluster.address) as job:
            month.wait_for_writes(night, 1)
            cluster.remove_node(lost, allow_graceful=False)
            job.wait(timeout=300)
    finally:
        cluster.shutdown()


def on_two_clusters_at_once(month: Month, night: str) -> None:
    """The second one is refused, and after the first has finished there is nothing left to be done."""
    tags = month.places(night)[1]
    with month.driver(night, RAY_ADDRESS="local", **{DELAY: "2"}) as job:  # several signs of life long
        wait_until(lambda: storage.exists(storage.join(tags, LOCK_FILE)), 240)
        with pytest.raises(RunError, match="another job, on"):
            month.run(night)
        assert job.wait(timeout=300) == 0
    before = storage.list_files(tags)
    month.run(night)
    assert storage.list_files(tags) == before


def while_the_store_is_away(month: Month, night: str, endpoint: str, address: str) -> None:
    """After the first write every request fails, until the job gives up."""
    proxy = FaultyProxy(endpoint, share=0.0, seed=0, kinds=("internal_error",))
    try:
        with month.driver(night, RAY_ADDRESS=address, AWS_ENDPOINT_URL=proxy.url) as job:
            month.wait_for_writes(night, 1)
            proxy.share = 1.0
            assert job.wait(timeout=400) == 1
        assert proxy.faults["internal_error"] > 0
    finally:
        proxy.close()
    log = (month.folder / f"{night}.log").read_text()
    assert "run the same command again" in log.splitlines()[-1]
