"""A network on a device, from sentences and pictures to what it finds in them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch

from mnerqg.config import Config, DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.inputs.text import TextEncoder
from mnerqg.model.answers import Answers, Reduced
from mnerqg.model.build import Network, build_anchors, build_collator
from mnerqg.model.found import Found
from mnerqg.model.mnerqg import MNERQG
from mnerqg.model.output import Output
from mnerqg.model.replays import Replays

# Of a query are looked at where it may have several regions, the most confident ones [chosen].
_MOST_BOXES = 100
# For so many start-end pairs a post there is room in a batch. Where there are more, it is asked again [chosen].
_PAIRS = 32


class Finder:
    """Asks the queries of a model about posts.

    Args:
        network: ready to answer, on `device`.
        text_encoder: of its encoder and queries.
        config: what it was trained with. What heads say that learned nothing is left out (see `LossConfig`).
        device: where it runs.
        replays: whether a GPU replays what it did for batches of the same shape (`model.replays`).
    """

    def __init__(
        self,
        network: Network,
        *,
        text_encoder: TextEncoder,
        config: Config,
        device: torch.device,
        replays: bool = True,
    ) -> None:
        self.network = network
        self.device = device
        self.busy_s = 0.0
        """Seconds that the device has worked."""
        self.lanes = 2 if device.type == "cuda" else 1
        """How many batches are asked at once, each by a thread. A GPU answers one at a time; with two lanes the host
        makes the next batch and reads the last answer meanwhile. A CPU does more with a batch on each core than with
        all cores on one, whose every operation ends in a wait; torch has to have one thread then."""
        self._counting = Lock()
        self._config = config
        on_gpu = device.type == "cuda"
        self._collate = build_collator(
            config,
            text_encoder,
            pinned=on_gpu,
            step=8 if on_gpu else 1,
            groups=not on_gpu,
            even=on_gpu and replays,
        )
        self._table = torch.from_numpy(build_anchors(config.model).table()).to(device)
        self._gpu = _Gpu(network, self._reduced, device, replays) if on_gpu else None

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
        answers = self.answers(batch, lowest).of_first(len(sentences))
        found = answers.found(configs, sentences, pictured)
        if self._config.answers_existence:
            return found
        return [replace(one, existence=one.existence[:, :0]) for one in found]

    def answers(self, batch: Batch, lowest: float) -> Answers:
        """All that the device does: the network, and what is left of its output; `lowest` as of `Reduced.of`."""
        answers, seconds = self.timed_answers(batch, lowest)
        with self._counting:
            self.busy_s += seconds
        return answers

    def timed_answers(self, batch: Batch, lowest: float) -> tuple[Answers, float]:
        """As `answers`, and the seconds that the device worked for them; of several lanes' work each has its share."""
        if self._gpu is not None:
            return self._gpu(batch, lowest)
        started = time.monotonic()
        output = self.network(batch)

        def answers(room: int) -> Answers:
            reduced = self._reduced(output, batch, lowest, room)
            return Answers.of_values(reduced.values, reduced)

        return _with_room(answers, batch), (time.monotonic() - started) / self.lanes

    def forget_shapes(self) -> None:
        """Give the memory back that is kept for batches like those that were asked."""
        if self._gpu is not None:
            self._gpu.forget()

    def _reduced(self, output: Output, batch: Batch, lowest: float, room: int) -> Reduced:
        return Reduced.of(
            output,
            batch,
            table=self._table if self._config.answers_boxes else None,
            most_boxes=1 if self._config.decode.regions == "one" else _MOST_BOXES,
            lowest=lowest,
            room=room,
        )


def _with_room(answers: Callable[[int], Answers], batch: Batch) -> Answers:
    """The answers to a batch, given those for which there is room for so many pairs."""
    found = answers(_PAIRS * len(batch.attention_mask))
    while (room := found.room) is not None:
        found = answers(room)
    return found


class _Gpu:
    """A network on a GPU, which always has the next batch in its queue if several threads ask.

    Args:
        network: ready to answer.
        reduce: of its output, the batch, the lowest threshold and the room for pairs.
        device: the GPU.
        replays: see `Finder`.
    """

    def __init__(
        self,
        network: Network,
        reduce: Callable[[Output, Batch, float, int], Reduced],
        device: torch.device,
        replays: bool,
    ) -> None:
        self._device = device
        self._reduce = reduce
        # What the host has to know on the way cannot be in a recording: a CRF's labels.
        self._waits = not isinstance(network, MNERQG) and network.crf is not None

        def compute(batch: Batch, lowest: float, room: int) -> Output | Reduced:
            output = network(batch)
            return output if self._waits else reduce(output, batch, lowest, room)

        self._replays: Replays[Any] = Replays(compute, records=replays)
        self._uploads, self._work = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._queue = Lock()

    def __call__(self, batch: Batch, lowest: float) -> tuple[Answers, float]:
        self._uploads.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._uploads):
            given = batch.to(self._device)
            there = self._uploads.record_event()
        seconds = 0.0

        def answers(room: int) -> Answers:
            nonlocal seconds
            found, took = self._asked(given, there, lowest, room)
            seconds += took
            return found

        return _with_room(answers, batch), seconds

    def _asked(
        self, given: Batch, there: torch.cuda.Event, lowest: float, room: int
    ) -> tuple[Answers, float]:
        """The answers to a batch that is on the device after `there`, and the seconds that it worked."""
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        # Held until all is in the queue, not until it is done, but for what the reduction waits for.
        with self._queue, torch.cuda.stream(self._work):
            self._work.wait_event(there)
            start.record()
            try:
                reduced = self._replays(given, lowest, room)
                if self._waits:
                    reduced = self._reduce(reduced, given, lowest, room)
                # A place of its own, which the device fills while the host does other things.
                values = torch.empty(reduced.values.shape, pin_memory=True)
                values.copy_(reduced.values, non_blocking=True)
            except Exception:
                self._work.synchronize()  # until then the device may still read what is given back now
                raise
            end.record()
        end.synchronize()
        return Answers.of_values(values, reduced), start.elapsed_time(end) / 1000

    def forget(self) -> None:
        """As `Replays.forget`, once nothing of it is at work."""
        with self._queue:
            self._work.synchronize()
            self._replays.forget()
            torch.cuda.empty_cache()
