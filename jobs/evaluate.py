"""Score a model: `python jobs/evaluate.py --model URI --data URI --split S --output F.json [--key value ...]`.

Prints the table and writes it as JSON. Every row of the split is scored exactly once. --per-post F.parquet also
writes what every post adds to the scores, for tests of one system against another.
"""

import argparse
from typing import Any

import ray

from mnerqg.cli import run
from mnerqg.config import ActorsConfig
from mnerqg.config_files import load_config
from mnerqg.distributed.evaluation import evaluate, write_per_post, write_scores
from mnerqg.io import storage


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py", description=__doc__)
    parser.add_argument("--model", required=True, help="model directory, local or s3://")
    parser.add_argument("--data", required=True, help="prepared dataset, local or s3://")
    parser.add_argument("--split", default="test", help="train, valid or test")
    parser.add_argument("--output", required=True, help="JSON file to write, local or s3://")
    parser.add_argument(
        "--per-post", metavar="F.parquet", help="write counts a post and type, too, local or s3://"
    )
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(ActorsConfig, "", overrides)
    for uri in filter(None, (arguments.output, arguments.per_post)):  # before all the scoring, not after it
        storage.check_writable(storage.absolute(uri).rpartition("/")[0])
    ray.init(ignore_reinit_error=True)
    scores, per_post = evaluate(arguments.model, arguments.data, arguments.split, config)
    if arguments.per_post is not None:
        write_per_post(arguments.per_post, per_post)
    write_scores(arguments.output, scores)
    print(format_scores(scores))


def format_scores(scores: dict[str, Any]) -> str:
    """The table of the paper's measures, in percent; "–" where the model answers nothing of the kind."""
    rows = [
        ("precision", scores["precision"]),
        ("recall", scores["recall"]),
        ("F1", scores["f1"]),
        *((f"F1 {kind}", scores[f"f1_{kind}"]) for kind in scores["types"]),
        ("Accu@0.5", scores["accuracy_50"]),
        ("Accu@0.75", scores["accuracy_75"]),
        ("mean IoU", scores["mean_iou"]),
        ("GMNER F1", scores["gmner_f1"]),
        ("  all boxes", scores["gmner_all_f1"]),
    ]
    head = (
        f"{scores['split']}: {scores['posts']} posts, {scores['entities']} entities, "
        f"{scores['grounded_queries']} grounded queries (model {scores['model_id']})"
    )
    figures = [(name, "–" if value is None else f"{100 * value:.2f}") for name, value in rows]
    return "\n".join([head, *(f"  {name:<12}{figure:>6}" for name, figure in figures)])


if __name__ == "__main__":
    run(main)
