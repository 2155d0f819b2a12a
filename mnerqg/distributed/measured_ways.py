"""An archive tagged in several ways, turn about: in this process, and as a whole job on the running cluster."""

from pathlib import Path
from tempfile import TemporaryDirectory

import ray
import torch

from mnerqg.benchmark.answering import Ways
from mnerqg.benchmark.device import device_name
from mnerqg.benchmark.posts import spread_posts
from mnerqg.benchmark.rounds import Report, Round, paces, ratio, spread_of, turn_about
from mnerqg.config_jobs import TagConfig
from mnerqg.distributed.measured_tagging import tag_once, watched_tagger
from mnerqg.distributed.session import connect
from mnerqg.distributed.tagging import model_settings
from mnerqg.distributed.tagging_plan import plan_tagging
from mnerqg.distributed.tagging_resources import plan_resources
from mnerqg.distributed.tagging_stages import CPU_BATCH_POSTS, GPU_BATCH_POSTS, chunk_rows, load
from mnerqg.model.checkpoint import load_model


def measure(
    report: Report, config: TagConfig, model: str, archive: str, posts: int, rounds: int, beside: Path
) -> None:
    """Join a cluster and tag an archive as a job, and `posts` of it, spread evenly, in the other ways.

    Args:
        report: gets the figures.
        config: of the job; device, precision, threads and posts a batch of the other ways are its.
        model: URI of the model directory.
        archive: URI.
        posts: of all ways but the job.
        rounds: turns of each way.
        beside: where the job's tags lie until it has ended.

    Raises:
        MnerqgError: model, archive or cluster are not as they should be.
    """
    with TemporaryDirectory(prefix="planned-", dir=beside) as folder:
        plan = plan_tagging(config, model, archive, f"{folder}/out")
    connect()
    resources = plan_resources(config, ray.cluster_resources())
    tagger = load(model_settings(plan, resources, "benchmark"), plan.windows)
    report.device = device_name(tagger.device)
    chosen = spread_posts(plan.archive, config.columns, plan.pictures, posts)
    on_gpu = tagger.device.type == "cuda"
    ways = Ways(
        tagger,
        load_model(plan.model, plan.queries),
        chosen,
        batch_posts=config.batch_posts or (GPU_BATCH_POSTS if on_gpu else CPU_BATCH_POSTS),
        sorted_posts=chunk_rows(
            config.batch_posts, gpu=on_gpu, side=plan.side, block_bytes=resources.block_bytes
        ),
    )

    def job() -> Round:
        if on_gpu:
            torch.cuda.empty_cache()  # the actor has its memory on the same GPU
        return tag_once(config, plan.model, archive, beside, watched_tagger)

    variants = {
        "pairwise": ways.pairwise,
        "bare": ways.bare,
        "tagger": ways.tagger,
        "tagger_with_decoding": ways.tagger_with_decoding,
        "job": job,
    }
    measured = turn_about(variants, rounds, report)
    expected = {name: len(chosen) for name in variants if name != "job"}
    paces(report, measured, expected | {"job": plan.archive.rows})
    jobs = measured["job"]
    pace = report.figures["posts_per_second"]
    steady = spread_of(jobs, "steady_posts_per_second")
    if steady is not None:
        pace["job_steady"] = steady
    report.figures |= {
        "ratio_to_pairwise": ratio(steady, pace["pairwise"]),
        "ratio_to_bare": ratio(steady, pace["bare"]),
        "device_busy": {name: spread_of(done, "device_busy") for name, done in measured.items()},
        "cpus_busy": spread_of(jobs, "cpus_busy"),
        "memory": {name: max(one["memory"][name] for one in jobs) for name in jobs[0]["memory"]},
        "spilled_bytes": sum(one["spilled_bytes"] for one in jobs),
        "first_batch_after_s": spread_of(jobs, "first_batch_after_s"),
    }
