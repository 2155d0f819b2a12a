"""Import a public dataset: `python jobs/prepare.py twitter --root DIR --output URI`.

Reads the release layout (`{train,valid,test}.txt`, `*_images/`, `xml/`) and writes Parquet a split with
`summary.json` beside them. The summary is printed too.
"""

import argparse
from pathlib import Path

from mnerqg import storage
from mnerqg.cli import run
from mnerqg.data.twitter import SUMMARY_FILE, DatasetSummary, SplitSummary, import_dataset

PRINTED_NAMES = 20


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; argparse exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__.splitlines()[0] if __doc__ else None
    )
    layouts = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    twitter = layouts.add_parser("twitter", help="the layout of the Twitter2015 and Twitter2017 releases")
    twitter.add_argument(
        "--root", type=Path, required=True, help="directory with train.txt, *_images/ and xml/"
    )
    twitter.add_argument("--output", required=True, help="directory or s3:// URI to write the dataset to")
    twitter.add_argument(
        "--splits",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        help="splits that must exist and alone are imported, such as train,valid (default: those that exist)",
    )
    twitter.add_argument("--overwrite", action="store_true", help="replace an earlier prepared dataset")
    return parser.parse_args(argv)


def table_rows(summary: SplitSummary) -> list[tuple[str, int]]:
    """The printed figures of a split, by label, in the order of the table."""
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
        ("boxes dropped (outside or empty)", summary.boxes_dropped),
        ("boxes unmatched", summary.boxes_unmatched),
        ("objects without a box", summary.objects_without_box),
    ]


def format_summary(summary: DatasetSummary) -> str:
    """An aligned table, one column a split, followed by what a person has to look at."""
    columns = {split: table_rows(figures) for split, figures in summary.splits.items()}
    labels = [label for label, _ in next(iter(columns.values()))]
    width = max(map(len, labels))
    lines = [" " * width + "".join(f"{split:>10}" for split in columns)]
    lines += [
        f"{label:<{width}}" + "".join(f"{rows[index][1]:>10,}" for rows in columns.values())
        for index, label in enumerate(labels)
    ]
    if summary.absent_splits:
        lines.append(f"not in the release: {', '.join(summary.absent_splits)}")
    for split, figures in summary.splits.items():
        lines += _listed(f"{split}: boxes whose name is no entity of the post", figures.unmatched_names)
        lines += _listed(f"{split}: pictures not read", figures.picture_problems)
    return "\n".join(lines)


def _listed(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rest = len(names) - PRINTED_NAMES
    more = [f"  … and {rest:,} more in {SUMMARY_FILE}"] if rest > 0 else []
    return [f"\n{title} ({len(names):,}):", *(f"  {name}" for name in names[:PRINTED_NAMES]), *more]


def main(argv: list[str]) -> None:
    """Import the dataset and print its summary.

    Raises:
        MnerqgError: a release, an output or a split that is not as it should be.
    """
    arguments = parse_arguments(argv)
    print(f"importing {arguments.root} to {arguments.output}", flush=True)
    summary = import_dataset(arguments.root, arguments.output, arguments.splits, arguments.overwrite)
    print(format_summary(summary))
    print(f"\nwritten: {storage.join(arguments.output, SUMMARY_FILE)}")


if __name__ == "__main__":
    run(main)
