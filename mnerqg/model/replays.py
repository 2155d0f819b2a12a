"""What a GPU does for batches of one shape, recorded once and replayed from then on.

A forward pass is a thousand kernels, and Python launches them more slowly than a large GPU runs them. A CUDA graph of
them is launched at once.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from mnerqg.inputs.batch import Batch, changed, tensors_of

_log = logging.getLogger(__name__)
_MOST = 64
"""Shapes that are recorded; what has another one is computed as if nothing were recorded [chosen]."""
_MOST_SEEN = 1024
"""Shapes that are known to have come once, before all of them are forgotten [chosen]."""

R = TypeVar("R")


@dataclass(frozen=True)
class _Recording(Generic[R]):
    """A graph, the batch that it reads, and what it answers."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    answer: R


class Replays(Generic[R]):
    """Stands for a function of a batch on a GPU, and of other things, that never asks the GPU for a value.

    A shape is recorded when it comes for the second time with the same other things: what comes once is not worth it.
    What cannot be recorded for want of memory is computed, then and later; after any other failure nothing more is
    recorded. Calls must come one after the other on one stream, and what a call answers is overwritten by the next one.

    Args:
        compute: the function; in inference mode, and without anything drawn at random.
        records: whether anything is recorded.
    """

    def __init__(self, compute: Callable[..., R], *, records: bool = True) -> None:
        self._compute = compute
        self._records = records
        # One for all: graphs share the memory that was taken on the same stream.
        self._stream: torch.cuda.Stream | None = None
        self._recordings: dict[Any, _Recording[R]] = {}
        self._seen: set[Any] = set()
        self._refused: set[Any] = set()

    def __call__(self, batch: Batch, *others: Hashable) -> R:
        """What the function answers to the batch and the other things."""
        shape = tuple((one.shape, one.stride()) for one in tensors_of(batch)), len(batch.texts), others
        recording = self._recordings.get(shape)
        if recording is None and self._is_worth_it(shape):
            recording = self._recorded(shape, batch, *others)
        if recording is None:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(shape)
            return self._compute(batch, *others)
        for known, given in zip(tensors_of(recording.batch), tensors_of(batch), strict=True):
            known.copy_(given)
        recording.graph.replay()
        return recording.answer

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self._recordings.clear()
        self._seen.clear()
        self._refused.clear()

    def _is_worth_it(self, shape: Any) -> bool:
        may = self._records and len(self._recordings) < _MOST
        return may and shape in self._seen and shape not in self._refused

    def _recorded(self, shape: Any, batch: Batch, *others: Hashable) -> _Recording[R] | None:
        """A recording for batches of this shape, which is kept; None where there can be none.

        Raises:
            torch.AcceleratorError: the device is lost.
        """
        try:
            self._recordings[shape] = self._record(batch, *others)
        except RuntimeError as error:
            torch.cuda.synchronize()  # which raises if the device is lost
            torch.cuda.empty_cache()
            self._refused.add(shape)
            if not isinstance(error, torch.OutOfMemoryError):
                self._records = False
                _log.warning(
                    "the model's forward pass is no CUDA graph, and slower: %s", str(error).split("\n")[0]
                )
        return self._recordings.get(shape)

    def _record(self, batch: Batch, *others: Hashable) -> _Recording[R]:
        given = changed(batch, torch.empty_like)
        for known, one in zip(tensors_of(given), tensors_of(batch), strict=True):
            known.copy_(one)
        graph = torch.cuda.CUDAGraph()
        stream = self._stream = self._stream or torch.cuda.Stream()
        # One graph runs at a time, and of what it leaves only the answer is read: they can share all other memory.
        pool = next((one.graph.pool() for one in self._recordings.values()), None)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(given, *others)  # libraries make their handles, of which each thread has its own
        # Other threads prepare batches meanwhile; what they do is no part of the graph.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            answer = self._compute(given, *others)
        torch.cuda.current_stream().wait_stream(stream)
        return _Recording(graph, given, answer)
