"""A step of the whole network on the GPU against the same step on the CPU, and exact reversible states."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.backbones.drop_path import DropPath
from model.network import Network
from model.rewire import rewired_stages
from tools.gpu_checks.rows import CheckContext, require
from train.build_network import build_network
from train.settings import settings_from

FLOAT32_BOUND = 1e-4  # relative; smooth branches only: a ReLU at a rounding edge flips its gradient
BFLOAT16_BOUND = 0.1  # relative, of the gradient: 8 bits, some 30 layers


def small_network(backbone: str, **encoder: object) -> Network:
    """A network with a small detector on one backbone, in training mode, on the CPU."""
    values = {"backbone": backbone, "clips_per_forward": 2, "clip_ratio": 0.5, **encoder}
    detector = {"num_steps": 32, "neck_dim": 64, "fc_dim": 128, "head_dim": 64}
    settings = settings_from({"data": {"shards": "-"}, "encoder": values, "detector": detector})
    network = build_network(settings, 5)
    assert isinstance(network, Network), "of videos"
    return network.train()


def without_drop_path(network: Network) -> Network:
    """The same, nothing left out at random: from one seed a CPU and a GPU draw other masks."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0
    return network


def small_batch(device: str | torch.device) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Clips (2, 4, 3, 8, 64, 64) of uint8, segments and labels; the same on each device."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 4, 3, 8, 64, 64), dtype=torch.uint8, generator=generator)
    segments, labels = torch.tensor([[4.0, 12.0], [18.0, 30.0]]), torch.tensor([1, 3])
    return clips.to(device), [segments.to(device)] * 2, [labels.to(device)] * 2


def gradients(network: Network, device: str) -> tuple[float, Tensor]:
    """The loss of a step on the device, and all gradients as one float64 vector on the CPU."""
    clips, segments, labels = small_batch(device)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    network.zero_grad(set_to_none=True)
    loss, _ = network(clips, segments, labels, generator=generator)
    loss.backward()
    flat = [p.grad.double().cpu().flatten() for p in network.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(flat)


def relative(found: Tensor, expected: Tensor) -> float:
    """L2 distance over the L2 norm of what is expected."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, matrices and convolutions in float32 are computed in float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def float32_step(context: CheckContext) -> str:
    """Loss and gradients in float32 without TF32, on a network without ReLU in its branches."""
    network = without_drop_path(small_network("videomae_s"))
    expected = gradients(network, "cpu")
    with without_tf32():
        found = gradients(copy.deepcopy(network).to(context.device), context.device)
    error = relative(found[1], expected[1])
    text = f"VideoMAE-S, loss {found[0]:.6g} (CPU {expected[0]:.6g}), gradients {error:.1e} apart"
    return require(error <= FLOAT32_BOUND, f"{text}, bound {FLOAT32_BOUND:g}")


def tf32_step(context: CheckContext) -> str:
    """What TF32 costs in precision: stated, not bounded."""
    network = without_drop_path(small_network("videomae_s"))
    expected = gradients(network, "cpu")[1]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    found = gradients(copy.deepcopy(network).to(context.device), context.device)[1]
    return f"VideoMAE-S, gradients {relative(found, expected):.1e} apart from the CPU's float32"


def bfloat16_step(context: CheckContext) -> str:
    """Gradients with weights in bfloat16 against the CPU's in float32 (of the same rounded weights)."""
    network = without_drop_path(small_network("videomae_s")).bfloat16()
    expected = gradients(copy.deepcopy(network).float(), "cpu")[1]
    found = gradients(network.to(context.device), context.device)[1]
    error = relative(found, expected)
    return require(
        error <= BFLOAT16_BOUND, f"VideoMAE-S, gradients {error:.1e} apart, bound {BFLOAT16_BOUND}"
    )


def exact_states(context: CheckContext) -> str:
    """At beta 1 on the grid, inverted states give bitwise the gradients of stored ones."""
    torch.backends.cudnn.deterministic = True
    texts = []
    for backbone in ("r2plus1d_18", "tsm_r18", "video_swin_t"):
        network = small_network(backbone).to(context.device)
        found = []
        for invert in (True, False):
            for stage in rewired_stages(network):
                stage.invert = invert
            found.append(gradients(network, context.device)[1])
        texts.append(f"{backbone} {'equal' if torch.equal(*found) else f'{relative(*found):.1e} apart'}")
    text = ", ".join(texts)
    return require("apart" not in text, f"inverted against stored, bitwise: {text}")
