"""Import a public dataset: `python jobs/prepare.py LAYOUT --root DIR --output URI`.

Layouts: `twitter` is that of the Twitter2015 and Twitter2017 releases (`{train,valid,test}.txt`, `*_images/`,
`xml/`), `flickr30k` that of Flickr30K Entities (`{train,val,test}.txt`, `Sentences/`, `Annotations/`, `*images*/`).
Writes Parquet a split with `summary.json` beside them. The summary is printed too.
"""

import argparse
from functools import partial

from mnerqg.cli import HelpFormatter, format_columns, format_names, job_parser, run
from mnerqg.datasets import flickr30k, twitter
from mnerqg.datasets.importing import SUMMARY_FILE
from mnerqg.io import storage
from mnerqg.places import local_place, place

Figures = list[tuple[str, int]]
"""The printed figures of a split, by label, in the order of the table."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; argparse exits with 2 where it is wrong."""
    parser = job_parser("jobs/prepare.py", __doc__)
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    for name, release, root in (
        ("twitter", "the Twitter2015 and Twitter2017 releases", "train.txt, *_images/ and xml/"),
        ("flickr30k", "Flickr30K Entities", "train.txt, Sentences/, Annotations/ and flickr30k-images/"),
    ):
        layout = layouts.add_parser(
            name, help=f"the layout of {release}", formatter_class=HelpFormatter, allow_abbrev=False
        )
        layout.add_argument("--root", type=local_place, required=True, help=f"directory with {root}")
        layout.add_argument(
            "--output", type=place, required=True, help="directory or s3:// URI to write the dataset to"
        )
        layout.add_argument(
            "--splits",
            type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
            help="splits that must exist and alone are imported, such as train,valid (default: those that exist)",
        )
        layout.add_argument("--overwrite", action="store_true", help="replace an earlier prepared dataset")
    return parser.parse_args(argv)


def twitter_figures(summary: twitter.SplitSummary) -> Figures:
    entities = [(f"  {name}", count) for name, count in summary.entities.items()]
    boxes = [(f"  {name}", count) for name, count in summary.boxes.items()]
    return [
        ("posts", summary.posts),
        ("  that share an earlier post's picture", summary.shared_pictures),
        ("entities", sum(summary.entities.values())),
        *entities,
        ("  begun by a stray I-", summary.stray_i),
        ("  begun by an I- of another type", summary.type_changing_i),
        ("pictures found", summary.pictures_found),
        ("pictures missing", summary.pictures_missing),
        ("pictures unreadable", summary.pictures_unreadable),
        ("  of another size than the XML says", summary.size_mismatch),
        ("posts whose picture has an XML", summary.posts_annotated),
        ("boxes joined", summary.boxes_joined),
        *boxes,
        ("  name of entities of several types", summary.boxes_ambiguous),
        ("  clipped to the picture", summary.boxes_clipped),
        ("boxes dropped (inverted, empty or outside)", summary.boxes_dropped),
        ("boxes unmatched", summary.boxes_unmatched),
        ("objects without a box", summary.objects_without_box),
    ]


def flickr30k_figures(summary: flickr30k.SplitSummary) -> Figures:
    return [
        ("pictures (one a row)", summary.posts),
        ("  without a phrase that has a box", summary.posts_without_phrases),
        ("captions", summary.captions),
        ("marked phrases", sum(summary.mentions.values())),
        ("  with a box", summary.mentions["boxed"]),
        ("  left out: not visual", summary.mentions["not_visual"]),
        ("  left out: the whole scene", summary.mentions["scene"]),
        ("  left out: no box drawn", summary.mentions["no_box"]),
        ("  left out: box dropped", summary.mentions["box_dropped"]),
        ("  left out: unknown to the XML", summary.mentions["unknown"]),
        ("phrases (distinct, with a box)", summary.phrases),
        ("pictures found", summary.pictures_found),
        ("pictures missing", summary.pictures_missing),
        ("pictures unreadable", summary.pictures_unreadable),
        ("  of another size than the XML says", summary.size_mismatch),
        ("boxes", summary.boxes),
        ("  clipped to the picture", summary.boxes_clipped),
        ("  dropped (inverted, empty or outside)", summary.boxes_dropped),
        ("  merged into their entity's one box", summary.boxes_merged),
        ("entities of several boxes", summary.entities_merged),
    ]


def format_figures(columns: dict[str, Figures]) -> str:
    """A table with a column a split."""
    return format_columns(
        {split: [(label, f"{count:,}") for label, count in figures] for split, figures in columns.items()}
    )


def format_absent(splits: list[str]) -> list[str]:
    return [f"not in the release: {', '.join(splits)}"] if splits else []


def import_twitter(arguments: argparse.Namespace) -> list[str]:
    """Import the release; the lines of its summary."""
    summary = twitter.import_dataset(arguments.root, arguments.output, arguments.splits, arguments.overwrite)
    lines = [format_figures({split: twitter_figures(figures) for split, figures in summary.splits.items()})]
    lines += format_absent(summary.absent_splits)
    lines += format_names(
        "XML files of no post of the splits, not read", summary.xml_without_post_names, SUMMARY_FILE
    )
    for split, figures in summary.splits.items():
        lines += format_names(f"{split}: boxes dropped", figures.dropped_boxes, SUMMARY_FILE)
        lines += format_names(
            f"{split}: boxes whose name is no entity of the post", figures.unmatched_names, SUMMARY_FILE
        )
        lines += format_names(f"{split}: pictures not read", figures.picture_problems, SUMMARY_FILE)
    return lines


def import_flickr30k(arguments: argparse.Namespace) -> list[str]:
    """Import the release; the lines of its summary."""
    summary = flickr30k.import_dataset(
        arguments.root, arguments.output, arguments.splits, arguments.overwrite
    )
    lines = [format_figures({split: flickr30k_figures(figures) for split, figures in summary.splits.items()})]
    lines += format_absent(summary.absent_splits)
    for split, figures in summary.splits.items():
        lines += format_names(f"{split}: boxes dropped", figures.dropped_boxes, SUMMARY_FILE)
        lines += format_names(
            f"{split}: entities of the captions that the XML lacks", figures.unknown_entities, SUMMARY_FILE
        )
        lines += format_names(f"{split}: pictures not read", figures.picture_problems, SUMMARY_FILE)
    return lines


def main(argv: list[str]) -> None:
    """Import the dataset and print its summary.

    Raises:
        MnerqgError: a release, an output or a split that is not as it should be.
    """
    arguments = parse_arguments(argv)
    print(f"importing {arguments.root} to {arguments.output}", flush=True)
    lines = import_twitter(arguments) if arguments.layout == "twitter" else import_flickr30k(arguments)
    print("\n".join(lines))
    print(f"\nwritten: {storage.join(arguments.output, SUMMARY_FILE)}")


command = partial(run, main, interrupted="run it again, with --overwrite where it says so")

if __name__ == "__main__":
    command()
