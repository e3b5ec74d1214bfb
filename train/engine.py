"""Builds a DeepSpeed engine from settings and ds_config.json, saves and loads its state.

The only file that imports deepspeed, which is untyped: an engine is `Any`.
`deepspeed` is imported when first needed: it takes seconds, and much of the project needs none of it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError  # the error alone: nothing here unpickles
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from model.recompute import RngState
from pipeline.files import read_json, write_json
from pipeline.text import short
from train.checkpoint import STATE_FILE, read_safetensors
from train.distributed import (
    barrier,
    complete_launch_variables,
    destroy_process_group,
    device_of_rank,
    group_options,
    rank,
    world_size,
)
from train.extensions import ask_cpu_once, load_extensions, use_own_folder
from train.gpu_memory import spare_memory
from train.learning_rate import lr_factor
from train.numerics import has_bf16
from train.optimizer import (
    OptimizerSettings,
    deepspeed_dict,
    fit_buckets,
    has_compiler,
    resolve_auto,
)
from train.parameter_groups import WITHOUT_DECAY, group_sizes, parameter_groups

STATE_TAG = "engine"  # DeepSpeed's name for the folder inside the one it is given


def _deepspeed() -> Any:
    """Import DeepSpeed for the accelerator that torch has, with ninja on the PATH."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    beside_python = Path(sys.executable).parent
    if shutil.which("ninja") is None and (beside_python / "ninja").exists():
        os.environ["PATH"] = f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}"
    if os.environ.get("DS_ACCELERATOR") == "cpu" and not has_compiler():
        raise ValueError(
            "C++ compiler: g++ or ninja is missing, and DeepSpeed builds its CPU communication with them; "
            "install both (Debian, Ubuntu: apt-get install g++ ninja-build)"
        )
    use_own_folder()
    # DeepSpeed calls collectives that torch has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    import deepspeed

    return deepspeed


def compile_ops() -> None:
    """Build DeepSpeed's C++ parts for the CPU: communication, and Adam for offloaded optimizer state.

    It happens at first use as well; `make setup` does it beforehand.
    """
    _load_extensions("ShareMemCommBuilder", "CPUAdamBuilder")


def _load_extensions(*names: str) -> None:
    """Load extensions of DeepSpeed for the accelerator in use, by their builders' names; built if need be."""
    _deepspeed()
    from deepspeed.accelerator import get_accelerator

    if "CPUAdamBuilder" in names:
        ask_cpu_once()  # only then: py-cpuinfo runs programs when it is imported
    load_extensions([get_accelerator().create_op_builder(name) for name in names])


# -------------------------------------------------------------------------------------------- processes


def start_process_group(device: torch.device | str) -> torch.device:
    """Join the launcher's processes, or be the only one; NCCL for tensors on GPUs, gloo for the others.

    Returns this process's device: `cuda:LOCAL_RANK` for "cuda", else the device itself.
    """
    device = torch.device(device)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _deepspeed()
    complete_launch_variables()
    spare_memory(device)
    device = device_of_rank(device)
    if not dist.is_initialized():
        if device.type == "cpu":
            _load_extensions("ShareMemCommBuilder")
        dist.init_process_group(**group_options(device))
        if world_size() == 1:  # a run that fails must not leave it to NCCL, which complains
            atexit.register(destroy_process_group)
        with redirect_stdout(StringIO()):  # it says in each run that its operation was built
            deepspeed.init_distributed(
                dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False
            )
    return device


# ----------------------------------------------------------------------------------------------- engine


def build_engine(
    network: nn.Module,
    settings: OptimizerSettings,
    *,
    ds_config: dict[str, Any],
    total_steps: int,
    device: torch.device | None = None,
) -> Any:
    """A DeepSpeed engine around `network`, whose `encoder` and `detector` each have a learning rate.

    Use: `loss = engine(...)`, `engine.backward(loss)` once per micro step, `engine.step()`. total_steps:
    optimizer steps of the whole run, the length of the schedule. ds_config: of `read_ds_config`; what is
    "auto" in it is decided here, by the device. All processes call it, after
    `start_process_group`; a single one may leave that to this function (device: as there).
    """
    deepspeed = _deepspeed()
    if not dist.is_initialized():
        start_process_group(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = deepspeed_dict(settings, _resolved(ds_config, network))
    if config["optimizer"]["params"].get("adam_w_mode"):  # DeepSpeed's Adam for CPUs
        _load_extensions("CPUAdamBuilder")
    factor, groups = lr_factor(settings, total_steps), parameter_groups(network, settings)
    sizes = group_sizes(groups)  # before they are partitioned
    try:
        engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=groups,
            config=config,
            lr_scheduler=lambda optimizer: LambdaLR(optimizer, factor),
            dist_init_required=False,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a value that only DeepSpeed knows
        raise ValueError(f"run.ds_config: DeepSpeed refuses it ({short(error, 200)})") from error
    engine.checkpoint_engine.load, engine.group_sizes = _load_safely, sizes
    return engine


def _resolved(ds_config: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """The configuration for the device in use, and for the size of this network."""
    from deepspeed.accelerator import get_accelerator

    device = torch.device(get_accelerator().device_name())
    config = resolve_auto(ds_config, on_gpu=device.type == "cuda", has_bf16=has_bf16(device))
    return fit_buckets(config, sum(p.numel() for p in network.parameters() if p.requires_grad))


def precision_of(engine: Any) -> Literal["bf16", "float32"]:
    """What weights and activations are."""
    return "bf16" if engine.bfloat16_enabled() else "float32"


def learning_rates(engine: Any) -> dict[str, float]:
    """The rate of the next step by group name; a group without weight decay has that of its other half."""
    groups = engine.optimizer.param_groups
    return {group["name"].removesuffix(WITHOUT_DECAY): group["lr"] for group in groups}


def log_scalars(engine: Any, step: int, values: dict[str, float]) -> None:
    """Write numbers to the monitors that ds_config.json switches on (TensorBoard); rank 0 writes."""
    if engine.monitor.enabled:
        engine.monitor.write_events([(name, float(value), step) for name, value in values.items()])


# ------------------------------------------------------------------------------------------------ state


def _safe_classes() -> list[Any]:
    """What DeepSpeed's checkpoints hold besides tensors and plain containers."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _load_safely(path: str, map_location: Any = None) -> Any:
    """Replaces DeepSpeed's own load, which would run any code that a file carries."""
    try:
        with torch.serialization.safe_globals(_safe_classes()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged bytes; what comes of them is one line
            return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError:  # torch's own message tells people to load it unsafely
        raise ValueError(
            f"{path}: refused, it is damaged or holds objects that could run code; use another checkpoint"
        ) from None
    except Exception as error:  # whatever torch and zipfile meet in damaged bytes
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: damaged ({reason}); use another checkpoint") from None


def _partitioning(engine: Any) -> dict[str, Any]:
    """How the training state is partitioned over ranks; a saved one loads only where it is the same."""
    partitioning: dict[str, Any] = {
        "processes": world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "bf16": engine.bfloat16_enabled(),
    }
    if engine.zero_round_robin_gradients():  # ZeRO 1 and 2 then have the parameters in another order
        partitioning["round_robin_gradients"] = True
    return partitioning


def _rng_file(folder: Path) -> Path:
    return folder / f"rng_{rank():05d}.safetensors"


def save_state(engine: Any, folder: str | Path) -> None:
    """Write all that a run needs to go on: parameters, optimizer, schedule, step counters, random generators.

    Every rank calls it with the same folder: a temporary one that is renamed afterwards, so that an
    incomplete state is never taken for a complete one.
    """
    folder = Path(folder)
    engine.save_checkpoint(str(folder), tag=STATE_TAG)
    rng = RngState.capture(torch.device(engine.device))
    save_file({"cpu": rng.cpu} | ({"cuda": rng.cuda} if rng.cuda is not None else {}), _rng_file(folder))
    if rank() == 0:
        write_json(folder / STATE_FILE, {"layout": _partitioning(engine), "groups": engine.group_sizes})
    barrier()


def _sizes(groups: Any) -> str:
    """Names and elements of groups of parameters; a state of an older LeanTAD has none."""
    if not isinstance(groups, dict):
        return "not stated, by an older LeanTAD"
    return ", ".join(f"{name}: {size}" for name, size in groups.items())


def load_state(engine: Any, folder: str | Path) -> None:
    """Load what `save_state` wrote into a new engine.

    Bitwise: the steps that follow are those of the run that did not stop (with DeepSpeed's Adam for CPUs they
    differ by some 3e-7). Nothing in the files is executed. Every rank calls it. ValueError if the folder
    holds no state, or one saved by another number of processes, ZeRO stage or precision, or with other groups
    of parameters.
    """
    folder = Path(folder)
    try:
        state = read_json(folder / STATE_FILE)
        saved, groups = state["layout"], state.get("groups")
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}: no training state in it; want a folder with {STATE_FILE}") from None
    partitioning = _partitioning(engine)
    if saved != partitioning:
        raise ValueError(
            f"{folder}: saved with {saved}, now {partitioning}; resume with what it was saved with, "
            "or start a new run from its weights"
        )
    if groups != engine.group_sizes:
        raise ValueError(
            f"{folder}: saved with other groups of parameters ({_sizes(groups)}; now "
            f"{_sizes(engine.group_sizes)}); resume with the optimizer.layer_lrs, "
            "optimizer.decay_weights_alone and frozen parts of that run, or start a new run from its weights"
        )
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=STATE_TAG)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(
            f"{folder}: its state is of another network than settings.yaml describes; put settings.yaml back "
            "as the run wrote it, or start a new run"
        ) from None
    if path is None:
        raise ValueError(
            f"{folder}: DeepSpeed finds no state under {STATE_TAG}/; resume from another checkpoint"
        )
    rng = read_safetensors(_rng_file(folder))
    RngState(torch.device(engine.device), rng["cpu"], rng.get("cuda")).restore()


def _full_value(value: Tensor) -> Tensor:
    """One complete tensor on the CPU: float32 from the optimizer's master copy if there is one."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(value) if value.requires_grad else None
    if whole is None:
        with GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            whole = value.detach().cpu().clone()
    return whole.to("cpu", torch.float32 if whole.is_floating_point() else whole.dtype).contiguous()


def full_state_dict(engine: Any) -> dict[str, Tensor]:
    """The network's complete state_dict on the CPU, floating point in float32, for every ZeRO mode.

    Every rank calls it, and every rank gets it.
    """
    return {name: _full_value(value) for name, value in engine.module.state_dict(keep_vars=True).items()}


def master_weights(engine: Any) -> list[Tensor]:
    """This rank's share of the trainable weights: the float32 tensors that the optimizer updates, no copies.

    With ZeRO 0 whole weights, else flat partitions. ValueError if DeepSpeed keeps them out of reach (NVMe).
    """
    optimizer = engine.optimizer
    if getattr(optimizer, "swap_optimizer", False):
        raise ValueError("optimizer.ema_decay: not with an optimizer that is offloaded to nvme; use cpu")
    for partitions in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        if hasattr(optimizer, partitions):
            return [partition.detach() for partition in getattr(optimizer, partitions)]
    if engine.zero_optimization():  # data_types.grad_accum_dtype makes another optimizer of it
        raise ValueError("optimizer.ema_decay: not with data_types in run.ds_config; remove them there")
    return [weights.detach() for group in optimizer.param_groups for weights in group["params"]]


def load_master_weights(engine: Any) -> None:
    """Give the network the values of the optimizer's float32 weights, as a step does. All ranks call it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    for weights in engine.module.parameters():
        whole = safe_get_full_fp32_param(weights) if weights.requires_grad else None
        if whole is not None:  # with ZeRO 0 they are the network's own
            with GatheredParameters([weights], modifier_rank=0, enabled=hasattr(weights, "ds_id")):
                weights.data.copy_(whole)
