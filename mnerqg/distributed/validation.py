"""The scores of a model in training on the validation posts, of which each worker has a share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from mnerqg.config import Config, DecodeConfig
from mnerqg.datasets.prepared import read_posts
from mnerqg.schema import Post
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.score import score_at, with_pictures
from mnerqg.tagger import Tagger

# What `TrainConfig.fit_thresholds` chooses from.
_SPAN_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
_REGION_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ValidationPosts:
    """Share `share` of `shares` of the first `limit` validation posts of a dataset; the shares are disjoint."""

    data: str
    share: int
    shares: int
    limit: int | None

    def __iter__(self) -> Iterator[Post]:
        return read_posts(self.data, "valid", share=self.share, shares=self.shares, limit=self.limit)


def validate(tagger: Tagger, posts: ValidationPosts, *, last: bool) -> tuple[dict[str, float], DecodeConfig]:
    """Exact scores over all workers, and with which thresholds they are reached: the best, where they are to be fitted.

    Args:
        tagger: the model as it is now.
        posts: this worker's.
        last: whether the epoch is the last.
    """
    config, decode = tagger.config, tagger.config.decode
    fits = config.train.fit_thresholds and config.model.answers_spans
    fits_regions = fits and config.answers_boxes
    scores = _scores(
        tagger,
        posts,
        [decode.at(threshold) for threshold in _SPAN_THRESHOLDS] if fits else [decode],
        _REGION_THRESHOLDS if fits_regions else [decode.region_threshold],
    )
    # Regions do not change F1, and so the thresholds of spans come first; of equals the highest one is taken.
    span = max(range(len(scores)), key=lambda index: (scores[index][0]["f1"], index))
    region = max(range(len(scores[span])), key=lambda index: (scores[span][index]["gmner_f1"], index))
    found = scores[span][region]
    if fits:
        decode = decode.at(_SPAN_THRESHOLDS[span])
        found["span_threshold"] = decode.span_threshold
    if fits_regions:
        decode = decode.model_copy(update={"region_threshold": _REGION_THRESHOLDS[region]})
        found["region_threshold"] = decode.region_threshold
    if _checks_pictures(config, last=last):
        for pictures in ("shuffled", "none"):
            ((other,),) = _scores(tagger, with_pictures(posts, pictures), [decode], [decode.region_threshold])
            found[f"f1_{pictures}"] = other["f1"]
    return found, decode


def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    """The sum of all workers' values, written into these."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _checks_pictures(config: Config, *, last: bool) -> bool:
    check = config.train.check_pictures
    return config.model.inputs == "text_picture" and (check == "always" or (check == "last" and last))


def _scores(
    tagger: Tagger,
    posts: ValidationPosts | Iterator[Post],
    decodes: Sequence[DecodeConfig],
    regions: Sequence[float],
) -> list[list[dict[str, float]]]:
    """Those of all workers together, with each of the thresholds; see `score_at`."""
    mine = np.asarray(
        [[counts.to_array() for counts in row] for row in score_at(tagger, posts, decodes, regions)]
    )
    everywhere = sum_over_workers(torch.from_numpy(mine).to(tagger.device)).cpu().numpy()
    return [[Counts.from_array(tagger.types, counts).scores() for counts in row] for row in everywhere]
