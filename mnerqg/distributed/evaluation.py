"""Scoring a model on a split with Ray Data: every row exactly once, counts a post, added up."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mnerqg.config import Config
from mnerqg.config_jobs import ActorsConfig
from mnerqg.datasets.prepared import count_posts, fingerprint, is_labelled, post_from_row
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.session import connect
from mnerqg.distributed.sources import read_split
from mnerqg.errors import ConfigError, RunError
from mnerqg.io import storage
from mnerqg.model.files import check_model
from mnerqg.queries import EntityQuery, asked_queries
from mnerqg.schema import Pictures
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.score import score_each
from mnerqg.tagger import Tagger

# The columns of `Counts.values`, in their order.
_COUNTS = (
    *("correct", "predicted", "gold"),
    *("grounded", "iou_50", "iou_75", "iou_millionths"),
    *("gmner_correct", "gmner_predicted", "gmner_gold"),
    *("gmner_all_correct", "gmner_all_predicted", "gmner_all_gold"),
)
PER_POST_SCHEMA = pa.schema(
    [("post_id", pa.string()), ("type", pa.string()), *((name, pa.int64()) for name in _COUNTS)]
)
"""Counts of what was scored, one row for every post and type; their sums give the scores."""

_BATCHES_A_BLOCK = 4  # that an actor is given at once [chosen]
_GROUNDING = ("accuracy_50", "accuracy_75", "mean_iou")
_GMNER = ("gmner_f1", "gmner_all_f1")
_ENTITIES = ("precision", "recall", "f1")


def evaluate(
    model: str, data: str, split: str, config: ActorsConfig, pictures: Sequence[Pictures] = ()
) -> tuple[dict[str, Any], pa.Table]:
    """Scores of a model on a split, and what every post adds to them.

    Args:
        model, data: URIs.
        split: of the dataset.
        config: of the actors that score.
        pictures: with which pictures beside the true ones the entities are scored; "shuffled" are those of other posts
            of the same batch, so its size counts.

    Returns:
        `Counts.scores`, None for what the model does not answer, with the model's id and types and the fingerprint
        of the split, and, for each of `pictures`, under its name the scores of entities with those; and a table of
        `PER_POST_SCHEMA`, sorted by post and type.

    Raises:
        ModelError, DataError, StorageError, ConfigError: unusable model, dataset or queries.
        RunError: rows were lost or doubled on the way; their scores would be wrong.
    """
    model, data = storage.absolute(model), storage.absolute(data)
    expected = count_posts(data, split)
    files_of_model = check_model(model, asked_queries(config.queries))
    types = [query.type for query in files_of_model.queries]
    if files_of_model.config.model.picture == "region" and not is_labelled(data):
        raise ConfigError(
            f"{model} looks at the regions of another model (model.picture is region), but {data} has no weak boxes; "
            f"write a dataset that has them: jobs/label.py --data {data}"
        )
    connect()
    scored = _split_in_blocks(data, split, _BATCHES_A_BLOCK * config.batch_posts).map_batches(
        _Scorer,
        fn_constructor_args=(model, config, files_of_model.queries, tuple(pictures)),
        batch_format="pyarrow",
        batch_size=config.batch_posts,
        compute=ray.data.ActorPoolStrategy(size=config.actors),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    )
    try:
        rows = scored.take_all()
    except Exception as error:  # Ray raises its own and, disguised, the actors' errors
        raise RunError(f"scoring {split} failed: {first_cause(error)}; run it again") from error
    posts = [(row["post_id"], Counts.from_array(types, np.asarray(row["counts"]))) for row in rows]
    counts = sum((of_post for _, of_post in posts), Counts(types))
    if counts.posts != expected or len(posts) != expected:
        raise RunError(f"{counts.posts} of {expected} posts of {split} were scored; run it again")
    scores = answered(counts.scores(), files_of_model.config)
    facts = {"model_id": files_of_model.model_id, "split": split, "data": fingerprint(data, split)}
    others: dict[str, Any] = {}
    for name in pictures:
        total = sum((Counts.from_array(types, np.asarray(row[name])) for row in rows), Counts(types))
        found = answered(total.scores(), files_of_model.config)
        others[name] = {key: found[key] for key in (*_ENTITIES, *(f"f1_{kind}" for kind in types))}
    return {**facts, "types": types, **scores, **others}, per_post_table(posts)


def _split_in_blocks(data: str, split: str, rows: int) -> ray.data.Dataset:
    """The rows of a split, so many in each block.

    As they are read, thousands of posts are one block, which a single actor would score while the others wait.
    """
    dataset = read_split(data, split)
    # Else other posts would share a batch in every run.
    dataset.context.execution_options.preserve_order = True
    return dataset.repartition(target_num_rows_per_block=rows, strict=True)


def answered(scores: dict[str, float], config: Config) -> dict[str, float | None]:
    """The scores with None in the place of those for what a model never answers.

    It has no head for it, or, in the ablation "w/o QG loss", one that has learned nothing.
    """
    unanswered: set[str] = set()
    if not config.answers_boxes:
        unanswered |= {*_GROUNDING, *_GMNER}
    if not config.model.answers_entities:
        unanswered |= {*_ENTITIES, *_GMNER, *(name for name in scores if name.startswith("f1_"))}
    return {name: None if name in unanswered else value for name, value in scores.items()}


def per_post_table(posts: list[tuple[str, Counts]]) -> pa.Table:
    """A table of `PER_POST_SCHEMA` of posts and their counts, sorted by post and type."""
    rows = [
        {"post_id": post_id, "type": kind} | dict(zip(_COUNTS, map(int, values), strict=True))
        for post_id, counts in posts
        for kind, values in zip(counts.types, counts.values, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PER_POST_SCHEMA).sort_by(
        [("post_id", "ascending"), ("type", "ascending")]
    )


def write_scores(uri: str, scores: dict[str, Any]) -> None:
    """Write scores as JSON, the whole file or none. Raises StorageError."""
    storage.write_text(uri, json.dumps(scores, indent=2) + "\n")


def write_per_post(uri: str, per_post: pa.Table) -> None:
    """Write the counts a post as Parquet, the whole file or none. Raises StorageError."""
    buffer = pa.BufferOutputStream()
    pq.write_table(per_post, buffer)
    storage.write_bytes(uri, buffer.getvalue().to_pybytes())


class _Scorer:
    """A model actor: annotated posts in, one row of counts a post out."""

    def __init__(
        self,
        model: str,
        config: ActorsConfig,
        queries: tuple[EntityQuery, ...],
        pictures: tuple[Pictures, ...],
    ) -> None:
        device = "cuda" if config.gpus_per_actor else "cpu"
        self._tagger = Tagger.load(model, device, queries, precision=config.precision)
        self._pictures: dict[str, Pictures] = {"counts": "true", **{name: name for name in pictures}}

    def __call__(self, rows: pa.Table) -> pa.Table:
        posts = [post_from_row(row) for row in rows.to_pylist()]
        columns = {"post_id": pa.array([post.post_id for post in posts], pa.string())}
        for column, pictures in self._pictures.items():
            counts = [one.to_array() for one in score_each(self._tagger, posts, pictures)]
            columns[column] = pa.array(counts, pa.list_(pa.int64()))
        return pa.table(columns)
