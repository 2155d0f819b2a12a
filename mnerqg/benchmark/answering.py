"""Ways to answer the same posts in this process: pair by pair, the network alone, and `Tagger`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mnerqg.benchmark.device import wait_for
from mnerqg.benchmark.pairs import as_pairs
from mnerqg.benchmark.rounds import Round
from mnerqg.inputs.ahead import Lanes
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.model.build import build_collator
from mnerqg.model.checkpoint import ModelDirectory
from mnerqg.model.finder import Finder
from mnerqg.schema import Post
from mnerqg.tagger import Tagger

PAIRS_A_BATCH = 32


class Ways:
    """Answers `posts` in each of the ways that a method is named for, and says how long that took.

    Posts are in the order of their lengths, `sorted_posts` of them together, in all ways but the pairwise one: padding
    costs as much as words do, and the job sorts them, too.

    A CPU's cores all work on one batch, as torch has it, but in the bare way, where each has a batch of its own, as in
    the job.

    Args:
        tagger: answers, in the type and with the compilation that are asked for.
        directory: the same model as it was loaded, for the pairwise loop.
        posts: at least one.
        batch_posts: posts that the network sees at once.
        sorted_posts: see above.
    """

    def __init__(
        self,
        tagger: Tagger,
        directory: ModelDirectory,
        posts: Sequence[Post],
        batch_posts: int,
        sorted_posts: int,
    ) -> None:
        self._tagger = tagger
        self._threads = max(torch.get_num_threads(), tagger.finder.lanes)
        self._lanes = Lanes(tagger.finder.lanes)
        self._batch_posts = batch_posts
        self._text_encoder = directory.text_encoder
        self._collate = build_collator(tagger.config, directory.text_encoder)
        self._pairwise = Finder(
            directory.model.to(tagger.device),
            text_encoder=directory.text_encoder,
            config=tagger.config,
            device=tagger.device,
            replays=False,
        )
        self._lowest = tagger.config.decode.span_threshold
        side = tagger.config.model.image_side
        prepared = [prepare_post(post, side, tagger.limits) for post in posts]
        order = _by_length(prepared, sorted_posts)
        self._unordered = prepared
        self._posts = [posts[place] for place in order]
        self._prepared = [prepared[place] for place in order]
        self._batches = self._record_batches()

    def pairwise(self) -> Round:
        """As research code does it: a query and a sentence together, each with a picture of its own.

        Batches of 32 pairs as they come, padded to the longest, in fp32 and with nothing folded or compiled. Its text
        is tokenised once a post and entities are not made of its answers, which is in its favour.
        """
        posts_a_batch = max(1, PAIRS_A_BATCH // max(1, len(self._tagger.types)))

        def answer(part: Sequence[PreparedPost]) -> int:
            examples = [
                Example(
                    self._text_encoder.encode(post.text or ""), pixels=post.pixels, letterbox=post.letterbox
                )
                for post in part
            ]
            batch = as_pairs(self._collate(examples, with_targets=False)).to(self._tagger.device)
            self._pairwise.answers(batch, self._lowest)
            return len(part)

        return self._timed(answer, _parts(self._unordered, posts_a_batch), self._pairwise)

    def bare(self) -> Round:
        """The network and the reduction of its output to the host's arrays, on tensors that lie on the device."""

        @torch.inference_mode()
        def answer(batch: Batch) -> int:
            self._tagger.finder.answers(batch, self._lowest)
            return 0

        lanes = self._lanes if self._lanes.count > 1 else None
        # A long text may be several rows of a batch.
        return self._timed(answer, self._batches, self._tagger.finder, lanes) | {"posts": len(self._posts)}

    def tagger(self) -> Round:
        """`Tagger.tag_prepared` on pictures that are decoded: text to entities and regions."""

        def answer(part: Sequence[PreparedPost]) -> int:
            return len(self._tagger.tag_prepared(part))

        return self._timed(answer, _parts(self._prepared, self._batch_posts), self._tagger.finder)

    def tagger_with_decoding(self) -> Round:
        """`Tagger.tag` on encoded pictures."""

        def answer(part: Sequence[Post]) -> int:
            return len(self._tagger.tag(part, batch_size=self._batch_posts))

        return self._timed(answer, _parts(self._posts, self._batch_posts), self._tagger.finder)

    @torch.inference_mode()
    def _timed(
        self, answer: Callable[[Any], int], parts: Sequence[Any], finder: Finder, lanes: Lanes | None = None
    ) -> Round:
        device = self._tagger.device
        torch.set_num_threads(1 if lanes else self._threads)
        # What is made at the first calls is made: on a GPU for every shape, and at its second call.
        replays = device.type == "cuda" and finder is self._tagger.finder
        for part in [*parts, *parts] if replays else parts[:1]:
            answer(part)
        wait_for(device)
        busy_s = finder.busy_s
        started, cpu = time.perf_counter(), time.process_time()
        posts = sum(lanes(answer, parts) if lanes else map(answer, parts))
        wait_for(device)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        # Of a CPU a finder counts each lane's share.
        share = 1.0 if device.type == "cuda" else finder.lanes / (lanes.count if lanes else 1)
        return {
            "posts": posts,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "device_busy": min(1.0, (finder.busy_s - busy_s) * share / seconds),
        }

    def _record_batches(self) -> list[Batch]:
        """The batches that `Tagger` makes, on the device: they are what its network is called with."""
        batches: list[Batch] = []
        finder: Any = self._tagger.finder
        collate = finder.collate

        def keep(*arguments: Any) -> Batch:
            batches.append(collate(*arguments))
            return batches[-1]

        finder.collate = keep
        for part in _parts(self._prepared, self._batch_posts):
            self._tagger.tag_prepared(part)
        del finder.collate
        return [batch.to(self._tagger.device) for batch in batches]


def _by_length(posts: Sequence[PreparedPost], together: int) -> list[int]:
    """The order in which, `together` posts at a time, texts of about one length come together."""
    order: list[int] = []
    for part in _parts(range(len(posts)), together):
        order += sorted(part, key=lambda place: len(posts[place].text or ""))
    return order


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
