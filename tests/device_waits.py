"""Finds where the host would wait for a device, on a machine without one: by the operators that need a value."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive",
    "equal", "repeat_interleave",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class NoWaits(TorchDispatchMode):
    """Within it an operator whose result the host would wait for is an error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in _INDEXING and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _WAITS or by_mask:
            raise AssertionError(f"the host waits for the device in aten::{name}")
        return func(*args, **(kwargs or {}))
