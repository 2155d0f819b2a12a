"""Counters of a tagging run that Ray exports to Prometheus as `ray_mnerqg_*`, labelled with the run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray.util.metrics

from mnerqg.schema import TaggedPost


def model_seconds(run_id: str) -> ray.util.metrics.Counter:
    """Seconds that the model has worked."""
    return _counter(run_id, "model_seconds", "seconds spent in the model")


class TagMetrics:
    """What has been found, in one process of those that finish rows."""

    def __init__(self, run_id: str) -> None:
        self._posts = _counter(run_id, "posts", "posts tagged")
        self._pictures = _counter(run_id, "pictures", "pictures, by status", "status")
        self._entities = _counter(run_id, "entities", "entities found, by type", "type")
        self._regions = _counter(run_id, "regions", "regions found, by type", "type")

    def count(self, tagged: Sequence[TaggedPost], pictures: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Add one block of rows."""
        if tagged:
            self._posts.inc(len(tagged))
        for counter, tag, values in (
            (self._pictures, "status", Counter(one["status"] for post in pictures for one in post)),
            (self._entities, "type", Counter(entity.type for post in tagged for entity in post.entities)),
            (self._regions, "type", Counter(region.type for post in tagged for region in post.regions)),
        ):
            for value, count in values.items():
                counter.inc(count, {tag: value})


def _counter(run_id: str, name: str, description: str, *tags: str) -> ray.util.metrics.Counter:
    made = ray.util.metrics.Counter(f"mnerqg_{name}", description, ("run", *tags))
    made.set_default_tags({"run": run_id})
    return made
