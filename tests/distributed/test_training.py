"""Training on a real local Ray: what a run leaves, and that it survives the loss of a worker and of the driver."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnerqg.config import Config, TrainConfig
from mnerqg.config_files import dump_config, load_config
from mnerqg.datasets.prepared import read_posts, write_split
from mnerqg.distributed.train_worker import TrainingJob
from mnerqg.distributed.training import _order_seed, _train_dataset, _trainer, check_boxes, train
from mnerqg.errors import ConfigError, DataError, ModelError, RunError, StorageError
from mnerqg.inputs.examples import table_to_examples
from mnerqg.inputs.text import load_text_encoder
from mnerqg.io.lock import LOCK_FILE, locked
from mnerqg.model.files import check_model
from mnerqg.queries import dump_queries, load_queries
from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.score import score
from mnerqg.tagger import Tagger
from tests.tiny_training import write_dataset, write_recipe

TRAIN_JOB = Path(__file__).parents[2] / "jobs" / "train.py"
EPOCHS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, train=50, valid=11)
    return str(folder)


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    return write_recipe(path, tiny_model, epochs=EPOCHS, posts_per_step=8, cpus_per_worker=0.5, workers=2)


def _config(recipe: Path, *overrides: str) -> Config:
    return load_config(Config, recipe.read_text(), overrides)


def _history(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _wait_for_epoch(output: Path, count: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while len(_history(output)) < count:
        assert time.monotonic() < deadline, f"no epoch {count} within {seconds} s"
        time.sleep(0.2)


def _own_processes(title: str) -> list[int]:
    """Pids of descendants of this process whose command line begins with `title`."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if (entry / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue

    def descends(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if descends(pid)]


def test_max_posts_are_the_first_ones_in_another_order_after_each_start(
    ray_cluster: None, recipe: Path, tmp_path: Path
) -> None:
    """Ray by itself takes those that are read first."""
    posts = [Post(str(number), f"post {number:03}") for number in range(100)]
    write_split(posts, str(tmp_path / "train"), rows_per_file=7)
    config = _config(recipe, "--train.max_posts=40", "--augment.drop_picture=0")
    queries = load_queries(config.queries)
    job = TrainingJob(dump_config(config), dump_queries(queries), str(tmp_path), str(tmp_path / "run"), 40)
    encoder = load_text_encoder(config.model, queries)
    trainer = _trainer(config, encoder.source, job, "checkpoints")
    side = config.model.image_side

    def order() -> list[list[int]]:
        """In which the workers get the posts after a start."""
        datasets = {name: make() for name, make in trainer.datasets.items()}
        shards = trainer.data_config.configure(
            datasets, world_size=1, worker_handles=None, worker_node_ids=None
        )
        batches = shards[0]["train"].iter_batches(batch_format="pyarrow", batch_size=None)
        return [example.text.token_ids for batch in batches for example in table_to_examples(batch, side)]

    found = order()
    assert sorted(found) == sorted(encoder.encode(post.text or "").token_ids for post in posts[:40])
    assert order() == found
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.json").write_text("{}")
    resumed = order()  # before, it was the first epoch's again
    assert resumed != found
    assert sorted(resumed) == sorted(found)


def test_the_posts_of_one_file_are_decoded_by_several_tasks(
    ray_cluster: None, recipe: Path, tmp_path: Path
) -> None:
    """Ray by itself makes one block of them, for one task, whose CPU alone would feed the GPUs."""
    posts = [Post(str(number), f"post {number:03}") for number in range(300)]
    write_split(posts, str(tmp_path / "train"), rows_per_file=300)
    config = _config(recipe)
    queries = load_queries(config.queries)
    job = TrainingJob(dump_config(config), dump_queries(queries), str(tmp_path), str(tmp_path / "run"), 300)
    dataset = _train_dataset(config, load_text_encoder(config.model, queries).source, job, "checkpoints")
    blocks = ray.get(dataset.to_arrow_refs())
    assert sorted(block.num_rows for block in blocks) == [44, 128, 128]


@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_the_epoch(
    ray_cluster: None, recipe: Path, data: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed: list[int] = []

    def kill_a_worker() -> None:
        _wait_for_epoch(output, 1)
        killed.append(_own_processes("ray::RayTrainWorker")[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    best = train(_config(recipe, "--train.tensorboard=true"), data, str(output))
    killer.join()

    history = _history(output)
    assert killed
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert all(record["posts"] == 11 for record in history)  # two workers' shares, none lost, none twice
    assert all(record["workers"] == 2 for record in history)
    assert all(0 < record["waited_seconds"] <= record["train_seconds"] + 0.1 for record in history)
    scalars = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in scalars.Scalars("valid/f1")] == [1, 2, 3, 4]
    assert best["f1"] == max(record["f1"] for record in history)
    for name in ("best", "best_grounding", "last"):
        assert Tagger.load(output / name).tag([Post("x", "Ada")])[0].text_status == "ok"
    assert not list((output / "best").glob("training_state*"))
    chosen = Tagger.load(output / "best", device="cpu")
    assert (
        chosen.config.decode.span_threshold == chosen.config.decode.match_threshold == best["span_threshold"]
    )
    assert chosen.config.decode.region_threshold == best["region_threshold"]
    scores = score(chosen, read_posts(data, "valid")).scores()
    assert {name: scores[name] for name in ("f1", "gmner_f1")} == pytest.approx(
        {name: best[name] for name in ("f1", "gmner_f1")}
    )

    # A worker that is lost after its last checkpoint has shown nothing of the epoch; the next start does.
    (output / "metrics.jsonl").unlink()
    shutil.rmtree(output / "last")
    assert train(_config(recipe), data, str(output)) == best
    assert _history(output) == history
    assert check_model(str(output / "last")).config.decode == chosen.config.decode

    # The same command again returns at once and writes nothing, not even a lock; other settings are refused, another
    # placement is not.
    with locked(str(output)):
        assert train(_config(recipe, "--train.workers", "1"), data, str(output))["epoch"] == best["epoch"]
    with pytest.raises(
        StorageError, match=r"another training run \(config\.train\.lr: 5e-05 there, 0\.1 now\)"
    ):
        train(_config(recipe, "--train.lr", "0.1"), data, str(output))


@pytest.mark.slow
def test_a_killed_driver_resumes_with_the_same_command(recipe: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [
        sys.executable,
        str(TRAIN_JOB),
        "--config",
        str(recipe),
        "--data",
        data,
        "--output",
        str(output),
    ]
    with tempfile.TemporaryDirectory(prefix="r") as scratch:  # short: Ray's sockets lie in it
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": scratch}
        with (tmp_path / "first.log").open("w") as log:
            driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                _wait_for_epoch(output, 2)
            finally:
                driver.kill()
                driver.wait()
        assert not (output / "last").exists()

        shown = _history(output)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert second.returncode == 0, second.stderr[-2000:]
        assert (second.stdout + second.stderr).count("resuming after epoch") == 1
        assert [record["epoch"] for record in _history(output)] == [1, 2, 3, 4]
        assert _history(output)[: len(shown)] == shown  # what is shown is never made anew


def test_a_dataset_without_a_split_is_one_line(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train holds no Parquet files; write them with"):
        train(_config(recipe), str(tmp_path), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_order_follows_from_the_seed_and_from_what_was_saved(tmp_path: Path) -> None:
    """Within an epoch too: before, a start after epoch 2 had the orders of epochs 1 and 2 again."""
    seeds = [_order_seed(TrainConfig(seed=3), str(tmp_path / "none"))]
    for name in ("epoch_001", "epoch_002_step_000010", "epoch_002_step_000020", "epoch_002"):
        (tmp_path / name).mkdir()
        assert _order_seed(TrainConfig(seed=3), str(tmp_path)) == seeds[-1]  # a checkpoint half saved is none
        (tmp_path / name / "model.json").touch()
        seeds.append(_order_seed(TrainConfig(seed=3), str(tmp_path)))
    assert seeds[0] == 3
    assert len(set(seeds)) == 5
    assert _order_seed(TrainConfig(seed=4), str(tmp_path)) not in seeds


def test_what_training_cannot_start_from_is_refused_at_once(
    recipe: Path, data: str, tiny_model: Path, tmp_path: Path
) -> None:
    start = f"--train.start_from={tiny_model}"
    with pytest.raises(ModelError, match=r"whose model\.grounding is True, here it is False"):
        train(_config(recipe, start, "--model.grounding=false"), data, str(tmp_path / "run"))
    with pytest.raises(ModelError, match=r"whose model\.query_map is False, here it is True"):
        train(_config(recipe, start, "--model.query_map=true"), data, str(tmp_path / "run"))
    with pytest.raises(ModelError, match="not a complete model directory"):
        train(_config(recipe, f"--train.start_from={data}"), data, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"train\.boxes is weak, but .* has no weak boxes"):
        train(_config(recipe, "--train.boxes=weak"), data, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_grounding_that_no_box_would_teach_is_refused(recipe: Path, tmp_path: Path) -> None:
    unsure, of_none = Box("PER", 1, 1, 9, 9, "weak", 0.1), Box("LOC", 1, 1, 9, 9, "weak", 0.9)
    post = Post("1", "Ada", entities=(Span(0, 3, "PER"),), boxes=(unsure, of_none))
    write_split([post], str(tmp_path / "train"))
    for settings, message in (
        (
            ["--train.boxes=weak"],
            r"of a type that the text names has a score of train\.min_weak_score \(0\.2\)",
        ),
        (["--train.boxes=manual"], r"with train\.boxes manual; label them"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_boxes(_config(recipe, *settings), str(tmp_path))
    check_boxes(_config(recipe, "--train.boxes=weak", "--train.min_weak_score=0.1"), str(tmp_path))
    for setting in ("--model.grounding=false", "--loss.grounding_weight=0"):
        check_boxes(_config(recipe, setting), str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--model.backbone=resnot18", "timm has no feature maps for it"),
        ("--model.backbone_weights=nowhere.weights", "nowhere.weights"),
        ("--model.pyramid_width=30", "take a multiple of 4"),
        ("--train.gpus_per_worker=4", "the cluster has 0 GPUs, but 2 worker"),
        (
            "--train.cpus_per_worker=2",
            "the cluster has 4 CPUs, but 2 worker.* take 5; .*--train.autoscaling true",
        ),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing_behind(
    ray_cluster: None, recipe: Path, data: str, tmp_path: Path, setting: str, message: str
) -> None:
    """Neither a worker that fails again and again, nor an output that only the wrong setting could use."""
    with pytest.raises((ConfigError, ModelError), match=message):
        train(_config(recipe, setting), data, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"config": {}}', "run.json is damaged"),
        ("notes.txt", "mine", "holds files of no training run; choose"),
    ],
)
def test_an_output_of_something_else_is_left_alone(
    ray_cluster: None, recipe: Path, data: str, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StorageError, match=message):
        train(_config(recipe), data, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_second_training_into_the_same_output_is_refused(
    ray_cluster: None, recipe: Path, data: str, tmp_path: Path
) -> None:
    """Such as the run that two tables share, both begun at once."""
    with locked(str(tmp_path / "run")), pytest.raises(RunError, match="is writing into"):
        train(_config(recipe), data, str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
