"""What a GPU does for batches of one shape, recorded once and replayed from then on.

A forward pass is a thousand kernels, and Python launches them more slowly than a large GPU runs them. A CUDA graph of
them is launched at once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from mnerqg.inputs.batch import Batch, changed, tensors_of

_log = logging.getLogger(__name__)
_MOST = 64
"""Shapes that are recorded; what has another one is computed as if nothing were recorded [chosen]."""

R = TypeVar("R")


@dataclass(frozen=True)
class _Recording(Generic[R]):
    """A graph, the batch that it reads, and what it answers."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    answer: R


class Replays(Generic[R]):
    """Stands for a function of a batch on a GPU that never asks the GPU for a value.

    A shape is recorded when it comes for the second time: what comes once is not worth it. What cannot be recorded is
    computed, now and later. Calls must come one after the other on one stream, and what a call answers is overwritten
    by the next one.

    Args:
        compute: the function; in inference mode, and without anything drawn at random.
        records: whether anything is recorded.
    """

    def __init__(self, compute: Callable[[Batch], R], *, records: bool = True) -> None:
        self._compute = compute
        self._recordings: dict[Any, _Recording[R]] = {}
        self._seen: set[Any] = set()
        self._records = records

    def __call__(self, batch: Batch) -> R:
        shape = tuple((one.shape, one.stride()) for one in tensors_of(batch)), len(batch.texts)
        recording = self._recordings.get(shape)
        if recording is None and self._records and shape in self._seen and len(self._recordings) < _MOST:
            recording = self._recorded(batch)
            if recording is not None:
                self._recordings[shape] = recording
        if recording is None:
            self._seen.add(shape)
            return self._compute(batch)
        for known, given in zip(tensors_of(recording.batch), tensors_of(batch), strict=True):
            known.copy_(given)
        recording.graph.replay()
        return recording.answer

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self._recordings.clear()
        self._seen.clear()

    def _recorded(self, batch: Batch) -> _Recording[R] | None:
        """A recording for batches of this one's shape; None where what is computed cannot be recorded.

        Raises:
            torch.AcceleratorError: the device is lost.
        """
        given = changed(batch, torch.empty_like)
        for known, one in zip(tensors_of(given), tensors_of(batch), strict=True):
            known.copy_(one)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # One graph runs at a time, and of what it leaves only the answer is read: they can share all other memory.
        pool = next((one.graph.pool() for one in self._recordings.values()), None)
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._compute(given)  # libraries make their handles, of which each thread has its own
            # Other threads prepare batches meanwhile; what they do is no part of the graph.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                answer = self._compute(given)
        except RuntimeError as error:
            self._records = False
            torch.cuda.synchronize()  # which raises if the device is lost
            torch.cuda.empty_cache()
            _log.info(
                "the model's forward pass is not recorded as a CUDA graph: %s", str(error).split("\n")[0]
            )
            return None
        torch.cuda.current_stream().wait_stream(stream)
        return _Recording(graph, given, answer)
