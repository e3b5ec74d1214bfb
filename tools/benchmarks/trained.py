"""Backbones as benchmarks train them: weights of a fixed seed, and blocks that torch runs again."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from model.backbones import build_backbone
from model.backbones.backbone import Backbone
from model.backbones.named import NamedBackbone
from model.tracing.find import residual_names


def build(name: str, device: str) -> Backbone:
    """The backbone with weights of a fixed seed, training, but for the statistics of its batch norms.

    A norm that starts at weight 0, as at the end of SlowFast's branches, gets weight 1/2: its branch would
    be nothing, and reversed without error.
    """
    torch.manual_seed(0)
    network = build_backbone(name).to(device).train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if not module.weight.any():
                nn.init.constant_(module.weight, 0.5)
    return network


def checkpoint_blocks(network: Backbone) -> None:
    """Let torch recompute every residual block as a whole."""
    for block in residual_blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def residual_blocks(network: Backbone) -> list[nn.Module]:
    """The blocks of all stages; of another library's network those that are proven residual."""
    if isinstance(network, NamedBackbone):
        names = residual_names(network.network, network.example())
        return [network.network.get_submodule(name) for name in names]
    return [block for name in network.stage_names for block in network.get_submodule(name).children()]
