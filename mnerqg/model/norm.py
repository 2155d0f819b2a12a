"""Batch normalisation over all workers of a step.

torch.nn.SyncBatchNorm refuses CPU tensors; this one runs wherever the process group does, so that N workers
see the statistics, and hence the gradients, of one worker on the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose gradient is the sum of the workers' gradients.

    torch.distributed.nn.functional.all_reduce does the same, but torch 2.15 warns at each call that it is deprecated
    and names a private module in its place.
    """

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all workers together."""

    def forward(self, states: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; N may differ between workers and be zero."""
        if not (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        ):
            return super().forward(states)
        values = states if states.dtype == torch.float64 else states.float()
        count = values.new_full((1,), float(values.numel() // self.num_features))
        total, count = _sum(torch.cat([values.sum((0, 2, 3)), count])).split([self.num_features, 1])
        seen = count.clamp(min=1)  # no worker at all may have a picture
        mean = total / seen
        centred = values - mean[:, None, None]
        # In a second pass: the difference of two large sums would lose the digits that the gradients need.
        variance = _sum(centred.square().sum((0, 2, 3))) / seen
        self._update_statistics(mean.detach(), variance.detach(), count.detach())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(states.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        momentum = (self.momentum if self.momentum is not None else 0.1) * count.sign()
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


def _sum(values: Tensor) -> Tensor:
    return _SumOverWorkers.apply(values)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Turn every BatchNorm2d inside `module` into a SynchronizedBatchNorm2d, parameters kept."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SynchronizedBatchNorm2d
