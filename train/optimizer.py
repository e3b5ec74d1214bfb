"""AdamW's settings and schedule, and the DeepSpeed configuration made of them and ds_config.json.

Batch size, learning rates, optimizer and clipping are settings of LeanTAD; ZeRO, offload, precision and
monitors are in ds_config.json. Every key that decides a number is written, for DeepSpeed's silent defaults
are not neutral: it clips gradients at norm 1 where nothing is set.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from pipeline.files import parse_json
from pipeline.text import suggestion
from settings_group import SettingsGroup

DS_CONFIG = Path(__file__).resolve().parents[1] / "ds_config.json"
SET_BY_LEANTAD = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer",
    "scheduler",
    "gradient_clipping",
)
DEEPSPEED_KEYS = (
    "zero_optimization",
    "bf16",
    "zero_force_ds_cpu_optimizer",
    "prescale_gradients",
    "gradient_predivide_factor",
    "communication_data_type",
    "data_types",
    "tensorboard",
    "csv_monitor",
    "wandb",
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
)


class OptimizerSettings(SettingsGroup):
    """AdamW with a learning rate each for encoder and detector, warmup, and a schedule over the whole run."""

    encoder_lr: float = Field(default=5e-7, ge=0)
    """Highest learning rate of the encoder. With pretrained weights far below the detector's (5e-7 to 1e-5 in
    the recipes), from random ones nearer to it; too large forgets what was pretrained, too small adds
    nothing."""

    detector_lr: float = Field(default=5e-4, ge=0)
    """Highest learning rate of the detector. Larger trains faster, until the loss no longer falls."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Share by which an optimizer step shrinks the weights of encoder and detector, times the learning rate.
    Larger overfits less and fits less."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay per optimizer step of the running means of the gradient and of its square, each below 1. Nearer
    to 1 averages over more steps."""

    eps: float = Field(default=1e-8, gt=0)
    """Number added to the root of the gradient's mean square. Larger is steadier where gradients are tiny,
    and moves the weights there less."""

    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rates rise from lr / warmup_steps to lr; 0 starts at lr. More
    keep the first steps, of a detector that knows nothing, from spoiling the encoder."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rates after the warmup: cosine falls to 0 at the end of the run, along half a cosine; constant
    stays."""

    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down to it. Smaller holds
    back outliers more, 0 clips nothing."""

    accumulation_steps: int = Field(default=1, ge=1)
    """Micro steps whose gradients are averaged into one optimizer step. More make up for a small
    optimizer.batch_size: nearly the memory of one micro step, the time of all."""

    batch_size: int = Field(default=1, ge=1)
    """Windows (whole videos, if data.window_seconds is null) per process and micro step. Memory grows with
    it; an optimizer step sees batch_size x accumulation_steps x processes."""

    cpu_adam: bool = True
    """Whether an optimizer that is offloaded to the CPU is DeepSpeed's Adam: fast, needs a compiler, and a
    resumed run differs by 3e-7. false: PyTorch's, slower and exact."""


def has_compiler() -> bool:
    """Whether DeepSpeed can build its C++ operations here."""
    return (
        shutil.which(os.environ.get("CXX", "c++").split()[0]) is not None
        and shutil.which("ninja") is not None
    )


def read_ds_config(path: str | Path | None = None) -> dict[str, Any]:
    """The DeepSpeed settings of a file, checked: unknown keys are errors (DeepSpeed would ignore them).

    path: None is the ds_config.json beside the packages.
    """
    path = Path(DS_CONFIG if path is None else path)
    try:
        config = parse_json(path.read_bytes(), where=path.name)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; copy ds_config.json from the repository") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); compare it with ds_config.json") from None
    try:
        return check_ds_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_ds_config(config: Any) -> dict[str, Any]:
    """The configuration; ValueError unless it holds only DeepSpeed settings that LeanTAD supports."""
    if not isinstance(config, dict):
        raise ValueError(f"got {type(config).__name__}, want one JSON object")
    for key in config:
        if key in SET_BY_LEANTAD:
            raise ValueError(f"{key}: set by LeanTAD's settings (optimizer.*); remove it here")
        if key in ("fp16", "torch_autocast"):
            raise ValueError(f"{key}: not supported; use bf16, or neither for float32")
        if key not in DEEPSPEED_KEYS:
            raise ValueError(f"{key}: unknown DeepSpeed setting; {suggestion(key, DEEPSPEED_KEYS)}")
    if config.get("bf16", {}).get("enabled") and zero_stage(config) == 0:
        # Measured with DeepSpeed 0.19.8: updates are off by 26 to 30 %.
        raise ValueError("bf16: wrong updates with zero_optimization.stage 0 in DeepSpeed; use stage 1 to 3")
    if _offloads(config, "offload_optimizer") and zero_stage(config) == 0:
        raise ValueError("zero_optimization.offload_optimizer: has no effect with stage 0; use stage 1 to 3")
    if _offloads(config, "offload_param") and zero_stage(config) != 3:
        raise ValueError("zero_optimization.offload_param: has no effect below stage 3; use stage 3")
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """0: no partitioning; 1: optimizer state; 2: and gradients; 3: and parameters."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _offloads(config: dict[str, Any], key: str) -> bool:
    target: dict[str, Any] = config.get("zero_optimization", {}).get(key) or {}
    return str(target.get("device", "none")) != "none"


def deepspeed_dict(settings: OptimizerSettings, ds_config: dict[str, Any]) -> dict[str, Any]:
    """The whole DeepSpeed configuration: `ds_config`, checked already, and all that `settings` decide."""
    use_cpu_adam = _offloads(ds_config, "offload_optimizer") and settings.cpu_adam and has_compiler()
    adam = {
        "lr": settings.detector_lr,  # each group brings its own
        "betas": list(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    # torch's AdamW needs nothing compiled; without it DeepSpeed builds a fused one, on GPUs with nvcc.
    chosen = {"adam_w_mode": True} if use_cpu_adam else {"torch_adam": True}
    return {
        **ds_config,
        "train_micro_batch_size_per_gpu": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation_steps,
        "gradient_clipping": settings.gradient_clip,
        "optimizer": {"type": "AdamW", "params": adam | chosen},
    }


def parameter_groups(network: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trainable parameters of `network.encoder` and `network.detector`, each with its learning rate."""
    rates = {"encoder": settings.encoder_lr, "detector": settings.detector_lr}
    others = [n for n, p in network.named_parameters() if p.requires_grad and n.split(".")[0] not in rates]
    assert not others, f"trainable parameters outside encoder and detector: {others[:3]}"
    groups = []
    for name, lr in rates.items():
        parameters = [p for p in getattr(network, name).parameters() if p.requires_grad]
        if parameters:
            groups.append({"params": parameters, "lr": lr, "name": name})
    return groups


def lr_factor(settings: OptimizerSettings, total_steps: int) -> Callable[[int], float]:
    """Share of the highest learning rate at each optimizer step (the first is 0).

    The warmup's first step is 1 / warmup_steps, not 0: a step at rate 0 is a batch thrown away.
    """
    warmup, falls = settings.warmup_steps, settings.schedule == "cosine"

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if falls else 1.0

    return factor
