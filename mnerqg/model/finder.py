"""A network on a device, from sentences and pictures to what it finds in them."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from threading import Lock

import numpy as np
import torch

from mnerqg.config import Config, DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.inputs.text import TextEncoder
from mnerqg.model.answers import Answers
from mnerqg.model.build import Network, build_anchors, build_collator
from mnerqg.model.found import Found

# Of a query are looked at where it may have several regions, the most confident ones [chosen].
_MOST_BOXES = 100


class Finder:
    """Asks the queries of a model about posts.

    Args:
        network: ready to answer, on `device`.
        text_encoder: of its encoder and queries.
        config: what it was trained with. What heads say that learned nothing is left out (see `LossConfig`).
        device: where it runs.
    """

    def __init__(
        self, network: Network, *, text_encoder: TextEncoder, config: Config, device: torch.device
    ) -> None:
        self.network = network
        self.device = device
        self.busy_s = 0.0
        """Seconds that the device has worked."""
        self.lanes = 2 if device.type == "cuda" else 1
        """How many batches are asked at once, each by a thread. A GPU answers one at a time; with two lanes the host
        makes the next batch and reads the last answer meanwhile. A CPU does more with a batch on each core than with
        all cores on one, whose every operation ends in a wait; torch has to have one thread then."""
        self._one_at_a_time = Lock() if device.type == "cuda" else nullcontext()
        self._counting = Lock()
        self._config = config
        on_gpu = device.type == "cuda"
        self._collate = build_collator(config, text_encoder, pinned=on_gpu, step=8 if on_gpu else 1)
        self._table = torch.from_numpy(build_anchors(config.model).table()).to(device)

    def collate(self, sentences: Sentences, shown: Shown) -> Batch:
        """The batch of posts, on the host; several may be made while the device answers another."""
        return self._collate.of_sentences(sentences, shown)

    def answer(self, batch: Batch, sentences: Sentences) -> Found:
        """What is found in the posts of a batch.

        Args:
            batch: of `collate`.
            sentences: that it was made of.
        """
        (found,) = self._found(batch, sentences, [self._config.decode])
        return found

    def at_each(self, examples: Sequence[Example], configs: Sequence[DecodeConfig]) -> list[Found]:
        """What is found above the span and match thresholds of each of `configs`; the network runs once.

        Posts with phrases are asked those.
        """
        batch = self._collate(examples, with_targets=False)
        return self._found(batch, Sentences.of([example.text for example in examples]), configs)

    @torch.inference_mode()
    def _found(self, batch: Batch, sentences: Sentences, configs: Sequence[DecodeConfig]) -> list[Found]:
        pictured = np.zeros(len(sentences), bool)
        pictured[batch.shown.numpy()] = True
        lowest = min(config.span_threshold for config in configs)
        answers = self.answers(batch, lowest)
        found = answers.found(configs, sentences, pictured)
        if self._config.answers_existence:
            return found
        return [replace(one, existence=one.existence[:, :0]) for one in found]

    def answers(self, batch: Batch, lowest: float) -> Answers:
        """All that the device does: the network, and what is left of its output; `lowest` as of `Answers.of`."""
        answers, seconds = self.timed_answers(batch, lowest)
        with self._counting:
            self.busy_s += seconds
        return answers

    def timed_answers(self, batch: Batch, lowest: float) -> tuple[Answers, float]:
        """As `answers`, and the seconds that the device worked for them; of several lanes' work each has its share."""
        batch = batch.to(self.device)
        with self._one_at_a_time:
            if self.device.type != "cuda":
                started = time.monotonic()
                return self._answers(batch, lowest), (time.monotonic() - started) / self.lanes
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            start.record(stream)
            answers = self._answers(batch, lowest)
            end.record(stream)
            end.synchronize()  # the device has answered, and the host has the answer
            return answers, start.elapsed_time(end) / 1000

    def _answers(self, batch: Batch, lowest: float) -> Answers:
        return Answers.of(
            self.network(batch),
            batch,
            table=self._table if self._config.answers_boxes else None,
            most_boxes=1 if self._config.decode.regions == "one" else _MOST_BOXES,
            lowest=lowest,
        )
