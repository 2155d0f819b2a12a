"""Give a prepared dataset weak boxes: `python jobs/label.py --model URI --data URI --output URI [--key value ...]`.

The model is one with a grounding head, mostly FA-VG (jobs/configs/variants/fa_vg.yaml). One that has learned phrases
only is asked for the dataset's types by --queries. The output is a dataset for `jobs/train.py --train.boxes weak` or
`manual_where_present`. A finished output is left as it is.
"""

import argparse
from typing import Any

import ray

from mnerqg.cli import run
from mnerqg.config import ActorsConfig
from mnerqg.config_files import load_config
from mnerqg.distributed.labelling import label


def main(argv: list[str]) -> None:
    """Label every split and print how many boxes there are and how good they are.

    Raises:
        MnerqgError: model, dataset or output are not as they should be.
    """
    parser = argparse.ArgumentParser(prog="jobs/label.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model", required=True, help="model directory with a grounding head, local or s3://"
    )
    parser.add_argument("--data", required=True, help="prepared dataset, local or s3://")
    parser.add_argument("--output", required=True, help="folder for the labelled dataset, local or s3://")
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(ActorsConfig, "", overrides, source="the command line")
    ray.init(ignore_reinit_error=True)
    print(format_labels(label(arguments.model, arguments.data, arguments.output, config)))


def format_labels(labels: dict[str, Any]) -> str:
    """One line a split."""
    lines = [f"weak boxes of the model {labels['model_id']} for {labels['dataset']}"]
    for split, found in labels["splits"].items():
        boxes = ", ".join(f"{kind} {count:,}" for kind, count in sorted(found["weak_boxes"].items()))
        lines.append(
            f"  {split}: {found['posts']:,} posts; boxes: {boxes or 'none'}; {found['named']:,} of types that the text "
            f"names, of which {found['learned']:,} are sure enough to be learned from; against "
            f"{found['grounded_queries']:,} manual ones: Accu@0.5 {100 * found['accuracy_50']:.2f}, mean IoU "
            f"{100 * found['mean_iou']:.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
