"""Weak boxes for a prepared dataset from a grounding model, on Ray Data (paper, "Dataset Construction").

The output is a folder of its own: the files of the dataset with one box more for every type and post with a picture.
Its `source` is weak, and its score says how sure the model is. Whose boxes are learned, and from which score on, is up
to `TrainConfig`. What was done stands in `labels.json`, which is written last; what was asked for in `_run.json`, from
the start on.

A file is what a model actor works on, and what a kill costs. So the posts stay in their files and in their order, of
which `train.max_posts` takes the first: with `preserve_order` Ray 2.60 still swaps blocks behind an actor pool now and
then.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.data

from mnerqg.config import TrainConfig
from mnerqg.config_jobs import ActorsConfig
from mnerqg.datasets.prepared import (
    LABELS_FILE,
    SPLITS,
    batches,
    count_posts,
    fingerprint,
    read_file,
    read_posts,
    split_files,
    write_file,
)
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.session import connect
from mnerqg.errors import ConfigError, DataError, RunError
from mnerqg.io import storage
from mnerqg.io.run_folder import RunFolder
from mnerqg.model.files import check_model
from mnerqg.queries import EntityQuery, asked_queries
from mnerqg.schema import Box, Post, Region
from mnerqg.scoring.metrics import Counts
from mnerqg.tagger import Tagger

_LEARNED_FROM: float = TrainConfig().min_weak_score


def label(model: str, data: str, output: str, config: ActorsConfig) -> dict[str, Any]:
    """Write `data` with weak boxes to `output` and return what `labels.json` says; at once if that is there.

    Args:
        model: URI of a model directory with a grounding head.
        data: URI of a prepared dataset; all its splits are labelled. Weak boxes it has are replaced.
        output: URI of an empty or new folder, or that of an earlier call for the same model and dataset: after a kill
            the files that are missing are labelled.
        config: settings; with `queries` others are asked than the model's own, such as the types of a dataset of a
            model that has learned phrases.

    Raises:
        ModelError, DataError, StorageError: unusable model or dataset, or queries that the model cannot be asked; or
            `output` holds anything else.
        ConfigError: the model grounds nothing, or no type that the dataset names.
        RunError: another job is writing into `output`, or rows were lost or doubled.
    """
    model, data, output = (_resolved(uri) for uri in (model, data, output))
    files = check_model(model, asked_queries(config.queries))
    if not files.config.answers_boxes:
        raise ConfigError(
            f"{model} answers no boxes; label with a model trained with model.grounding true and a "
            "loss.grounding_weight above 0"
        )
    types = [query.type for query in files.queries]
    splits = [split for split in SPLITS if storage.exists(storage.join(data, split))]
    if not splits:
        raise DataError(
            f"{data} has no split ({', '.join(SPLITS)}); give a prepared dataset (jobs/prepare.py)"
        )
    expected = {split: count_posts(data, split) for split in splits}
    _check_types(types, data, splits)
    # The weights and the files, wherever they lie.
    asked = {"model_id": files.model_id, "data": fingerprint(data, *splits)}
    folder = RunFolder(output, "labelling run", result_file=LABELS_FILE, mark=LABELS_FILE)
    folder.check(asked)
    if (labels := folder.result()) is not None:
        return labels
    connect()
    with folder.writing(asked):
        if (labels := folder.result()) is not None:
            return labels
        done = {}
        for split in splits:
            _label_split(model, data, output, split, files.queries, config)
            if (written := count_posts(output, split)) != expected[split]:
                raise RunError(f"{written} of {expected[split]} posts of {split} were labelled; run it again")
            done[split] = summarise(read_posts(output, split, pictures=False), types)
        labels = {**asked, "model": model, "dataset": data, "splits": done}
        folder.finish(labels)
    return labels


def _resolved(uri: str) -> str:
    """The same folder has the same name, however it is written: none is written to in the place of another."""
    place = storage.locate(uri)
    return str(place.resolve()) if isinstance(place, Path) else storage.absolute(uri)


def _check_types(types: Sequence[str], data: str, splits: Sequence[str]) -> None:
    """Raises ConfigError where no type is one that a post names: nothing could ever be learned from such boxes."""
    named: set[str] = set()
    for split in splits:
        for post in read_posts(data, split, pictures=False):
            named |= {span.type for span in post.entities}
            if named & set(types):
                return
    if named:
        raise ConfigError(
            f"the model answers {', '.join(types)}, but the posts of {data} name {', '.join(sorted(named))}; ask it "
            "for those: --queries with a query style or a YAML of queries"
        )


def _label_split(
    model: str,
    data: str,
    output: str,
    split: str,
    queries: tuple[EntityQuery, ...],
    config: ActorsConfig,
) -> None:
    folder = storage.join(output, split)
    done = {_name(entry) for entry in storage.list_files(folder)} if storage.exists(folder) else set()
    missing = [
        {"source": entry.uri, "target": storage.join(folder, _name(entry))}
        for entry in split_files(data, split)
        if _name(entry) not in done
    ]
    if missing:
        labelled = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
            _LabelFile,
            fn_constructor_args=(model, config, queries),
            compute=ray.data.ActorPoolStrategy(size=min(config.actors, len(missing))),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        with _one_line(split):
            labelled.materialize()


def _name(entry: storage.FileEntry) -> str:
    return entry.uri.rsplit("/", 1)[-1]


@contextmanager
def _one_line(split: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises its own and, disguised, the actors' errors
        raise RunError(f"labelling {split} failed: {first_cause(error)}; the same command goes on") from error


def summarise(posts: Iterator[Post], types: list[str]) -> dict[str, Any]:
    """What labelling gave: posts, weak boxes by type, and how good they are where there are manual boxes.

    `named` are the boxes of types that the text names, `learned` those of them that training learns from as a rule.
    The scores count a query with a manual box as right where the weak box of its type has an IoU of at least 0.5.
    """
    counts, boxes = Counts(types), Counter[str]()
    named = learned = 0
    for post in posts:
        weak = [box for box in post.boxes if box.source == "weak"]
        boxes.update(box.type for box in weak)
        of_named = [box for box in weak if box.type in {span.type for span in post.entities}]
        named += len(of_named)
        learned += sum(box.score >= _LEARNED_FROM for box in of_named)
        counts.add_post(post, (), [Region(box.type, *box.xyxy_px, box.score) for box in weak], ())
    scores = counts.scores()
    kept = ("accuracy_50", "accuracy_75", "mean_iou", "grounded_queries")
    found = {"posts": counts.posts, "weak_boxes": dict(boxes), "named": named, "learned": learned}
    return found | {name: scores[name] for name in kept}


class _LabelFile:
    """A model actor: the places of a file and of its copy with weak boxes in, those out when it is written."""

    def __init__(self, model: str, config: ActorsConfig, queries: tuple[EntityQuery, ...]) -> None:
        self._tagger = Tagger.load(
            model, "cuda" if config.gpus_per_actor else "cpu", queries, precision=config.precision
        )
        self._batch_posts = config.batch_posts

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        write_file(self._label(read_file(row["source"])), row["target"])
        return row

    def _label(self, posts: Iterable[Post]) -> Iterator[Post]:
        for batch in batches(posts, self._batch_posts):
            # Asked for its types, not for phrases of the post's own.
            regions = self._tagger.best_regions([replace(post, phrases=()) for post in batch])
            for post, of_post in zip(batch, regions, strict=True):
                kept = tuple(box for box in post.boxes if box.source != "weak")
                yield replace(post, boxes=kept + tuple(map(_weak_box, filter(_has_area, of_post))))


def _has_area(region: Region) -> bool:
    return region.x_max > region.x_min and region.y_max > region.y_min


def _weak_box(region: Region) -> Box:
    return Box(region.type, *region.xyxy_px, source="weak", score=region.score)
