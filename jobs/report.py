"""Look at tags and at a training run: `python jobs/report.py --tags URI [--data URI] [--model RUN] --output DIR`.

Writes one HTML page that needs no network, DIR/report.html: counts over all posts and, of a sample drawn by type and
status (--sample N --seed S), the texts with their entities beside the pictures with their boxes. Texts and pictures
come from the archive that the tags name, or from --input; pictures are read only from where the run read them, or
below `--pictures.roots`. A second --tags compares two nights.
"""

from functools import partial

from mnerqg.cli import job_parser, run
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ReportConfig
from mnerqg.places import place
from mnerqg.report.report import Asked, write_report


def main(argv: list[str]) -> None:
    """Write the report and say where it lies.

    Raises:
        MnerqgError: tags, archive, annotations, training run, settings or output are not as they should be.
    """
    parser = job_parser("jobs/report.py", __doc__, ReportConfig, config=False)
    parser.add_argument(
        "--tags",
        type=place,
        action="append",
        default=[],
        metavar="URI",
        help="the --output of jobs/tag.py, local or s3://, finished or not; given twice, the second night is shown "
        "and compared with the first",
    )
    parser.add_argument(
        "--input",
        type=place,
        action="append",
        metavar="URI",
        help="the archive of the tags, where it has been moved; as often as for jobs/tag.py",
    )
    parser.add_argument(
        "--data",
        type=place,
        metavar="URI",
        help="prepared dataset with annotations of the tagged posts (by post_id)",
    )
    parser.add_argument("--split", default="test", help="of --data: train, valid or test")
    parser.add_argument(
        "--model", type=place, metavar="RUN", help="the --output of jobs/train.py, for its curves"
    )
    parser.add_argument(
        "--output", type=place, required=True, metavar="DIR", help="folder for report.html, local or s3://"
    )
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(ReportConfig, "", overrides)
    asked = Asked(
        tags=tuple(arguments.tags),
        archive=tuple(arguments.input) if arguments.input else None,
        data=arguments.data,
        split=arguments.split,
        training=arguments.model,
    )
    written = write_report(asked, arguments.output, config)
    for notice in written.notices:
        print(f"note: {notice}")
    if written.posts:
        print(f"{written.shown:,} of {written.posts:,} posts in the gallery, seed {config.seed}")
    print(f"report: {written.uri} ({written.size / 1e6:.1f} MB)")


command = partial(run, main, interrupted="nothing was written: run the same command again")

if __name__ == "__main__":
    command()
