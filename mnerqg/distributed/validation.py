"""The scores of a model in training on the validation posts, of which each worker has a share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from mnerqg.config import Config, DecodeConfig
from mnerqg.datasets.prepared import read_posts
from mnerqg.schema import Entity, Post, Region
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.score import answered, with_pictures
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
    found, decode = _fit(tagger, posts)
    if _checks_pictures(tagger.config, last=last):
        for pictures in ("shuffled", "none"):
            answers = _answers(tagger, with_pictures(posts, pictures), [decode])
            (other,) = _over_workers(tagger, [_counts(tagger, answers)])
            found[f"f1_{pictures}"] = other["f1"]
    return found, decode


def _fit(tagger: Tagger, posts: ValidationPosts) -> tuple[dict[str, float], DecodeConfig]:
    """The scores with the best thresholds, and these; see `TrainConfig.fit_thresholds`."""
    config, own = tagger.config, tagger.config.decode
    fits = config.train.fit_thresholds and config.model.answers_spans
    fits_regions = fits and config.answers_boxes
    # The settings come first: they stay where no other threshold is better, as in a split without boxes.
    regions = own.region_threshold, *(_REGION_THRESHOLDS if fits_regions else ())
    # NMS lets a box suppress less confident ones alone: the regions of a higher threshold are those of the lowest one
    # that reach it.
    widest = own.model_copy(update={"region_threshold": min(regions)})
    decodes = [widest, *(widest.at(threshold) for threshold in _SPAN_THRESHOLDS if fits)]
    answers = _answers(tagger, posts, decodes)
    # Regions do not change F1, and so the thresholds of spans come first.
    of_spans = [_counts(tagger, answers, place) for place in range(len(decodes))]
    span = _best([decode.span_threshold for decode in decodes], _over_workers(tagger, of_spans), "f1")
    of_regions = _over_workers(tagger, [_counts(tagger, answers, span, threshold) for threshold in regions])
    region = _best(regions, of_regions, "gmner_f1" if own.regions == "one" else "gmner_all_f1")
    found = of_regions[region]
    decode = decodes[span].model_copy(update={"region_threshold": regions[region]})
    if fits:
        found["span_threshold"] = decode.span_threshold
    if fits_regions:
        found["region_threshold"] = decode.region_threshold
    return found, decode


def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    """The sum of all workers' values, written into these."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def _checks_pictures(config: Config, *, last: bool) -> bool:
    check = config.train.check_pictures
    return config.model.inputs == "text_picture" and (check == "always" or (check == "last" and last))


def _best(thresholds: Sequence[float], scores: Sequence[dict[str, float]], measure: str) -> int:
    """Which threshold has the best score; of equals the nearest to the first one, which is the setting."""
    setting = thresholds[0]
    return max(
        range(len(thresholds)),
        key=lambda place: (scores[place][measure], -abs(thresholds[place] - setting)),
    )


@dataclass(frozen=True)
class _Answers:
    """Of one post, without its picture; entities: with the spans of each of several configurations."""

    post: Post
    entities: list[tuple[Entity, ...]]
    best_regions: tuple[Region, ...]
    regions: tuple[Region, ...]


def _answers(tagger: Tagger, posts: Iterable[Post], decodes: Sequence[DecodeConfig]) -> list[_Answers]:
    return [
        _Answers(
            replace(post, image=None), [one.entities for one in each], each[0].best_regions, each[0].regions
        )
        for post, each in answered(tagger, posts, decodes)
    ]


def _counts(
    tagger: Tagger, answers: Sequence[_Answers], place: int = 0, region_threshold: float | None = None
) -> Counts:
    """What is counted with the spans of the configuration at this place; without a threshold of spans alone."""
    counts = Counts(tagger.types)
    for one in answers:
        if region_threshold is None:
            counts.add_post(one.post, one.entities[place], (), ())
        else:
            kept = [region for region in one.regions if region.score >= region_threshold]
            counts.add_post(one.post, one.entities[place], one.best_regions, kept)
    return counts


def _over_workers(tagger: Tagger, counts: Sequence[Counts]) -> list[dict[str, float]]:
    """The scores of each of these counts, summed over all workers."""
    mine = np.asarray([one.to_array() for one in counts])
    everywhere = sum_over_workers(torch.from_numpy(mine).to(tagger.device)).cpu().numpy()
    return [Counts.from_array(tagger.types, one).scores() for one in everywhere]
