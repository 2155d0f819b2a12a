"""Score a model: `python jobs/evaluate.py --model URI --data URI --split S --output F.json [--key value ...]`.

Prints the table and writes it as JSON. Every row of the split is scored exactly once. --per-post F.parquet also
writes what every post adds to the scores, for tests of one system against another.
"""

from functools import partial
from typing import Any

from mnerqg.cli import add_verbose, format_table, job_parser, run
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ActorsConfig
from mnerqg.io import storage


def main(argv: list[str]) -> None:
    """Score the split, write the scores and print them.

    Raises:
        MnerqgError: model, dataset, settings or outputs are not as they should be.
    """
    parser = job_parser("jobs/evaluate.py", __doc__, ActorsConfig, config=False)
    parser.add_argument("--model", required=True, help="model directory, local or s3://")
    parser.add_argument("--data", required=True, help="prepared dataset, local or s3://")
    parser.add_argument("--split", default="test", help="train, valid or test")
    parser.add_argument("--output", required=True, help="JSON file to write, local or s3://")
    parser.add_argument(
        "--per-post", metavar="F.parquet", help="write counts a post and type, too, local or s3://"
    )
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    config = load_config(ActorsConfig, "", overrides)
    for uri in filter(None, (arguments.output, arguments.per_post)):  # before all the scoring, not after it
        storage.check_writable(storage.absolute(uri).rpartition("/")[0])

    # Here, for the help and a wrong setting need not wait for them.
    from mnerqg.distributed.evaluation import evaluate, write_per_post, write_scores
    from mnerqg.distributed.session import connect

    connect(verbose=arguments.verbose)
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
    return f"{head}\n{format_table(figures, indent='  ')}"


command = partial(run, main)

if __name__ == "__main__":
    command()
