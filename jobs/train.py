"""Train MNER-QG: `python jobs/train.py --config C --data URI --output URI [--section.key value ...]`.

--config may be given several times: a recipe, then what a variant changes of it (jobs/configs/variants). The same
command resumes an interrupted run and says so when the run is finished.
"""

from functools import partial
from pathlib import Path

from mnerqg.cli import add_verbose, job_parser, run
from mnerqg.config import Config
from mnerqg.config_files import find_recipe, load_files
from mnerqg.places import local_place, place

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> None:
    """Train, or go on with it, and print the scores of the best epoch.

    Raises:
        MnerqgError: recipe, settings, dataset or output are not as they should be, or the run failed.
    """
    parser = job_parser("jobs/train.py", __doc__, Config)
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        type=local_place,
        help="recipe: a path, or the name of one in jobs/configs, such as paper or variants/text; later ones override "
        "earlier ones key by key",
    )
    parser.add_argument(
        "--data", type=place, required=True, help="prepared dataset (jobs/prepare.py), local or s3://"
    )
    parser.add_argument("--output", type=place, required=True, help="folder of this run, local or s3://")
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    recipes = [find_recipe(path, CONFIGS) for path in arguments.config]
    config = load_files(Config, recipes, overrides)

    # Here, for the help and a wrong setting need not wait for it.
    from mnerqg.distributed.session import hush
    from mnerqg.distributed.training import train

    if not arguments.verbose:
        hush()
    best = train(config, arguments.data, arguments.output)
    print(
        f"best epoch {best['epoch']}: valid F1 {best['f1']:.4f}, Accu@0.5 {best['accuracy_50']:.4f}, "
        f"GMNER F1 {best['gmner_f1']:.4f}\nmodel: {arguments.output.rstrip('/')}/best"
    )


command = partial(run, main)

if __name__ == "__main__":
    command()
