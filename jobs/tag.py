"""Tag an archive of posts with
`python jobs/tag.py --model URI --input URI --output URI [--config F] [--key value]`.

Whatever ends a run, the same command goes on where it stopped; of a finished one it says so. Settings stand in the
YAML of --config or on the command line, such as `--columns.text body`, `--pictures.roots '[s3://bucket/pictures]'`,
`--actors 4` and `--max-failed 0.1`. Pictures are read only below `pictures.roots`; without any, only below the
archive's own folder. Relative URIs lie below the first.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from mnerqg.archive.run import MANIFEST_FILE, tags_of
from mnerqg.cli import add_verbose, format_table, job_parser, run
from mnerqg.config_files import load_file
from mnerqg.config_jobs import TagConfig
from mnerqg.places import local_place, place

if TYPE_CHECKING:
    from mnerqg.distributed.tagging_plan import TagPlan
    from mnerqg.distributed.tagging_resources import Resources

_SHOWN_FILES = 5


def main(argv: list[str]) -> None:
    """Tag the archive and print what was found.

    Raises:
        MnerqgError: model, archive, output or cluster are not as they should be, or the run failed.
    """
    parser = job_parser("jobs/tag.py", __doc__, TagConfig)
    parser.add_argument("--model", type=place, required=True, help="model directory, local or s3://")
    parser.add_argument(
        "--input",
        type=place,
        required=True,
        action="append",
        help="archive: file, folder or glob of Parquet or JSON Lines (plain, .gz, .zst), local or s3://; "
        "given several times, all are one archive",
    )
    parser.add_argument("--output", type=place, required=True, help="folder for the tags, local or s3://")
    parser.add_argument("--config", type=local_place, help="YAML of settings")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    parser.add_argument(
        "--restart", action="store_true", help="throw away what an unfinished run left in --output"
    )
    parser.add_argument(
        "--retry-failed",
        type=place,
        metavar="RUN",
        help="tag again only the rows of this run whose pictures failed for a passing reason, take over the others",
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave files out that are damaged, and count them; reads Parquet through before it begins",
    )
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    config = load_file(TagConfig, arguments.config, overrides)

    # Here, for the help and a wrong setting need not wait for them.
    import ray

    from mnerqg.distributed.session import connect, hush
    from mnerqg.distributed.tagging import tag_archive
    from mnerqg.distributed.tagging_plan import plan_tagging
    from mnerqg.distributed.tagging_resources import plan_resources

    if not arguments.verbose:
        hush(workers_speak=False)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("mnerqg").setLevel(logging.INFO)
    plan = plan_tagging(
        config,
        arguments.model,
        arguments.input,
        arguments.output,
        restart=arguments.restart,
        retry_failed=arguments.retry_failed,
        skip_damaged=arguments.skip_damaged,
    )
    if plan.state.manifest is not None:
        print(format_summary(tag_archive(plan)))
        print(f"already done: run {plan.state.run_id} finished at {plan.state.manifest['finished']}")
        return
    print(
        f"tagging {plan.archive.rows:,} posts of {plan.archive.name} with the model {plan.model_id}",
        flush=True,
    )
    connect()
    if arguments.dry_run:
        print(format_plan(plan, plan_resources(config, ray.cluster_resources())))
        return
    print(format_summary(tag_archive(plan, verbose=arguments.verbose)))


def format_plan(plan: "TagPlan", resources: "Resources") -> str:
    """What a run would do, for a person."""
    archive, pictures = plan.archive, plan.pictures
    actors = f"{resources.min_actors} to {resources.max_actors}"
    read = {
        "bytes": "in the archive",
        "structs": f"in the archive, or at a path below {', '.join(pictures.roots)}",
        "uris": f"one URI a post, below {', '.join(pictures.roots)}",
        "lists": f"a list of URIs a post, below {', '.join(pictures.roots)}",
        "none": "none",
    }[archive.pictures]
    rows = [
        ("posts", f"{archive.rows:,}"),
        ("files", f"{len(archive.files):,} ({archive.format})"),
        *([("files left out", f"{len(archive.left_out):,}")] if archive.left_out else []),
        ("bytes", f"{sum(entry.size for entry in archive.files):,}"),
        ("pictures", read),
        (
            "read, fetch, decode",
            f"tasks with {resources.cpus_per_task:g} CPU, {pictures.concurrency} requests each",
        ),
        (
            "model",
            f"{actors} actor(s) with {resources.cpus_per_actor:g} CPU and {resources.gpus_per_actor:g} GPU",
        ),
        ("blocks", f"{resources.block_bytes / 2**20:g} MiB"),
        (
            "cluster",
            f"{resources.cluster_cpus:g} CPUs, {resources.cluster_gpus:g} GPUs, object store of "
            f"{resources.cluster_store_bytes / 2**20:,.0f} MiB",
        ),
        ("output", f"{plan.output} ({_begin(plan)})"),
    ]
    return f"{format_table(rows, figures=False)}\ndry run: nothing was done"


def _begin(plan: "TagPlan") -> str:
    if plan.state.run_id is None:
        return "a new run"
    return f"{'starts over' if plan.restart else 'goes on with'} run {plan.state.run_id}"


def format_summary(manifest: dict[str, Any]) -> str:
    """The manifest for a person: counts by status and type, pace, and where the files lie."""
    busy, left_out = manifest["model_busy"], manifest["files_left_out"]
    rows = [
        ("posts", f"{manifest['rows']:,}"),
        ("rows with an error", f"{manifest['rows_with_error']:,}"),
        ("rows worth a retry", f"{manifest['rows_retryable']:,}"),
        ("rows not read", f"{manifest['rows_unread']:,}"),
        *([("files left out", f"{len(left_out):,}")] if left_out else []),
        *_counts("text", manifest["text_status"]),
        *_counts("picture", manifest["image_status"]),
        *_counts("entities", manifest["entities"]),
        *_counts("regions", manifest["regions"]),
        ("seconds", f"{manifest['seconds']:,.1f}"),
        ("posts a second", f"{manifest['rows_per_second']:,.1f}"),
        ("model busy", "-" if busy is None else f"{busy:.0%}"),
    ]
    reasons = [f"  {count:>8,} x {reason}" for reason, count in manifest["reasons"].items()]
    output = manifest["output"].rstrip("/")
    return "\n".join(
        [
            "",
            format_table(rows),
            *(["errors:", *reasons] if reasons else []),
            *(["left out:", *(f"  {one['reason']}" for one in left_out[:_SHOWN_FILES])] if left_out else []),
            f"\nrun {manifest['run_id']}, {len(manifest['files'])} file(s): {tags_of(output)}/",
            f"summary: {output}/{MANIFEST_FILE}",
        ]
    )


def _counts(name: str, counts: dict[str, int]) -> list[tuple[str, str]]:
    rows = [(f"{name} {key.replace('_', ' ')}", f"{count:,}") for key, count in counts.items() if count]
    return rows or [(name, "0")]


command = partial(run, main)

if __name__ == "__main__":
    command()
