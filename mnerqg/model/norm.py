"""Batch normalisation over all workers of a step.

torch.nn.SyncBatchNorm refuses CPU tensors; this one runs wherever the process group does, so that N workers
see the statistics, and hence the gradients, of one worker on the whole batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all workers together."""

    def forward(self, states: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; N may differ between workers."""
        if not (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        ):
            return super().forward(states)
        values = states.float()
        count = values.new_full((1,), float(values.numel() // self.num_features))
        local = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count])
        total, squares, count = all_reduce(local).split([self.num_features, self.num_features, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self._update_statistics(mean.detach(), variance.detach(), count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(states.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        momentum = self.momentum if self.momentum is not None else 0.1
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


def synchronize_batch_norms(module: nn.Module) -> None:
    """Turn every BatchNorm2d inside `module` into a SynchronizedBatchNorm2d, parameters kept."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SynchronizedBatchNorm2d
