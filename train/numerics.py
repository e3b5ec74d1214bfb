"""How a process computes, for all of its tensors: in which precision, the same bits each time or faster."""

from __future__ import annotations

import os

import torch
from torch import nn

from train.settings import RunSettings


def has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU that computes in bfloat16: NVIDIA's since Ampere."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cast_parameters(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters and leave the buffers, as DeepSpeed does in training."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


def uses_tf32(settings: RunSettings, device: torch.device) -> bool:
    """Whether float32 products on the device are rounded to TF32; older GPUs than Ampere ignore it."""
    return device.type == "cuda" and settings.tf32


def set_numerics(settings: RunSettings, device: torch.device) -> None:
    """Make PyTorch compute as the settings ask; before the first product on a GPU, which fixes cuBLAS's mode.

    With run.deterministic an operation whose CUDA kernel has no fixed order raises RuntimeError.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else streams share its workspaces
        torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock
    if torch.are_deterministic_algorithms_enabled() != settings.deterministic:  # imports TorchInductor
        torch.use_deterministic_algorithms(settings.deterministic)
