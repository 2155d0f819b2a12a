"""Score a model: `python jobs/evaluate.py --model URI --data URI --split S --output F.json [--key value ...]`.

Prints the table and writes it as JSON. Every row of the split is scored exactly once. --per-post F.parquet also
writes what every post adds to the scores, for tests of one system against another. --pictures true,shuffled,none also
scores the entities with the pictures of other posts and with none: a model that reads pictures is the worse for it.
"""

from functools import partial
from typing import Any

from mnerqg.cli import add_verbose, format_table, job_parser, run
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ActorsConfig
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.places import place
from mnerqg.schema import PICTURES, Pictures


def main(argv: list[str]) -> None:
    """Score the split, write the scores and print them.

    Raises:
        MnerqgError: model, dataset, settings or outputs are not as they should be.
    """
    parser = job_parser("jobs/evaluate.py", __doc__, ActorsConfig, config=False)
    parser.add_argument("--model", type=place, required=True, help="model directory, local or s3://")
    parser.add_argument("--data", type=place, required=True, help="prepared dataset, local or s3://")
    parser.add_argument("--split", default="test", help="train, valid or test")
    parser.add_argument("--output", type=place, required=True, help="JSON file to write, local or s3://")
    parser.add_argument(
        "--per-post",
        type=place,
        metavar="F.parquet",
        help="write counts a post and type, too, local or s3://",
    )
    parser.add_argument(
        "--pictures",
        default="true",
        metavar="true,shuffled,none",
        help="with which pictures the entities are scored (names with commas between them; default: true)",
    )
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    others = _other_pictures(arguments.pictures)
    config = load_config(ActorsConfig, "", overrides)
    for uri in filter(None, (arguments.output, arguments.per_post)):  # before all the scoring, not after it
        storage.check_writable(storage.absolute(uri).rpartition("/")[0])

    # Here, for the help and a wrong setting need not wait for it.
    from mnerqg.distributed.evaluation import evaluate, write_per_post, write_scores
    from mnerqg.distributed.session import hush

    if not arguments.verbose:
        hush()
    scores, per_post = evaluate(arguments.model, arguments.data, arguments.split, config, others)
    if arguments.per_post is not None:
        write_per_post(arguments.per_post, per_post)
    write_scores(arguments.output, scores)
    print(format_scores(scores))


def _other_pictures(names: str) -> tuple[Pictures, ...]:
    """Those named beside the true ones. Raises ConfigError."""
    asked = [name.strip() for name in names.split(",")]
    if wrong := [name for name in asked if name not in PICTURES]:
        raise ConfigError(f"--pictures names {wrong[0]!r}; choose from {', '.join(PICTURES)}")
    return tuple(name for name in PICTURES if name in asked and name != "true")


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
        *((f"F1, {name} pictures", scores[name]["f1"]) for name in PICTURES if name in scores),
    ]
    head = (
        f"{scores['split']}: {scores['posts']} posts, {scores['entities']} entities, "
        f"{scores['grounded_queries']} grounded queries (model {scores['model_id']})"
    )
    figures = [(name, "–" if value is None else f"{100 * value:.2f}") for name, value in rows]
    return f"{head}\n{format_table(figures, indent='  ')}"


command = partial(
    run, main, interrupted="nothing is written before all is scored: run the same command again"
)

if __name__ == "__main__":
    command()
