"""Scores of a tagger over annotated posts, in one process; `distributed.evaluation` spreads them over a cluster."""

import itertools
from collections.abc import Iterable, Sequence

from mnerqg.config import DecodeConfig
from mnerqg.schema import Post, TaggedPost
from mnerqg.scoring.metrics import Counts
from mnerqg.tagger import Tagger


def score(tagger: Tagger, posts: Iterable[Post], *, batch_size: int = 16) -> Counts:
    """The counts of all posts together, each scored exactly once."""
    return _score(tagger, posts, [tagger.config.decode], batch_size)[0]


def score_at(
    tagger: Tagger, posts: Iterable[Post], thresholds: Sequence[float], *, batch_size: int = 16
) -> list[Counts]:
    """As `score`, for each of the values of `span_threshold` and `match_threshold`; the network runs once."""
    configs = [tagger.config.decode.at(threshold) for threshold in thresholds]
    return _score(tagger, posts, configs, batch_size)


def score_each(tagger: Tagger, posts: Sequence[Post]) -> list[Counts]:
    """The counts of each post of one batch."""
    each = [Counts(tagger.types) for _ in posts]
    (answers,) = tagger.answers_at(posts, [tagger.config.decode])
    for counts, post, answer in zip(each, posts, answers, strict=True):
        _add(counts, post, answer)
    return each


def _score(
    tagger: Tagger, posts: Iterable[Post], configs: Sequence[DecodeConfig], batch_size: int
) -> list[Counts]:
    counts = [Counts(tagger.types) for _ in configs]
    rest = iter(posts)
    while batch := list(itertools.islice(rest, batch_size)):
        for total, answers in zip(counts, tagger.answers_at(batch, configs), strict=True):
            for post, answer in zip(batch, answers, strict=True):
                _add(total, post, answer)
    return counts


def _add(counts: Counts, post: Post, answer: TaggedPost) -> None:
    counts.add_post(post, answer.entities, answer.best_regions, answer.regions)
