"""A module imports only what stands above it here, ray stays where it belongs, and files stay short.

`make lint` runs this file: it reads the sources and imports none of them.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "errors",
    "places",
    "cli",
    "schema",
    "config_types",
    "config",
    "config_jobs",
    "config_files",
    "queries",
    "boxes",
    "io.s3",
    "io.local",
    "io.storage",
    "io.downloads",
    "io.parquet",
    "io.picture_text",
    "io.picture_places",
    "io.picture_http",
    "io.picture_store",
    "io.lock",
    "io.run_folder",
    "io.slices",
    "io.packages",
    "inputs.avif",
    "inputs.picture_kinds",
    "inputs.picture_files",
    "inputs.images",
    "inputs.borders",
    "inputs.pairs",
    "inputs.text",
    "inputs.lists",
    "inputs.ahead",
    "inputs.sentences",
    "inputs.prepared",
    "inputs.augment",
    "inputs.annotations",
    "inputs.posts",
    "inputs.windows",
    "inputs.examples",
    "inputs.batch",
    "inputs.targets",
    "inputs.collate",
    "datasets.prepared",
    "datasets.refusals",
    "datasets.importing",
    "datasets.voc",
    "datasets.twitter",
    "datasets.flickr30k_captions",
    "datasets.flickr30k",
    "archive.json_values",
    "archive.files",
    "archive.jsonlines",
    "archive.column_types",
    "archive.columns",
    "archive.parquet_pictures",
    "archive.parquet_files",
    "archive.parquet_columns",
    "archive.reading",
    "archive.lookup",
    "archive.counts",
    "archive.run",
    "model.backbone",
    "model.darknet_weights",
    "model.pretrained",
    "model.attention",
    "model.norm",
    "model.interaction",
    "model.heads",
    "model.words",
    "model.output",
    "model.encoder",
    "model.mnerqg",
    "model.sequence",
    "model.build",
    "model.losses",
    "model.found",
    "model.answers",
    "model.decode",
    "model.batch_size",
    "model.replays",
    "model.finder",
    "model.optimization",
    "model.precision",
    "model.training_step",
    "model.kernels",
    "model.packing",
    "model.inference",
    "model.files",
    "model.checkpoint",
    "tagger",
    "show",
    "__main__",
    "exchange.posts",
    "exchange.offsets",
    "exchange.label_studio",
    "exchange.coco",
    "exchange.tags",
    "exchange.dataset",
    "scoring.metrics",
    "scoring.score",
    "scoring.significance",
    "scoring.paper",
    "scoring.tables",
    "report.sampling",
    "report.summary",
    "report.tags",
    "report.thumbnails",
    "report.archived",
    "report.gold",
    "report.training",
    "report.posts",
    "report.page",
    "report.report",
    "distributed.failures",
    "distributed.short_queues",
    "distributed.spot_or_on_demand",
    "distributed.session",
    "distributed.sources",
    "distributed.picture_stages",
    "distributed.text_stage",
    "distributed.tag_metrics",
    "distributed.finish_stage",
    "distributed.encoding",
    "distributed.scalars",
    "distributed.validation",
    "distributed.train_worker",
    "distributed.training",
    "distributed.evaluation",
    "distributed.labelling",
    "distributed.tagging_plan",
    "distributed.tagging_resources",
    "distributed.tag_monitor",
    "distributed.tag_progress",
    "distributed.tagging_stages",
    "distributed.tagging",
    "distributed.experiments",
    "demo.texts",
    "demo.drawings",
    "demo.world",
    "demo.ambiguous",
    "benchmark.rounds",
    "benchmark.tables",
    "benchmark.processes",
    "benchmark.posts",
    "benchmark.fetching",
    "benchmark.sleeping",
    "benchmark.device",
    "benchmark.pairs",
    "benchmark.answering",
    "benchmark.recording",
    "benchmark.training",
    "distributed.measured_session",
    "distributed.measured_tagging",
    "distributed.measured_ways",
    "distributed.measured_scale",
    "distributed.measured_host",
)
MODULES = {
    ".".join(path.relative_to(ROOT / "mnerqg").with_suffix("").parts): path
    for path in sorted((ROOT / "mnerqg").rglob("*.py"))
    if path.name != "__init__.py"
}
LONGEST_FILE = 400
JOBS = sorted((ROOT / "jobs").rglob("*.py"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports, at whatever depth; `from a import b` gives a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_modules(path: Path) -> set[str]:
    """The modules of mnerqg that a file imports."""
    names = {name.removeprefix("mnerqg.") for name in imports(path) if name.startswith("mnerqg.")}
    return {module for module in MODULES for name in names if name == module or name.startswith(f"{module}.")}


def test_every_module_has_its_place() -> None:
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_from_above(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert own_modules(MODULES[module]) <= above


def test_the_parser_sees_imports() -> None:
    assert {"config", "inputs.text", "model.files"} <= own_modules(MODULES["model.checkpoint"])


@pytest.mark.parametrize("path", sorted((ROOT / "mnerqg").rglob("__init__.py")), ids=str)
def test_packages_import_nothing(path: Path) -> None:
    assert imports(path) == set()


@pytest.mark.parametrize("module", ORDER)
def test_ray_and_jobs_stay_out_of_the_library(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(MODULES[module])}
    assert "jobs" not in roots
    assert "tests" not in roots
    assert module.startswith("distributed.") or "ray" not in roots


def test_private_parts_of_ray_are_listed() -> None:
    """CONTRIBUTING.md is where they are looked up before another version of Ray is taken."""
    listed = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    used = set()
    for folder in ("mnerqg", "jobs", "cluster", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in imports(path):
                if name.startswith("ray.") and ("._internal" in name or "._private" in name):
                    used.add(name)
    assert len(used) > 5
    named = tuple(re.findall(r"`(ray\.[\w.]+)`", listed))
    assert [name for name in sorted(used) if not name.startswith(named)] == []


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_do_not_import_each_other(path: Path) -> None:
    assert "jobs" not in {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("room", ["mnerqg", "jobs", "cluster"])
def test_a_file_can_be_read_in_one_sitting(room: str) -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / room).rglob("*.py")}
    too_long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST_FILE}
    assert too_long == {}, f"split them, or say less: {LONGEST_FILE} lines are the most"
