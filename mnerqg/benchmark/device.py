"""How long a device works: of CUDA by its own events, of a CPU by the time within the network."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mnerqg.benchmark.rounds import Work
from mnerqg.inputs.batch import Batch


class DeviceClock:
    """Watches a network's calls, from its first module to its last, and tells each of them when the device is done.

    Args:
        network: that is called with a `Batch`; training or answering.
        device: where it runs.
        tell: called with each `Work`, on CUDA by a thread that waits for the device, so that nobody else does.
    """

    def __init__(self, network: nn.Module, device: torch.device, tell: Callable[[Work], object]) -> None:
        self._tell = tell
        self._cuda = device.type == "cuda"
        self._began: tuple[float, Any] = (0.0, None)
        self._under_way: queue.SimpleQueue[tuple[int, float, Any, Any]] = queue.SimpleQueue()
        if self._cuda:
            threading.Thread(target=self._wait, daemon=True).start()
        self._hooks = [
            network.register_forward_pre_hook(self._begin),
            network.register_forward_hook(self._end),
        ]

    def stop(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: nn.Module, __: Any) -> None:
        self._began = time.time(), self._event() if self._cuda else time.perf_counter()

    def _end(self, _: nn.Module, arguments: Any, __: Any) -> None:
        began, start = self._began
        posts = _posts(arguments[0])
        if self._cuda:
            self._under_way.put((posts, began, start, self._event()))
        else:
            self._tell(Work(posts, time.perf_counter() - start, began, time.time()))

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> None:
        while True:
            posts, began, start, end = self._under_way.get()
            end.synchronize()
            self._tell(Work(posts, start.elapsed_time(end) / 1000, began, time.time()))


def _posts(batch: Batch) -> int:
    return len(batch.attention_mask)


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread(s)"


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
