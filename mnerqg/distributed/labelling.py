"""Weak boxes for a prepared dataset from a grounding model, on Ray Data (paper, "Weak Supervision").

The output is a folder of its own: the dataset with one box more for every type and post with a picture. Its `source`
is weak, and its score says how sure the model is. Whose boxes are learned, and from which score on, is up to
`TrainConfig`. What was done stands in `labels.json`, which is written last; until then `_labelling.json` says which
splits are done.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mnerqg import storage
from mnerqg.config import LabelConfig
from mnerqg.data.dataset import (
    LABELS_FILE,
    count_posts,
    fingerprint,
    is_labelled,
    post_from_row,
    split_files,
)
from mnerqg.distributed.causes import first_cause
from mnerqg.errors import ConfigError, RunError
from mnerqg.metrics import Counts
from mnerqg.model_files import check_model
from mnerqg.schema import TRAINING_SCHEMA, Box, Post, Region
from mnerqg.tagger import Tagger

_ROWS_PER_FILE = 1000
_PROGRESS_FILE = "_labelling.json"


def label(model: str, data: str, output: str, config: LabelConfig) -> dict[str, Any]:
    """Write `data` with weak boxes to `output` and return what `labels.json` says; at once if that is there.

    Args:
        model: URI of a model directory with a grounding head.
        data: URI of a prepared dataset; all its splits are labelled. Weak boxes it has are replaced.
        output: URI of an empty or new folder, or that of an earlier call for the same model and dataset: after a kill
            it begins again with the split that was under way.
        config: settings.

    Raises:
        ModelError, DataError, StorageError: unusable model or dataset.
        ConfigError: the model grounds nothing, or `output` holds anything else.
        RunError: rows were lost or doubled.
    """
    model, data, output = (_resolved(uri) for uri in (model, data, output))
    files = check_model(model)
    if not files.config.model.grounding:
        raise ConfigError(
            f"{model} has no grounding head; label with a model trained with model.grounding true"
        )
    splits = [split for split in ("train", "valid", "test") if storage.exists(storage.join(data, split))]
    # The weights and the files, wherever they lie.
    facts = {"model_id": files.model_id, "data": fingerprint(data, *splits)}
    if is_labelled(output):
        return _same(output, LABELS_FILE, facts)
    done = _begun(output, facts)
    types = [query.type for query in files.queries]
    for split in splits:
        if split not in done:
            done[split] = _label_split(model, data, output, split, types, config)
            _write(output, _PROGRESS_FILE, {**facts, "splits": done})
    labels = {**facts, "model": model, "dataset": data, "splits": done}
    _write(output, LABELS_FILE, labels)
    storage.delete_file(storage.join(output, _PROGRESS_FILE))
    return labels


def _resolved(uri: str) -> str:
    """The same folder has the same name, however it is written: none is written to in the place of another."""
    place = storage.locate(uri)
    return str(place.resolve()) if isinstance(place, Path) else uri


def _begun(output: str, facts: dict[str, str]) -> dict[str, Any]:
    """The splits that an earlier call has finished; claims an empty output."""
    if storage.exists(storage.join(output, _PROGRESS_FILE)):
        splits: dict[str, Any] = _same(output, _PROGRESS_FILE, facts)["splits"]
        return splits
    if storage.exists(output) and storage.list_files(output):
        raise ConfigError(f"--output {output} holds files that are no labels; choose an empty or new folder")
    _write(output, _PROGRESS_FILE, {**facts, "splits": {}})
    return {}


def _same(output: str, name: str, facts: dict[str, str]) -> dict[str, Any]:
    there: dict[str, Any] = json.loads(storage.read_text(storage.join(output, name)))
    for key, value in facts.items():
        if there[key] != value:
            raise ConfigError(
                f"--output {output} holds labels of something else ({key}: {there[key]} there, {value} now); choose "
                "another folder"
            )
    return there


def _write(output: str, name: str, content: dict[str, Any]) -> None:
    storage.write_text(storage.join(output, name), json.dumps(content, indent=2) + "\n")


def _label_split(
    model: str, data: str, output: str, split: str, types: list[str], config: LabelConfig
) -> dict[str, Any]:
    expected = count_posts(data, split)
    sources = [entry.uri for entry in split_files(data, split)]
    filesystem, _ = storage.filesystem(sources[0])
    target, path = storage.filesystem(storage.join(output, split))
    context = ray.data.DataContext.get_current().copy()
    # `train.max_posts` takes the first posts: they must be the same ones as in `data`.
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context), _one_line(split):
        dataset = ray.data.read_parquet(
            [storage.filesystem(uri)[1] for uri in sources], filesystem=filesystem
        )
        dataset.map_batches(
            _Labeller,
            fn_constructor_args=(model, config),
            batch_format="pyarrow",
            batch_size=config.batch_posts,
            compute=ray.data.ActorPoolStrategy(size=config.actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        ).write_parquet(
            path,
            filesystem=target,
            schema=TRAINING_SCHEMA,
            mode="overwrite",
            min_rows_per_file=_ROWS_PER_FILE,
        )
    written = count_posts(output, split)
    if written != expected:
        raise RunError(f"{written} of {expected} posts of {split} were labelled; run it again")
    return summarise(_annotations(output, split), types)


@contextmanager
def _one_line(split: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises its own and, disguised, the actors' errors
        raise RunError(f"labelling {split} failed: {first_cause(error)}; the same command goes on") from error


def summarise(posts: Iterator[Post], types: list[str]) -> dict[str, Any]:
    """What labelling gave: posts, weak boxes by type, and how good they are where there are manual boxes.

    The scores count a query with a manual box as right where the weak box of its type has an IoU of at least 0.5.
    """
    counts, boxes = Counts(types), Counter[str]()
    for post in posts:
        weak = [box for box in post.boxes if box.source == "weak"]
        boxes.update(box.type for box in weak)
        counts.add_post(post, (), [Region(box.type, *box.xyxy_px, box.score) for box in weak], ())
    scores = counts.scores()
    kept = ("accuracy_50", "accuracy_75", "mean_iou", "grounded_queries")
    return {"posts": counts.posts, "weak_boxes": dict(boxes), **{name: scores[name] for name in kept}}


def _annotations(data: str, split: str) -> Iterator[Post]:
    """The posts of a split without their pictures."""
    names = [name for name in TRAINING_SCHEMA.names if name != "image"]
    for entry in split_files(data, split):
        filesystem, path = storage.filesystem(entry.uri)
        for batch in pq.ParquetFile(path, filesystem=filesystem).iter_batches(columns=names):
            for row in batch.to_pylist():
                yield post_from_row({**row, "image": None})


class _Labeller:
    """A model actor: prepared rows in, the same rows with weak boxes out."""

    def __init__(self, model: str, config: LabelConfig) -> None:
        self._tagger = Tagger.load(model, device="cuda" if config.gpus_per_actor else "cpu")

    def __call__(self, rows: pa.Table) -> pa.Table:
        values = rows.to_pylist()
        # Asked for its types, not for phrases of the post's own.
        posts = [post_from_row({**row, "phrases": None}) for row in values]
        for row, regions in zip(values, self._tagger.best_regions(posts), strict=True):
            kept = [box for box in row["boxes"] or () if box["source"] != "weak"]
            row["boxes"] = kept + [_weak_box(region) for region in regions if _has_area(region)]
        return pa.Table.from_pylist(values, schema=TRAINING_SCHEMA)


def _has_area(region: Region) -> bool:
    return region.x_max > region.x_min and region.y_max > region.y_min


def _weak_box(region: Region) -> dict[str, Any]:
    box = Box(region.type, *region.xyxy_px, source="weak", score=region.score)
    return {
        name: getattr(box, name) for name in ("type", "x_min", "y_min", "x_max", "y_max", "source", "score")
    }
