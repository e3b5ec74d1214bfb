"""Steps under DeepSpeed on the GPU: every ZeRO stage with and without offload gives the same parameters."""

from __future__ import annotations

from typing import Any

import torch

from tools.gpu_checks.numerics import relative, small_batch, small_network, without_tf32
from tools.gpu_checks.rows import CheckContext, require
from train.engine import build_engine, full_state_dict, start_process_group
from train.optimizer import OptimizerSettings, read_ds_config

STEPS = 3
# Relative, of the way the parameters went: Adam turns the rounding of a tiny gradient into a step.
BOUND = 0.01


def way_of(context: CheckContext, stage: int, offload: str) -> torch.Tensor:
    """How far STEPS steps with this ZeRO stage move the parameters, as one float64 vector."""
    config: dict[str, Any] = read_ds_config()
    config["bf16"] = {"enabled": False}
    zero = config["zero_optimization"]
    zero["stage"] = stage
    zero["offload_optimizer"] = {"device": offload, "pin_memory": offload == "cpu" and not context.rehearsal}
    network = small_network("tsm_r18" if not context.rehearsal else "r2plus1d_tiny")
    before = flat({name: parameter.detach().clone() for name, parameter in network.named_parameters()})
    settings = OptimizerSettings(encoder_lr=5e-4, detector_lr=5e-4, batch_size=2)
    engine = build_engine(network, settings, ds_config=config, total_steps=STEPS)
    clips, segments, labels = small_batch(engine.device)
    for step in range(STEPS):
        torch.manual_seed(step)
        generator = torch.Generator().manual_seed(step)
        engine.train()
        loss, _ = engine(clips, segments, labels, generator=generator)
        engine.backward(loss)
        engine.step()
    state = full_state_dict(engine)
    return flat({name: state[name] for name, _ in network.named_parameters()}) - before


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All of them as one float64 vector on the CPU."""
    return torch.cat([tensor.double().cpu().flatten() for tensor in tensors.values()])


def zero_stages(context: CheckContext) -> str:
    """Three steps in float32: each stage, and each with the optimizer on the CPU, against stage 0."""
    torch.backends.cudnn.deterministic = True
    start_process_group(context.device)
    modes = [(1, "none"), (2, "none"), (3, "none"), (1, "cpu"), (2, "cpu"), (3, "cpu")]
    with without_tf32():
        expected = way_of(context, 0, "none")
        errors = {
            f"{stage}{' offload' if offload == 'cpu' else ''}": relative(
                way_of(context, stage, offload), expected
            )
            for stage, offload in modes
        }
    text = ", ".join(f"ZeRO {mode}: {error:.0e}" for mode, error in errors.items())
    return require(
        max(errors.values()) <= BOUND,
        f"relative difference of the update from stage 0: {text}; bound {BOUND:g}",
    )
