"""Scores of a tagger over annotated posts, in one process; `distributed.evaluation` spreads them over a cluster."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mnerqg.config import DecodeConfig
from mnerqg.schema import Pictures, Post, TaggedPost
from mnerqg.scoring.metrics import Counts
from mnerqg.tagger import Tagger


def with_pictures(posts: Iterable[Post], pictures: Pictures) -> Iterator[Post]:
    """Posts in their order with their own pictures, with other posts' or with none.

    "shuffled": each post with a picture has that of the next one that has one, and the last one that of the first, with
    its boxes; where there is only one picture it goes. What the entities of posts then score against their own pictures
    says how much a model reads of them. Boxes are of another picture and not to be scored.
    """
    if pictures == "true":
        yield from posts
    elif pictures == "none":
        for post in posts:
            yield replace(post, image=None, boxes=())
    else:
        yield from _with_the_next_picture(posts)


def _with_the_next_picture(posts: Iterable[Post]) -> Iterator[Post]:
    first: Post | None = None
    waiting: list[Post] = []  # a post with a picture and the ones without that follow it
    for post in posts:
        if post.image is not None and waiting and waiting[0].image is not None:
            yield replace(waiting[0], image=post.image, boxes=post.boxes)
            yield from waiting[1:]
            waiting = []
        if post.image is not None and first is None:
            first = post
            yield from waiting
            waiting = []
        waiting.append(post)
    if first is not None and waiting:
        alone = waiting[0] is first
        yield replace(waiting[0], image=None if alone else first.image, boxes=() if alone else first.boxes)
        waiting = waiting[1:]
    yield from waiting


def score(tagger: Tagger, posts: Iterable[Post], *, batch_size: int = 16) -> Counts:
    """The counts of all posts together, each scored exactly once."""
    decode = tagger.config.decode
    ((counts,),) = score_at(tagger, posts, [decode], [decode.region_threshold], batch_size=batch_size)
    return counts


def score_at(
    tagger: Tagger,
    posts: Iterable[Post],
    decodes: Sequence[DecodeConfig],
    regions: Sequence[float],
    *,
    batch_size: int = 16,
) -> list[list[Counts]]:
    """As `score`, with several thresholds in the place of the tagger's own; the network runs once.

    Args:
        tagger: whose answers are scored.
        posts: annotated.
        decodes: each has other thresholds of spans.
        regions: thresholds of regions, with each of which each of `decodes` is scored.
        batch_size: posts that the network sees at once.

    Returns:
        Of each of `decodes` the counts with each of `regions`.
    """
    counts = [[Counts(tagger.types) for _ in regions] for _ in decodes]
    # A region is in the way only of less confident ones: at a higher threshold are those of the lowest that reach it.
    widest = [decode.model_copy(update={"region_threshold": min(regions)}) for decode in decodes]
    rest = iter(posts)
    while batch := list(itertools.islice(rest, batch_size)):
        for row, answers in zip(counts, tagger.answers_at(batch, widest), strict=True):
            for post, answer in zip(batch, answers, strict=True):
                for total, threshold in zip(row, regions, strict=True):
                    kept = tuple(region for region in answer.regions if region.score >= threshold)
                    _add(total, post, replace(answer, regions=kept))
    return counts


def score_each(tagger: Tagger, posts: Sequence[Post], pictures: Pictures = "true") -> list[Counts]:
    """The counts of each post of one batch; see `with_pictures`."""
    each = [Counts(tagger.types) for _ in posts]
    (answers,) = tagger.answers_at(list(with_pictures(posts, pictures)), [tagger.config.decode])
    for counts, post, answer in zip(each, posts, answers, strict=True):
        _add(counts, post, answer)
    return each


def _add(counts: Counts, post: Post, answer: TaggedPost) -> None:
    counts.add_post(post, answer.entities, answer.best_regions, answer.regions)
