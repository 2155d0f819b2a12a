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
    counts = Counts(tagger.types)
    for post, (answer,) in answered(tagger, posts, [tagger.config.decode], batch_size=batch_size):
        _add(counts, post, answer)
    return counts


def answered(
    tagger: Tagger, posts: Iterable[Post], decodes: Sequence[DecodeConfig], *, batch_size: int = 16
) -> Iterator[tuple[Post, list[TaggedPost]]]:
    """Each post and its answer with each of `decodes`, which differ in the thresholds of spans alone.

    The network runs once. `batch_size` posts are what it sees at once.
    """
    rest = iter(posts)
    while batch := list(itertools.islice(rest, batch_size)):
        of_each = tagger.answers_at(batch, decodes)
        yield from zip(batch, (list(answers) for answers in zip(*of_each, strict=True)), strict=True)


def score_each(tagger: Tagger, posts: Sequence[Post], pictures: Pictures = "true") -> list[Counts]:
    """The counts of each post of one batch; see `with_pictures`."""
    each = [Counts(tagger.types) for _ in posts]
    (answers,) = tagger.answers_at(list(with_pictures(posts, pictures)), [tagger.config.decode])
    for counts, post, answer in zip(each, posts, answers, strict=True):
        _add(counts, post, answer)
    return each


def _add(counts: Counts, post: Post, answer: TaggedPost) -> None:
    counts.add_post(post, answer.entities, answer.best_regions, answer.regions)
