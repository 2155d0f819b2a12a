"""A tagging job with the cheap model, to be killed: `python -m tests.tag_driver MODEL INPUT OUTPUT [--key value]`.

RAY_ADDRESS says which cluster; without it, or with `local`, the driver starts its own. The environment's AWS_* and
MNERQG_TEST_* variables reach the workers, too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from mnerqg import cli
from mnerqg.config_files import load_config
from mnerqg.config_jobs import TagConfig
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import plan_tagging
from tests.cheap_tagger import CheapTagger


@contextmanager
def driver(*arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Such a job, of the cluster at RAY_ADDRESS; it is gone afterwards."""
    command = [sys.executable, "-m", "tests.tag_driver", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def main(argv: list[str]) -> None:
    model, archive, output, *overrides = argv
    config = load_config(TagConfig, "", overrides)
    passed = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MNERQG_TEST_"))}
    own: dict[str, Any] = {}
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        own = {"address": "local", "num_cpus": 4, "object_store_memory": 200_000_000}
    ray.init(include_dashboard=None if not own else False, runtime_env={"env_vars": passed}, **own)
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = 300
    manifest = tag_archive(plan_tagging(config, model, archive, output), load_tagger=CheapTagger.load)  # type: ignore[arg-type]
    print(json.dumps(manifest))


if __name__ == "__main__":
    cli.run(main)
