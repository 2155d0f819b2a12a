"""A table of the paper with our figures beside its: `python jobs/experiments.py --table 3 --config BASE.yaml
--data URI --output DIR [--seeds 0,1] [--split S] [--paper twitter2015] [--section.key value ...]`.

Trains and scores what is missing, one run after another, then prints the table and writes it to DIR as Markdown and
JSON. The same command resumes after a kill, and tables share their runs (DIR/runs/SYSTEM-seedN). Every system is the
recipe of --config, its file in jobs/configs/variants, and the settings of the command line, which hold for all runs.

The tables have the paper's numbers: 2 named entity recognition, 3 ablation, 4 joint against single training, 5 weak
against manual boxes. Systems that need weak boxes take them from --labeller MODEL. Without it FA-VG learns the manual
boxes of a tenth of the posts (train.boxed_share), after those of a phrase dataset where --phrases names one, and labels
the data to DIR/labelled. Manual boxes are what every system is scored against.
"""

import argparse
from functools import partial
from pathlib import Path

from mnerqg.cli import add_verbose, job_parser, run
from mnerqg.config import Config
from mnerqg.config_files import find_recipe
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.places import local_place, place
from mnerqg.scoring.paper import DATASETS
from mnerqg.scoring.tables import TABLES

CONFIGS = Path(__file__).parent / "configs"


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line and the settings in it; argparse exits with 2 where it is wrong."""
    parser = job_parser("jobs/experiments.py", __doc__, Config)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", type=int, choices=(2, 3, 4, 5), help="table of the paper")
    which.add_argument("--figure", type=int, choices=(4,), help="figure of the paper")
    parser.add_argument(
        "--config", required=True, action="append", type=local_place, help="recipe that all systems share"
    )
    parser.add_argument(
        "--data", type=place, required=True, help="prepared dataset (jobs/prepare.py), local or s3://"
    )
    parser.add_argument(
        "--output", type=place, required=True, help="folder of all experiments, local or s3://"
    )
    parser.add_argument("--seeds", default="0", help="one run for each of these, such as 0,1,2 (default: 0)")
    parser.add_argument(
        "--split",
        help="what is scored: train, valid or test (default: as in the paper, test, of --figure 4 valid)",
    )
    parser.add_argument("--paper", choices=DATASETS, help="print the paper's figures on this dataset, too")
    parser.add_argument(
        "--labeller", type=place, metavar="MODEL", help="model directory that gives the weak boxes"
    )
    parser.add_argument(
        "--phrases", type=place, metavar="URI", help="prepared phrase dataset the labeller begins with"
    )
    add_verbose(parser)
    return parser.parse_known_args(argv)


def main(argv: list[str]) -> None:
    """Run what is missing of a table and print it.

    Raises:
        MnerqgError: recipe, settings, datasets or labeller are not as they should be, or a run failed.
    """
    arguments, overrides = parse_arguments(argv)

    # Here, for the help and a wrong setting need not wait for them.
    from mnerqg.distributed.experiments import Experiment, make_table, plan_table
    from mnerqg.distributed.session import hush

    if not arguments.verbose:
        hush()
    table = TABLES[f"table{arguments.table}" if arguments.table else f"figure{arguments.figure}"]
    experiment = Experiment(
        table=table,
        split=arguments.split or table.split,
        recipes=[find_recipe(path, CONFIGS) for path in arguments.config],
        settings=overrides,
        seeds=parse_seeds(arguments.seeds),
        configs=CONFIGS,
        data=arguments.data,
        output=storage.absolute(arguments.output),
        labeller=arguments.labeller,
        phrases=arguments.phrases,
    )
    plan = plan_table(experiment)
    markdown = make_table(plan, arguments.paper)
    print(f"\n{markdown}\nwritten: {experiment.place(table.name)}.md and .json")


def parse_seeds(text: str) -> list[int]:
    """The numbers of `0,1,2`. Raises ConfigError for anything else."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}; give integers with commas between, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text} names a seed twice; name each once")
    return seeds


command = partial(run, main)

if __name__ == "__main__":
    command()
