"""AdamW's settings, and the DeepSpeed configuration made of them and ds_config.json.

Batch size, learning rates, optimizer and clipping are settings of LeanTAD; ZeRO, offload, precision and
monitors are in ds_config.json. Every key that decides a number is written, for DeepSpeed's silent defaults
are not neutral: it clips gradients at norm 1 where nothing is set.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.files import parse_json
from pipeline.text import suggestion
from settings_group import SettingsGroup
from train.extensions import cxx_compiler

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

# Of the settings in DeepSpeed's file that LeanTAD reads itself; "auto": resolve_auto decides.
CHOICES: dict[str, tuple[object, ...]] = {
    "stage": (0, 1, 2, 3),
    "enabled": (True, False, "auto"),
    "device": ("none", "cpu", "nvme", "auto"),
    "pin_memory": (True, False, "auto"),
}


Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(SettingsGroup):
    """AdamW with a learning rate each for encoder and detector, warmup, and a schedule over the whole run."""

    encoder_lr: float = Field(default=5e-7, ge=0)
    """Highest learning rate of the encoder. With pretrained weights below the detector's: 5e-7 to 1e-5 in the
    recipes for public data sets, 1e-4 in those for your own videos, which are few. From random weights nearer
    to it, or equal (5e-3). Too large forgets what was pretrained, too small adds nothing."""

    detector_lr: float = Field(default=5e-4, ge=0)
    """Highest learning rate of the detector. Larger trains faster, until the loss no longer falls."""

    layer_lrs: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Factors of the learning rate by the beginning of parameter names, whole parts of them, such as
    {encoder: 0.1, detector: 0.5}; the longest that fits counts. Smaller ones keep early layers
    nearer to what was pretrained; 0 trains nothing, but saves no memory, as encoder.frozen_stages does."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Share by which an optimizer step shrinks the weights of encoder and detector, times the learning rate.
    Larger overfits less and fits less."""

    decay_weights_alone: bool = True
    """Whether optimizer.weight_decay leaves out norms, biases and scales, as in ActionFormer and OpenTAD.
    false shrinks them, too, as ETAD does."""

    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay per optimizer step of the running means of the gradient and of its square, each below 1. Nearer
    to 1 averages over more steps."""

    eps: float = Field(default=1e-8, gt=0)
    """Number added to the root of the gradient's mean square. Larger is steadier where gradients are tiny,
    and moves the weights there less."""

    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rates rise from lr / warmup_steps to lr; 0 starts at lr. More
    keep the first steps, of a detector that knows nothing, from spoiling the encoder."""

    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rates after the warmup: cosine falls to 0 at the end of the run, along half a cosine; constant
    stays; step falls at once, see optimizer.step_share."""

    step_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps after the warmup at which optimizer.schedule step multiplies the learning rates by
    optimizer.step_factor, and again after as many more. ETAD falls once, after 5 of 6 epochs: 0.83333."""

    step_factor: float = Field(default=0.1, gt=0, lt=1)
    """What optimizer.schedule step multiplies the learning rates by. Smaller nearly stops the training there,
    larger goes on with less noise."""

    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down to it. Smaller holds
    back outliers more, 0 clips nothing."""

    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Share that an average of the weights keeps in each optimizer step (EMA; others take 0.999); validation,
    eval and predict then use the average. Nearer to 1 averages over more steps, about 1 / (1 - ema_decay),
    and in a shorter run still holds the first weights; 0: no average."""

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
    return shutil.which(cxx_compiler()) is not None and shutil.which("ninja") is not None


def read_ds_config(path: str | Path | None = None) -> dict[str, Any]:
    """The DeepSpeed settings of a file, checked: unknown keys are errors (DeepSpeed would ignore them).

    path: None is the ds_config.json beside the packages. What another file leaves out, at any depth, is
    taken from that one, not from DeepSpeed. "auto" stays as it is: `resolve_auto` decides it.
    """
    own = _read_json(DS_CONFIG)
    path = Path(DS_CONFIG if path is None else path)
    values = _read_json(path)
    try:
        return check_ds_config(merged(own, check_object(values)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), where=path.name)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; copy ds_config.json from the repository") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); compare it with ds_config.json") from None


def check_object(value: Any, where: str = "") -> dict[str, Any]:
    """The value, which must be a JSON object; where: its name in the file, with a colon."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}got {json.dumps(value)}, want a JSON object, {{...}}")
    return value


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` on top of `defaults`, objects key by key at any depth; neither is changed."""
    result = {**defaults, **values}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            result[key] = merged(defaults[key], value)
    return result


def check_ds_config(values: Any) -> dict[str, Any]:
    """The configuration; ValueError unless it holds only DeepSpeed settings that LeanTAD supports."""
    config = check_object(values)
    for key in config:
        if key in SET_BY_LEANTAD:
            raise ValueError(f"{key}: set by LeanTAD's settings (optimizer.*); remove it here")
        if key in ("fp16", "torch_autocast"):
            raise ValueError(f"{key}: not supported; use bf16, or neither for float32")
        if key not in DEEPSPEED_KEYS:
            raise ValueError(f"{key}: unknown DeepSpeed setting; {suggestion(key, DEEPSPEED_KEYS)}")
    _check_values(config)
    if _bf16_enabled(config) is True and zero_stage(config) == 0:
        # Measured with DeepSpeed 0.19.8: updates are off by 26 to 30 %.
        raise ValueError("bf16: wrong updates with zero_optimization.stage 0 in DeepSpeed; use stage 1 to 3")
    if offloads(config, "offload_optimizer") and zero_stage(config) == 0:
        raise ValueError("zero_optimization.offload_optimizer: has no effect with stage 0; use stage 1 to 3")
    if offloads(config, "offload_param") and zero_stage(config) != 3:
        raise ValueError("zero_optimization.offload_param: has no effect below stage 3; use stage 3")
    return config


def _check_values(config: dict[str, Any]) -> None:
    """ValueError for a value that LeanTAD reads itself and that is none of those it can be."""
    zero = check_object(config.get("zero_optimization", {}), "zero_optimization: ")
    bf16 = check_object(config.get("bf16", {}), "bf16: ")
    check_object(config.get("tensorboard", {}), "tensorboard: ")
    found = {"zero_optimization.stage": zero.get("stage", 0), "bf16.enabled": bf16.get("enabled", False)}
    for name in ("offload_optimizer", "offload_param"):
        where = f"zero_optimization.{name}"
        target = check_object(zero.get(name) or {}, f"{where}: ")
        found[f"{where}.device"] = target.get("device", "none")
        found[f"{where}.pin_memory"] = target.get("pin_memory", False)
    for name, value in found.items():
        want = CHOICES[name.rpartition(".")[2]]
        if not any(type(value) is type(one) and value == one for one in want):
            choices = ", ".join(json.dumps(one) for one in want)
            raise ValueError(f"{name}: got {json.dumps(value)}, want one of {choices}")


def zero_stage(config: dict[str, Any]) -> int:
    """0: no partitioning; 1: optimizer state; 2: and gradients; 3: and parameters."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _bf16_enabled(config: dict[str, Any]) -> Any:
    """true, false, or "auto"."""
    return config.get("bf16", {}).get("enabled", False)


def offloads(config: dict[str, Any], key: str) -> bool:
    """Whether "offload_optimizer" or "offload_param" moves anything to the host; "auto" does not yet."""
    target: dict[str, Any] = config.get("zero_optimization", {}).get(key) or {}
    return str(target.get("device", "none")) not in ("none", "auto")


def resolve_auto(config: dict[str, Any], *, on_gpu: bool, has_bf16: bool) -> dict[str, Any]:
    """The checked configuration with every "auto" decided for a device; ZeRO 0 has neither of the first two.

    bf16: if the device has it. Optimizer state, and with it Adam, on the host: on a GPU (on a CPU there is no
    other place). Pinned memory: for what lies on the host of a GPU.
    """
    zero, has_shards = config.get("zero_optimization", {}), zero_stage(config) > 0
    automatic = {"offload_optimizer": "cpu" if on_gpu and has_shards else "none", "offload_param": "none"}
    resolved = {}
    for name, device in automatic.items():
        target = {"device": "none", "pin_memory": "auto", **(zero.get(name) or {})}
        target["device"] = device if target["device"] == "auto" else target["device"]
        if target["pin_memory"] == "auto":
            target["pin_memory"] = on_gpu and target["device"] != "none"
        resolved[name] = target
    bf16 = _bf16_enabled(config)
    enabled = has_bf16 and has_shards if bf16 == "auto" else bf16
    return merged(config, {"zero_optimization": resolved, "bf16": {"enabled": enabled}})


def with_precision(config: dict[str, Any], precision: Literal["auto", "bf16", "float32"]) -> dict[str, Any]:
    """The configuration with the setting run.precision; ValueError if the file has another one."""
    if precision == "auto":
        return config
    wanted, stated = precision == "bf16", _bf16_enabled(config)
    if stated not in ("auto", wanted):
        raise ValueError(
            f"run.precision: got {precision}, but run.ds_config has bf16.enabled {json.dumps(stated)}; "
            "leave one of them at auto"
        )
    return check_ds_config(merged(config, {"bf16": {"enabled": wanted}}))


def fit_buckets(config: dict[str, Any], num_trainable: int) -> dict[str, Any]:
    """The configuration with a bucket for gradients that is no larger than all of them (elements).

    DeepSpeed allocates it whole, whatever the network needs.
    """
    size = config.get("zero_optimization", {}).get("reduce_bucket_size", num_trainable)
    return merged(config, {"zero_optimization": {"reduce_bucket_size": max(1, min(size, num_trainable))}})


def deepspeed_dict(settings: OptimizerSettings, ds_config: dict[str, Any]) -> dict[str, Any]:
    """The whole DeepSpeed configuration: `ds_config`, checked and resolved, and what `settings` decide."""
    use_cpu_adam = offloads(ds_config, "offload_optimizer") and settings.cpu_adam and has_compiler()
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
