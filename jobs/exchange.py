"""Have people correct tags, and train on what they say: `python jobs/exchange.py export|import --format FORMAT …`.

export writes the posts of a tagging run with what the model found, pictures by URI: tasks.json with predictions and
config.xml, the labelling configuration, for Label Studio; coco.json for tools for boxes. import makes a dataset for
jobs/train.py of what comes back: Label Studio's export as JSON, or a COCO file. What is not understood is named, and
left out.
"""

import argparse
import json
from functools import partial
from typing import Any, Literal, get_args

from mnerqg.cli import HelpFormatter, format_columns, format_names, format_table, job_parser, run
from mnerqg.config_files import load_file
from mnerqg.config_jobs import ImportConfig, PicturesConfig
from mnerqg.datasets.importing import SUMMARY_FILE
from mnerqg.errors import ConfigError
from mnerqg.exchange import coco, label_studio
from mnerqg.exchange.dataset import CorrectionFigures, write_corrections
from mnerqg.exchange.offsets import UNITS
from mnerqg.exchange.posts import Unclear
from mnerqg.exchange.tags import TaggedArchive
from mnerqg.io import storage
from mnerqg.io.picture_store import PictureStore
from mnerqg.places import place

Format = Literal["label-studio", "coco"]


def main(argv: list[str]) -> None:
    """Export or import.

    Raises:
        MnerqgError: tags, archive, file or output are not as they should be.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    if arguments.way == "export":
        if overrides:
            raise ConfigError(f"unexpected argument {overrides[0]!r}; see jobs/exchange.py export --help")
        _export(arguments)
    else:
        _import(arguments, load_file(ImportConfig, None, overrides).pictures)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("jobs/exchange.py", __doc__, ImportConfig, config=False)
    ways = parser.add_subparsers(dest="way", required=True, metavar="export|import")
    options: Any = {"formatter_class": HelpFormatter, "allow_abbrev": False}
    out = ways.add_parser("export", help="tags for people to correct", **options)
    out.add_argument("--tags", type=place, required=True, help="folder of a tagging run, local or s3://")
    out.add_argument("--sample", type=int, metavar="N", help="rows to draw (whole number; default: all)")
    out.add_argument("--seed", type=int, default=0, help="of the draw (whole number; default: 0)")
    back = ways.add_parser("import", help="corrections as a dataset", **options)
    back.add_argument("--input", type=place, required=True, help="file of corrections, local or s3://")
    back.add_argument(
        "--exported", type=place, help="of a COCO file without texts: the coco.json that was exported"
    )
    back.add_argument(
        "--offsets",
        choices=UNITS,
        help="of a Label Studio file (default: those that fit the words it records)",
    )
    back.add_argument("--valid", type=float, default=0.2, help="share of the posts for valid (default: 0.2)")
    back.add_argument("--overwrite", action="store_true", help="replace an earlier prepared dataset")
    for way, written in ((out, "the files"), (back, "the dataset")):
        way.add_argument("--format", required=True, choices=get_args(Format))
        way.add_argument("--output", type=place, required=True, help=f"folder for {written}, local or s3://")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    archive = TaggedArchive(arguments.tags)
    output = storage.absolute(arguments.output)
    posts = list(archive.posts(storage.join(output, "pictures"), arguments.sample, arguments.seed))
    types = archive.types()
    if arguments.format == "coco":
        files = {"coco.json": json.dumps(coco.to_document(posts, types), ensure_ascii=False)}
    else:
        tasks = [label_studio.to_task(post) for post in posts]
        files = {
            "tasks.json": json.dumps(tasks, ensure_ascii=False),
            "config.xml": label_studio.labelling_config(types),
        }
    for name, content in files.items():
        storage.write_text(storage.join(output, name), content)
    if archive.missing:
        print(
            f"{archive.missing:,} tagged rows are no posts of the archive any more, which has changed; left out"
        )
    if not archive.finished:
        print(f"{arguments.tags} is not finished: these are the posts tagged so far")
    roots = [*archive.roots, *([output] if storage.exists(storage.join(output, "pictures")) else [])]
    rows = [
        ("posts with a text", f"{len(posts):,}"),
        ("pictures", f"{sum(len(post.pictures) for post in posts):,}"),
        ("entities", f"{sum(len(post.entities) for post in posts):,}"),
        ("boxes", f"{sum(len(post.regions) for post in posts):,}"),
    ]
    print(format_table(rows))
    print(f"written: {', '.join(storage.join(arguments.output, name) for name in files)}")
    print(
        f"when it is corrected: jobs/exchange.py import --format {arguments.format} --input F.json --output DATASET "
        f"--pictures.roots '{json.dumps(roots)}'"
    )


def _import(arguments: argparse.Namespace, pictures: PicturesConfig) -> None:
    if not 0 <= arguments.valid < 1:
        raise ConfigError(f"--valid is {arguments.valid:g}; give a share from 0 to below 1")
    unclear = Unclear()
    text = storage.read_text(arguments.input)
    if arguments.format == "coco":
        exported = storage.read_text(arguments.exported) if arguments.exported else None
        posts = list(coco.read_document(text, exported, unclear))
    else:
        posts = list(label_studio.read_tasks(text, arguments.offsets, unclear))
    roots = pictures.roots or (storage.absolute(arguments.input).rpartition("/")[0],)
    store = PictureStore(pictures.model_copy(update={"roots": roots}))
    summary = write_corrections(
        posts,
        store,
        unclear,
        arguments.output,
        source=arguments.format,
        valid_share=arguments.valid,
        overwrite=arguments.overwrite,
    )
    print(format_columns({split: _figures(figures) for split, figures in summary.splits.items()}))
    for line in format_names("not understood", unclear.lines, SUMMARY_FILE):
        print(line)
    print(f"\nwritten: {storage.join(arguments.output, SUMMARY_FILE)}")


def _figures(figures: CorrectionFigures) -> list[tuple[str, str]]:
    return [
        ("rows (one a picture)", f"{figures.posts:,}"),
        ("entities", f"{figures.entities:,}"),
        ("boxes", f"{figures.boxes:,}"),
        ("  clipped to the picture", f"{figures.boxes_clipped:,}"),
        ("pictures found", f"{figures.pictures_found:,}"),
        ("pictures missing", f"{figures.pictures_missing:,}"),
        ("pictures unreadable", f"{figures.pictures_unreadable:,}"),
        ("  of another size than annotated", f"{figures.size_mismatch:,}"),
    ]


command = partial(run, main, interrupted="run it again, with --overwrite where it says so")

if __name__ == "__main__":
    command()
