"""Networks of other libraries for measurements: weights of a fixed seed, in training mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from model.backbones.libraries import library_network


def build_network(full_name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """As `library_network`, which downloads nothing here. Raises ValueError for what is not there."""
    torch.manual_seed(0)
    return library_network(full_name, options).train()
