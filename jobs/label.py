"""Give a prepared dataset weak boxes: `python jobs/label.py --model URI --data URI --output URI [--key value ...]`.

The model is one with a grounding head, mostly FA-VG (jobs/configs/variants/fa_vg.yaml). One that has learned phrases
only is asked for the dataset's types by --queries. The output is a dataset for `jobs/train.py --train.boxes weak` or
`manual_where_present`. A finished output is left as it is.
"""

from functools import partial
from typing import Any

from mnerqg.cli import add_verbose, format_columns, job_parser, run
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ActorsConfig
from mnerqg.places import place


def main(argv: list[str]) -> None:
    """Label every split and print how many boxes there are and how good they are.

    Raises:
        MnerqgError: model, dataset or output are not as they should be.
    """
    parser = job_parser("jobs/label.py", __doc__, ActorsConfig, config=False)
    parser.add_argument(
        "--model", type=place, required=True, help="model directory with a grounding head, local or s3://"
    )
    parser.add_argument("--data", type=place, required=True, help="prepared dataset, local or s3://")
    parser.add_argument(
        "--output", type=place, required=True, help="folder for the labelled dataset, local or s3://"
    )
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(ActorsConfig, "", overrides, source="the command line")

    # Here, for the help and a wrong setting need not wait for it.
    from mnerqg.distributed.labelling import label
    from mnerqg.distributed.session import hush

    if not arguments.verbose:
        hush()
    print(format_labels(label(arguments.model, arguments.data, arguments.output, config)))


def format_labels(labels: dict[str, Any]) -> str:
    """A table with a column a split: the boxes, and how good they are."""
    kinds = sorted({kind for found in labels["splits"].values() for kind in found["weak_boxes"]})
    columns = {split: _figures(found, kinds) for split, found in labels["splits"].items()}
    head = f"weak boxes of the model {labels['model_id']} for {labels['dataset']}"
    return f"{head}\n{format_columns(columns, indent='  ')}"


def _figures(found: dict[str, Any], kinds: list[str]) -> list[tuple[str, str]]:
    return [
        ("posts", f"{found['posts']:,}"),
        *((f"boxes {kind}", f"{found['weak_boxes'].get(kind, 0):,}") for kind in kinds),
        ("boxes of types that the text names", f"{found['named']:,}"),
        ("  sure enough to be learned from", f"{found['learned']:,}"),
        ("manual boxes to compare with", f"{found['grounded_queries']:,}"),
        ("  Accu@0.5", f"{100 * found['accuracy_50']:.2f}"),
        ("  mean IoU", f"{100 * found['mean_iou']:.2f}"),
    ]


command = partial(run, main)

if __name__ == "__main__":
    command()
