"""Which arithmetic a device has."""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether bf16 is the device's own, and not imitated by torch.

    On a CPU with AVX2 alone a step took 20 times as long as in fp32; of GPUs those before NVIDIA's Ampere imitate it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
