"""Train MNER-QG: `python jobs/train.py --config C --data URI --output URI [--section.key value ...]`.

--config may be given several times: a recipe, then what a variant changes of it (jobs/configs/variants). The same
command resumes an interrupted run and says so when the run is finished.
"""

from pathlib import Path

from mnerqg.cli import job_parser, run
from mnerqg.config import Config
from mnerqg.config_files import load_files
from mnerqg.errors import ConfigError
from mnerqg.places import local_place, place


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
        help="recipe, such as jobs/configs/paper.yaml; later ones override earlier ones key by key",
    )
    parser.add_argument(
        "--data", type=place, required=True, help="prepared dataset (jobs/prepare.py), local or s3://"
    )
    parser.add_argument("--output", type=place, required=True, help="folder of this run, local or s3://")
    arguments, overrides = parser.parse_known_args(argv)
    for path in arguments.config:
        if not path.is_file():
            recipes = ", ".join(sorted(entry.stem for entry in Path(__file__).parent.glob("configs/*.yaml")))
            raise ConfigError(f"--config {path} does not exist; recipes in jobs/configs: {recipes}")
    config = load_files(Config, arguments.config, overrides)

    # Here, for the help and a wrong setting need not wait for it.
    from mnerqg.distributed.training import train

    best = train(config, arguments.data, arguments.output)
    print(
        f"best epoch {best['epoch']}: valid F1 {best['f1']:.4f}, Accu@0.5 {best['accuracy_50']:.4f}, "
        f"GMNER F1 {best['gmner_f1']:.4f}\nmodel: {arguments.output.rstrip('/')}/best"
    )


if __name__ == "__main__":
    run(main)
