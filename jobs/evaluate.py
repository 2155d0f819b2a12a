"""Score a model: `python jobs/evaluate.py --model URI --data URI --split S --output F.json [--key value ...]`.

Prints the table and writes it as JSON. Every row of the split is scored exactly once.
"""

import argparse
import json
from typing import Any

import ray

from mnerqg import storage
from mnerqg.cli import run
from mnerqg.config import EvaluateConfig, load_config
from mnerqg.distributed.evaluation import evaluate


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py", description=__doc__)
    parser.add_argument("--model", required=True, help="model directory, local or s3://")
    parser.add_argument("--data", required=True, help="prepared dataset, local or s3://")
    parser.add_argument("--split", default="test", help="train, valid or test")
    parser.add_argument("--output", required=True, help="JSON file to write, local or s3://")
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(EvaluateConfig, "", overrides)
    ray.init(ignore_reinit_error=True)
    scores = evaluate(arguments.model, arguments.data, arguments.split, config)
    storage.write_text(arguments.output, json.dumps(scores, indent=2) + "\n")
    print(format_scores(scores))


def format_scores(scores: dict[str, Any]) -> str:
    """The table of the paper's measures, in percent."""
    rows = [
        ("precision", scores["precision"]),
        ("recall", scores["recall"]),
        ("F1", scores["f1"]),
        *((f"F1 {kind}", scores[f"f1_{kind}"]) for kind in scores["types"]),
        ("Accu@0.5", scores["accuracy_50"]),
        ("Accu@0.75", scores["accuracy_75"]),
        ("mean IoU", scores["mean_iou"]),
        ("GMNER F1", scores["gmner_f1"]),
    ]
    head = (
        f"{scores['split']}: {scores['posts']} posts, {scores['entities']} entities, "
        f"{scores['grounded_queries']} grounded queries (model {scores['model_id']})"
    )
    return "\n".join([head, *(f"  {name:<12}{100 * value:6.2f}" for name, value in rows)])


if __name__ == "__main__":
    run(main)
