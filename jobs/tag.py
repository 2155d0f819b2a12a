"""Tag an archive of posts with
`python jobs/tag.py --model URI --input URI --output URI [--config F] [--key value]`.

Settings are those of `mnerqg.config.TagConfig`, in the YAML of --config or as overrides such as
`--columns.text body`, `--pictures.roots '[s3://bucket/pictures]'` and `--actors 4`. Pictures are read only
below `pictures.roots`; without any, only below the archive's own folder. Relative URIs lie below the first.
"""

import argparse
from pathlib import Path
from typing import Any

import ray

from mnerqg.cli import run
from mnerqg.config import TagConfig, load_config
from mnerqg.distributed.tagging import MANIFEST_FILE, plan_tagging, tag_archive
from mnerqg.errors import ConfigError


def main(argv: list[str]) -> None:
    """Tag the archive and print what was found.

    Raises:
        MnerqgError: model, archive, output or cluster are not as they should be, or the run failed.
    """
    parser = argparse.ArgumentParser(
        prog="jobs/tag.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="model directory, local or s3://")
    parser.add_argument(
        "--input", required=True, help="archive: a Parquet file or a folder of them, local or s3://"
    )
    parser.add_argument("--output", required=True, help="new or empty folder for the tags, local or s3://")
    parser.add_argument("--config", type=Path, help="YAML of settings")
    arguments, overrides = parser.parse_known_args(argv)
    config = load_settings(arguments.config, overrides)
    plan = plan_tagging(config, arguments.model, arguments.input, arguments.output)
    print(
        f"tagging {plan.archive.rows:,} posts of {plan.archive.uri} with the model {plan.model_id}",
        flush=True,
    )
    ray.init(ignore_reinit_error=True)
    print(format_summary(tag_archive(plan)))


def load_settings(path: Path | None, overrides: list[str]) -> TagConfig:
    """The settings of a YAML file, or the defaults, with overrides."""
    if path is None:
        return load_config(TagConfig, "", overrides, source="the command line")
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; leave it out for the defaults")
    return load_config(TagConfig, path.read_text(encoding="utf-8"), overrides, source=str(path))


def format_summary(manifest: dict[str, Any]) -> str:
    """The manifest for a person: counts by status and type, pace, and where the files lie."""
    rows = [
        ("posts", f"{manifest['rows']:,}"),
        ("rows with an error", f"{manifest['rows_with_error']:,}"),
        *_counts("text", manifest["text_status"]),
        *_counts("picture", manifest["image_status"]),
        *_counts("entities", manifest["entities"]),
        *_counts("regions", manifest["regions"]),
        ("seconds", f"{manifest['seconds']:,.1f}"),
        ("posts a second", f"{manifest['rows_per_second']:,.1f}"),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}{value:>12}" for label, value in rows]
    output = manifest["output"].rstrip("/")
    return "\n".join(
        [
            "",
            *lines,
            f"\n{len(manifest['files'])} file(s): {output}/*.parquet",
            f"summary: {output}/{MANIFEST_FILE}",
        ]
    )


def _counts(name: str, counts: dict[str, int]) -> list[tuple[str, str]]:
    rows = [(f"{name} {key.replace('_', ' ')}", f"{count:,}") for key, count in counts.items() if count]
    return rows or [(name, "0")]


if __name__ == "__main__":
    run(main)
