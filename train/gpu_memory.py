"""What PyTorch and NCCL would set aside on a GPU and never use, asked for no more of it."""

from __future__ import annotations

import os

import torch

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second before PyTorch 2.9


def spare_memory(device: torch.device) -> None:
    """Call it before anything is allocated on the device; what the user has set stays. On a CPU nothing.

    PyTorch's allocator gets segments that grow, where else pieces of fixed sizes are left over. A process
    that is alone has nobody to talk to, but NCCL gives it buffers for as many channels as the machine could
    use (64 of 8 MiB each with NVLink, NVIDIA/nccl issue 2363); it is asked for one.
    """
    if device.type != "cuda":
        return
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    if os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.setdefault("NCCL_MAX_P2P_NCHANNELS", "1")
