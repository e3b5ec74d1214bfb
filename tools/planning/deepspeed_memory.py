"""Bytes that DeepSpeed holds on one device during a training step, by part and by moment, as arithmetic.

Measured against real engines of DeepSpeed 0.19.8 on a CPU (tests/plan_worker.py): ZeRO 0 to 3, float32 and
bf16, offload, one process and two. Read in its source and torch's, not measured, is what differs on a GPU:
torch's Adam takes a whole group at a time there (foreach) and one buffer of its size, on a CPU a tensor at a
time and two, while one of the tensor before is left; NCCL reduces in place, gloo clones. What is offloaded
does not count for a GPU. For a CPU it does: its device memory is the host's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tools.planning.step import BUCKETS, FRAMES, GRADIENTS, WEIGHTS, Reducer, StepPeak
from train.optimizer import has_compiler, offloads, read_ds_config, resolve_auto, with_precision, zero_stage
from train.settings import Settings

OPTIMIZER = "optimizer state"
MOMENTS, MASTER = 8, 4  # bytes per element: Adam's two float32 moments; the float32 weights ZeRO updates
NORM = 8  # bytes per element: DeepSpeed takes norms in float64
FLATTENED = 500_000_000  # elements that ZeRO 0 flattens and sends at once
Bytes = Counter[str]


@dataclass(frozen=True)
class DeepSpeedMemoryConfig:
    """What of ds_config.json decides memory; the defaults are DeepSpeed's own."""

    stage: int
    processes: int
    bf16: bool
    on_cpu: bool  # where the run will be, not where it is planned
    offloads_optimizer: bool
    offloads_weights: bool
    cpp_adam: bool  # an offloaded optimizer is DeepSpeed's Adam, which needs no buffers
    contiguous: bool  # gradients move into buckets
    overlap: bool
    bucket_size: int  # elements
    max_live: int  # elements of weights that ZeRO 3 prefetches or keeps for their next use
    prefetch: int  # elements that ZeRO 3 gathers at once
    averages_weights: bool  # a float32 copy beside those that the optimizer updates (train/weight_average.py)
    smallest_divided: int  # elements; of smaller tensors every process keeps a whole one beside its part

    @staticmethod
    def from_ds_config(
        ds_config: dict[str, Any],
        processes: int,
        *,
        device: Literal["cuda", "cpu"] = "cuda",
        cpp_adam: bool = True,
        averages_weights: bool = False,
    ) -> DeepSpeedMemoryConfig:
        """From a checked ds_config (train.optimizer.read_ds_config); a GPU is one that has bf16."""
        ds_config = resolve_auto(ds_config, on_gpu=device == "cuda", has_bf16=device == "cuda")
        zero, stage = ds_config.get("zero_optimization", {}), zero_stage(ds_config)
        reuse = int(zero.get("stage3_max_reuse_distance", 1e9))
        return DeepSpeedMemoryConfig(
            stage=stage,
            processes=processes,
            bf16=bool(ds_config.get("bf16", {}).get("enabled", False)),
            on_cpu=device == "cpu",
            offloads_optimizer=offloads(ds_config, "offload_optimizer"),
            offloads_weights=offloads(ds_config, "offload_param"),
            cpp_adam=cpp_adam,
            contiguous=bool(zero.get("contiguous_gradients", True)),
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
            max_live=max(reuse, int(zero.get("stage3_max_live_parameters", 1e9))),
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            averages_weights=averages_weights,
            smallest_divided=int(zero.get("stage3_param_persistence_threshold", 1e5)) + 1,
        )

    @staticmethod
    def of_run(settings: Settings, processes: int, ds_config: Path | None = None) -> DeepSpeedMemoryConfig:
        """What DeepSpeed's file and the settings of a run say. ds_config: another file than the run's."""
        run, optimizer = settings.run, settings.optimizer
        return DeepSpeedMemoryConfig.from_ds_config(
            with_precision(read_ds_config(ds_config or run.ds_config), run.precision),
            processes,
            device="cpu" if run.device == "cpu" else "cuda",
            cpp_adam=optimizer.cpu_adam and has_compiler() and not run.deterministic,
            averages_weights=optimizer.ema_decay > 0,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def reducer(self) -> Reducer | None:
        """What happens to gradients during the backward pass; None: they stay until its end."""
        if self.stage < 2 and not (self.stage and self.overlap):
            return None
        if self.stage == 3:  # a full bucket is sorted by rank; gloo clones what it reduces
            return Reducer(self.bucket_size, copies=1 + self.on_cpu, partitioned=True)
        return Reducer(self.bucket_size, kept_share=0 if self.offloads_optimizer else 1 / self.processes)

    def per_process(self, size: float) -> int:
        """The part of one process, of what ZeRO divides among all."""
        return round(size / self.processes)

    def bytes_of(self, elements: float) -> int:
        """Bytes of so many elements in the precision of the weights."""
        return round(elements * self.dtype.itemsize)


def _always_held(peak: StepPeak, config: DeepSpeedMemoryConfig) -> Bytes:
    """Weights, optimizer and ZeRO-3's buffers: what is there at any time of any step."""
    held = Bytes({WEIGHTS: peak.parts.get(WEIGHTS, 0)})
    own = config.per_process(config.bytes_of(peak.trainable))
    offloaded, visible = config.offloads_optimizer, config.on_cpu or not config.offloads_optimizer
    if config.averages_weights and visible:
        held[OPTIMIZER] += config.per_process(MASTER * peak.trainable)
    if config.stage == 0:
        return held + Bytes({OPTIMIZER: MOMENTS * peak.trainable})
    if visible:
        held[OPTIMIZER] += config.per_process((MOMENTS + MASTER) * peak.trainable)
    if offloaded and config.on_cpu:  # gradients as the optimizer wants them
        held[GRADIENTS] += config.per_process(MASTER * peak.trainable)
    if config.stage == 3:
        on_device = config.on_cpu or not config.offloads_weights
        held[WEIGHTS] = config.per_process(held[WEIGHTS]) if on_device else 0
        held[GRADIENTS] += own if visible else 0
        held[BUCKETS] += _bucket(peak, config)
    elif offloaded:  # a buffer to send one gradient; on the host another, and one for the new weights
        buffer = config.bytes_of(peak.largest_tensor)
        held[OPTIMIZER] += buffer + (buffer + own if config.on_cpu else 0)
    return held


def _bucket(peak: StepPeak, config: DeepSpeedMemoryConfig) -> int:
    """Bytes of the buckets that gradients move into; without them, ZeRO 3's wait where they are."""
    size = config.bytes_of(min(peak.trainable, config.bucket_size))  # train.optimizer.fit_buckets
    if config.contiguous:
        return size * (2 if config.overlap and config.stage < 3 else 1)
    return size if config.stage == 3 else 0


def _persistent(peak: StepPeak, config: DeepSpeedMemoryConfig) -> int:
    """Bytes of the weights that ZeRO 3 does not give back, for they are small; views, of one process."""
    if config.stage < 3 or config.processes == 1:
        return 0
    return config.bytes_of(sum(size for size in peak.tensors if size < config.smallest_divided))


def _gathered(peak: StepPeak, config: DeepSpeedMemoryConfig) -> int:
    """Bytes of whole weights under ZeRO 3.

    Of one process they are views of its partition, that is, of everything. Every module prefetches at least
    one tensor, also those without weights; so nearly always as much is gathered as is allowed to.
    """
    whole = peak.parts.get(WEIGHTS, 0)
    if config.stage < 3 or (config.processes == 1 and (config.on_cpu or not config.offloads_weights)):
        return 0
    return min(whole, _persistent(peak, config) + config.bytes_of(config.max_live))


def _prefetched(peak: StepPeak, config: DeepSpeedMemoryConfig) -> int:
    """Bytes of the tensor in which weights come in, until the last of them is used for the first time."""
    if config.stage < 3 or config.processes == 1:
        return 0
    return min(_gathered(peak, config) - _persistent(peak, config), config.bytes_of(config.prefetch))


def _reducing(peak: StepPeak, config: DeepSpeedMemoryConfig) -> Bytes:
    """After the backward pass: gradients move into the bucket, and from there to where they stay."""
    gradients = config.bytes_of(peak.trainable)
    full = config.bytes_of(min(peak.trainable, config.bucket_size))
    if config.stage == 0:
        return Bytes({GRADIENTS: gradients, BUCKETS: config.bytes_of(min(peak.trainable, FLATTENED))})
    if config.stage == 3:  # they are in the bucket already
        return Bytes({BUCKETS: (1 + config.on_cpu) * full, WEIGHTS: _persistent(peak, config)})
    bucket = Bytes({BUCKETS: _bucket(peak, config)})
    if config.offloads_optimizer:
        bucket[GRADIENTS] += NORM * peak.largest_tensor
    if not config.contiguous:
        return bucket + Bytes({GRADIENTS: gradients, BUCKETS: full})
    stay = 0 if config.offloads_optimizer else config.per_process(gradients)
    return bucket + Bytes({GRADIENTS: gradients - full + stay})


def _updating(peak: StepPeak, config: DeepSpeedMemoryConfig) -> Bytes:
    """Adam's update, group by group: its gradients as one float32 tensor, Adam's buffers, what is left.

    Below stage 3 the gradients are views of one tensor, which lives until the last group lets go of it.
    """
    if config.stage == 0:
        pairs = zip((0, *peak.tensors), peak.tensors, strict=False)
        one_by_one = max(2 * size + before for before, size in pairs)
        elements = one_by_one if config.on_cpu else max(peak.groups)
        return Bytes({GRADIENTS: config.bytes_of(peak.trainable), OPTIMIZER: 4 * elements})
    buffers = 2 if config.on_cpu else 1
    if config.offloads_optimizer:
        scratch = buffers * 4 * config.per_process(max(peak.groups))
        here = scratch if config.on_cpu and not config.cpp_adam else 0
        return Bytes({OPTIMIZER: here, WEIGHTS: _persistent(peak, config)})
    by_group = []
    for number, group in enumerate(peak.groups):
        flat = 4 * config.per_process(group)
        rest = peak.groups[number + 1 :]
        left = 0
        if rest and config.stage < 3:
            left = config.per_process(config.bytes_of(peak.trainable if config.contiguous else sum(rest)))
        by_group.append(Bytes({GRADIENTS: left + flat, OPTIMIZER: buffers * flat}))
    return max(by_group, key=lambda parts: parts.total())


def moments(peak: StepPeak, config: DeepSpeedMemoryConfig, always: dict[str, int]) -> dict[str, Bytes]:
    """Bytes by part at the moments that can be the peak. always: what else is held at any time."""
    held = _always_held(peak, config) + Bytes(always)
    clips = Bytes({FRAMES: peak.parts.get(FRAMES, 0) if config.on_cpu else 0})  # a GPU's are in `always`
    earlier = Bytes()  # ZeRO 2: the sum of the micro steps before; ZeRO 0 and 1 have it in the step itself
    if peak.accumulates and config.stage == 2 and not config.offloads_optimizer:
        earlier[GRADIENTS] = config.per_process(config.bytes_of(peak.trainable))
    in_pass = {
        name: Bytes({part: size for part, size in parts.items() if part not in (WEIGHTS, FRAMES)})
        for name, parts in (("forward", peak.forward), ("backward", peak.parts))
    }
    bucket = Bytes({BUCKETS: _bucket(peak, config) if config.stage in (1, 2) else 0})
    waiting = bucket if config.stage == 1 and peak.accumulates else Bytes()  # until the last micro step
    gathered, prefetched = (Bytes({WEIGHTS: size(peak, config)}) for size in (_gathered, _prefetched))
    return {
        "the forward pass": held + clips + earlier + waiting + gathered + prefetched + in_pass["forward"],
        "the backward pass": held + clips + earlier + bucket + gathered + in_pass["backward"],
        "the reduction of gradients": held + clips + earlier + _reducing(peak, config),
        "the optimizer step": held + clips + _updating(peak, config),
    }
