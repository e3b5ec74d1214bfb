"""How a process computes, for all of its tensors: the same bits each time, or faster."""

from __future__ import annotations

import os

import torch

from train.settings import RunSettings


def set_numerics(settings: RunSettings) -> None:
    """Make PyTorch compute as the settings ask; before the first product on a GPU, which fixes cuBLAS's mode.

    With run.deterministic an operation whose CUDA kernel has no fixed order raises RuntimeError.
    """
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else streams share its workspaces
        torch.backends.cudnn.benchmark = False  # it would choose kernels by the clock
    if torch.are_deterministic_algorithms_enabled() != settings.deterministic:  # imports TorchInductor
        torch.use_deterministic_algorithms(settings.deterministic)
