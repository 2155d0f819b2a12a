"""Scoring a model on a split with Ray Data: every row exactly once, counts added up."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from mnerqg import storage
from mnerqg.checkpoint import check_model
from mnerqg.config import EvaluateConfig
from mnerqg.data.dataset import count_posts, post_from_row, split_files
from mnerqg.errors import RunError
from mnerqg.metrics import Counts
from mnerqg.tagger import Tagger


def evaluate(model: str, data: str, split: str, config: EvaluateConfig) -> dict[str, Any]:
    """Scores of a model on a split (see `Counts.scores`), with the model's id and types.

    Raises:
        ModelError, DataError, StorageError: unusable model or dataset.
        RunError: rows were lost or doubled on the way; their scores would be wrong.
    """
    model, data = storage.absolute(model), storage.absolute(data)
    expected = count_posts(data, split)
    files_of_model = check_model(model)
    types = [query.type for query in files_of_model.queries]
    files = [entry.uri for entry in split_files(data, split)]
    filesystem, _ = storage.filesystem(files[0])
    dataset = ray.data.read_parquet([storage.filesystem(uri)[1] for uri in files], filesystem=filesystem)
    counts = Counts(types)
    for row in dataset.map_batches(
        _Scorer,
        fn_constructor_args=(model, config),
        batch_format="pyarrow",
        batch_size=config.batch_posts,
        compute=ray.data.ActorPoolStrategy(size=config.actors),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    ).iter_rows():
        counts += Counts.from_array(types, np.asarray(row["counts"]))
    if counts.posts != expected:
        raise RunError(f"{counts.posts} of {expected} posts of {split} were scored; run it again")
    return {"model_id": files_of_model.model_id, "split": split, "types": types, **counts.scores()}


class _Scorer:
    """A model actor: annotated posts in, one row of counts a batch out."""

    def __init__(self, model: str, config: EvaluateConfig) -> None:
        self._tagger = Tagger.load(model, device="cuda" if config.gpus_per_actor else "cpu")

    def __call__(self, rows: pa.Table) -> pa.Table:
        posts = [post_from_row(row) for row in rows.to_pylist()]
        counts = self._tagger.score(posts, batch_size=len(posts))
        return pa.table({"counts": pa.array([counts.to_array()], pa.list_(pa.int64()))})
