"""Data-parallel joint training on Ray Train V2.

The driver builds the Ray Data input and the trainer; the workers run `train_worker`. What a run leaves under
its output:

    run.json        configuration, queries and data fingerprint; the same command resumes, another is refused
    metrics.jsonl   one line an epoch
    tensorboard/    the same for TensorBoard, where train.tensorboard is true
    best/ last/ best_grounding/    model directories by validation F1 (FA-VG: Accu@0.5), of the last epoch, by Accu@0.5
                                   (the third only of models that answer boxes); the other score decides ties
    checkpoints-<hash>/            Ray Train's own: models with their training state
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.torch

from mnerqg.config import Config, TrainConfig
from mnerqg.config_files import dump_config
from mnerqg.datasets.prepared import count_posts, fingerprint, is_labelled, read_posts
from mnerqg.distributed.encoding import EncodePosts
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.scalars import check_tensorboard
from mnerqg.distributed.session import connect
from mnerqg.distributed.sources import read_split
from mnerqg.distributed.train_worker import TrainingJob, best_measures, scores_in, train_worker
from mnerqg.errors import ConfigError, ModelError, RunError
from mnerqg.inputs.annotations import choose_annotations
from mnerqg.inputs.text import TextEncoderSource, load_text_encoder
from mnerqg.io import storage
from mnerqg.io.run_folder import RunFolder
from mnerqg.model.build import build_pretrained, try_out
from mnerqg.model.files import BEST_FOLDER, MANIFEST_FILE, check_model, is_model
from mnerqg.queries import EntityQuery, dump_queries, load_queries

_BLOCK_POSTS = 128  # that one task decodes, about a second of work [chosen]
# What decides the shapes of the weights, beside the encoder.
_SHAPE = (
    *("backbone", "pyramid_width", "pyramid_depth", "width", "heads", "match_hidden"),
    *("inputs", "tagger", "grounding", "query_map", "region_existence"),
)
# These change nothing of the weights, and may differ when a run is resumed.
_PLACEMENT = (
    *("workers", "gpus_per_worker", "cpus_per_worker", "threads_per_worker", "autoscaling"),
    *("tensorboard", "check_pictures", "max_failures", "minutes_between_checkpoints"),
)


def train(config: Config, data: str, output: str) -> dict[str, float]:
    """Train, or go on training, or say that it is done; returns the best epoch's validation scores.

    The cluster is joined, or started, when all that can be looked at without it is right.

    Args:
        config: the recipe.
        data: prepared dataset with the splits train and valid.
        output: folder of this one run, local (shared by all nodes) or `s3://`.

    Raises:
        ConfigError: the cluster is too small, or there is no box to learn from.
        DataError, StorageError, ModelError: unusable input, before any worker starts; or `output` belongs to another
            run or to none.
        RunError: another job is writing into `output`, or training failed more often than `train.max_failures`
            allows.
    """
    data, output = storage.absolute(data), storage.absolute(output)
    config = _with_absolute_places(config)
    queries = load_queries(config.queries)
    posts = min(count_posts(data, "train"), config.train.max_posts or 10**12)
    count_posts(data, "valid")
    text_encoder = load_text_encoder(config.model, queries)  # refuses an encoder that cannot be had
    _check_annotations(config, data)
    check_boxes(config, data)
    _check_start(config)
    if config.train.tensorboard:
        check_tensorboard()
    asked = _asked(config, queries, data)
    folder = RunFolder(output, "training run", run_file="run.json")
    if not folder.check(asked):
        # What is wrong with encoder, backbone or weights is the user's to change; in a worker it would be a failure
        # of the run, tried again and again.
        try_out(build_pretrained(config.model, len(queries)), config, text_encoder)
    elif _is_finished(output):
        print(f"{output} is finished; its best model is {storage.join(output, BEST_FOLDER)}", flush=True)
        return _best(config, output)
    connect(dashboard=True)
    if not config.train.autoscaling:
        _check_cluster(config.train)
    with folder.writing(asked):
        if not _is_finished(output):  # by a job that held the lock until now
            job = TrainingJob(dump_config(config), dump_queries(queries), data, output, posts)
            try:
                _trainer(config, text_encoder.source, job, _run_name(asked)).fit()
            except ray.train.TrainingFailedError as error:
                raise RunError(
                    f"training failed: {_reason(error)}; the same command resumes from the last checkpoint"
                ) from error
    return _best(config, output)


def _is_finished(output: str) -> bool:
    return is_model(storage.join(output, "last"))


def _with_absolute_places(config: Config) -> Config:
    """Local paths as every worker understands them: Ray Train gives each a working directory of its own."""
    model, train = config.model, config.train
    places = {
        name: str(Path(value).absolute())
        for name in ("encoder", "backbone_weights")
        if (value := getattr(model, name)) is not None and Path(value).exists()
    }
    changes: dict[str, Any] = {"model": model.model_copy(update=places)}
    if train.start_from is not None:
        changes["train"] = train.model_copy(update={"start_from": storage.absolute(train.start_from)})
    return config.model_copy(update=changes)


def _check_start(config: Config) -> None:
    """Raises ModelError where training could not begin with the weights of `train.start_from`."""
    if config.train.start_from is None:
        return
    there = check_model(config.train.start_from).config.model
    for name in _SHAPE:
        if getattr(there, name) != getattr(config.model, name):
            raise ModelError(
                f"train.start_from is {config.train.start_from}, whose model.{name} is {getattr(there, name)!r}, here "
                f"it is {getattr(config.model, name)!r}; start from a model of the same network"
            )


def _reason(error: ray.train.TrainingFailedError) -> str:
    """What the first worker that failed says, or the error itself, in one line."""
    failures = getattr(error, "worker_failures", None) or {}
    return first_cause(next(iter(failures.values()), error))


def _check_annotations(config: Config, data: str) -> None:
    for key, wanted in (("train.boxes", config.train.boxes), ("model.picture", config.model.picture)):
        if wanted in ("weak", "manual_where_present", "region") and not is_labelled(data):
            raise ConfigError(
                f"{key} is {wanted}, but {data} has no weak boxes; write a dataset that has them: "
                f"jobs/label.py --data {data}"
            )


def check_boxes(config: Config, data: str) -> None:
    """Raises ConfigError where a grounding that is to answer would learn from no box at all, and so to say no."""
    if not config.answers_boxes:
        return
    settings = config.train
    posts = read_posts(data, "train", limit=settings.max_posts, pictures=False)
    if any(choose_annotations(post, settings).post.boxes for post in posts):
        return
    manual = "label them (jobs/label.py), or train without: --model.grounding false"
    weak = (
        f"no weak box of a type that the text names has a score of train.min_weak_score ({settings.min_weak_score:g}) "
        "or more: a better labeller is needed, or a lower score"
    )
    raise ConfigError(
        f"no post of {data} has a box to learn from, with train.boxes {settings.boxes}; "
        + (manual if settings.boxes == "manual" else weak)
    )


def _asked(config: Config, queries: tuple[EntityQuery, ...], data: str) -> dict[str, Any]:
    """What decides the weights: only a call for the same goes on with a run."""
    settings = config.model_dump(mode="json")
    for key in _PLACEMENT:
        del settings["train"][key]
    del settings["queries"]  # what they say is below; where they lie does not matter
    return {
        "config": settings,
        "queries": [query.model_dump() for query in queries],
        "data": fingerprint(data, "train", "valid"),
    }


def _run_name(asked: dict[str, Any]) -> str:
    """By which Ray Train finds its checkpoints again."""
    return "checkpoints-" + hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def _check_cluster(settings: TrainConfig) -> None:
    """Without a CPU beside the workers nothing would be read; without GPUs the run would wait for ever."""
    least = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    cluster = ray.cluster_resources()
    for kind, needed in (
        ("CPU", least * settings.cpus_per_worker + 1),
        ("GPU", least * settings.gpus_per_worker),
    ):
        if needed > (there := cluster.get(kind, 0.0)):
            raise ConfigError(
                f"the cluster has {there:g} {kind}s, but {least} worker(s), and a CPU beside them for Ray Data, take "
                f"{needed:g}; lower --train.workers or --train.{kind.lower()}s_per_worker, or set --train.autoscaling "
                "true where the cluster grows by itself"
            )


def _trainer(
    config: Config, source: TextEncoderSource, job: TrainingJob, name: str
) -> ray.train.torch.TorchTrainer:
    settings = config.train
    filesystem, path = storage.filesystem(job.output)
    # Without it `max_posts` would be those that are read first, other ones in every run, and the order of the
    # examples would not follow from the seed. Train replaces the options that the dataset was made with.
    in_order = ray.train.DataConfig.default_ingest_options()
    in_order.preserve_order = True
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker={"CPU": settings.cpus_per_worker}
            | ({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        # Called whenever workers start.
        datasets={"train": partial(_train_dataset, config, source, job, name)},
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"], execution_options=in_order),
    )


def _train_dataset(
    config: Config, source: TextEncoderSource, job: TrainingJob, name: str
) -> ray.data.Dataset:
    """Shuffled, augmented, tokenised examples; another order and other augmentations each epoch and each start."""
    dataset = read_split(job.data, "train")
    # They are hundreds of lines in a log, about a buffer. The worker says how far the run is.
    dataset.context.enable_progress_bars = False
    if config.train.max_posts is not None:
        dataset = dataset.limit(config.train.max_posts)
    seed = ray.data.RandomSeedConfig(
        seed=_order_seed(config.train, storage.join(job.output, name)), reseed_after_execution=True
    )
    # As they are read, thousands of posts are one block, whose pictures a single CPU would decode while GPUs wait.
    posts = dataset.random_shuffle(seed=seed).repartition(target_num_rows_per_block=_BLOCK_POSTS, strict=True)
    return posts.map_batches(
        EncodePosts(config, source), batch_format="pyarrow", batch_size=32, zero_copy_batch=True
    )


def _order_seed(settings: TrainConfig, checkpoints: str) -> int:
    """The run's own seed, but for a start that goes on from one of `checkpoints`: by their names one from [0, 2**32).

    Ray counts the epochs of each start from 0. With one seed a run that goes on would see the orders and augmentations
    of its first epochs again, and of an epoch begun before the same posts in the place of the rest.
    """
    saved = storage.list_files(checkpoints, MANIFEST_FILE) if storage.exists(checkpoints) else []
    if not saved:
        return settings.seed
    names = "\n".join(entry.uri.removeprefix(checkpoints) for entry in saved)
    return int.from_bytes(hashlib.sha256(f"{settings.seed}\n{names}".encode()).digest()[:4], "little")


def _best(config: Config, output: str) -> dict[str, float]:
    lines = storage.read_text(storage.join(output, "metrics.jsonl")).splitlines()
    measures = best_measures(config.model)
    return max((json.loads(line) for line in lines), key=lambda record: scores_in(record, measures))
