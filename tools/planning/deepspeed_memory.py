"""What DeepSpeed holds on one device while a step runs, by part and moment: all of it tensors that exist.

Measured against real engines of DeepSpeed 0.19.8 on a CPU (tests/plan_worker.py): ZeRO 0 to 3, float32 and
bf16, offload, one process and two. Read in its source and torch's, not measured, is what differs on a GPU:
torch's Adam takes a whole group at a time there (foreach) and one buffer of its size, on a CPU a tensor at a
time and two, while one of the tensor before is left; NCCL reduces in place, gloo clones. What is offloaded
does not count for a GPU. For a CPU it does: its device memory is the host's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tools.planning.step import BUCKETS, FRAMES, GRADIENTS, WEIGHTS, Reducer, StepPeak
from train.optimizer import zero_stage

OPTIMIZER = "optimizer state"
MOMENTS, MASTER = 8, 4  # bytes per parameter: Adam's two float32 moments; the float32 weights ZeRO updates
NORM = 8  # bytes per number: DeepSpeed takes norms in float64
FLATTENED = 500_000_000  # numbers that ZeRO 0 flattens and sends at once
Bytes = Counter[str]


@dataclass(frozen=True)
class DeepSpeedMemoryConfig:
    """What of ds_config.json decides memory; the defaults are DeepSpeed's own."""

    stage: int
    processes: int
    bf16: bool
    on_cpu: bool  # where the run is, not where it is planned
    offloads_optimizer: bool
    offloads_weights: bool
    cpp_adam: bool  # an offloaded optimizer is DeepSpeed's Adam, which needs no buffers
    contiguous: bool  # gradients move into buckets
    overlap: bool
    bucket_size: int  # numbers
    max_live: int  # numbers of weights that ZeRO 3 prefetches or keeps for their next use
    prefetch: int  # numbers that ZeRO 3 gathers at once
    smallest_divided: int  # numbers; of smaller tensors every process keeps a whole one beside its part

    @staticmethod
    def of(
        config: dict[str, Any],
        processes: int,
        *,
        device: Literal["cuda", "cpu"] = "cuda",
        cpp_adam: bool = True,
    ) -> DeepSpeedMemoryConfig:
        """From a checked ds_config (train.optimizer.read_ds_config)."""
        zero, stage = config.get("zero_optimization", {}), zero_stage(config)
        reuse = int(zero.get("stage3_max_reuse_distance", 1e9))
        return DeepSpeedMemoryConfig(
            stage=stage,
            processes=processes,
            bf16=bool(config.get("bf16", {}).get("enabled", False)),
            on_cpu=device == "cpu",
            offloads_optimizer=_leaves(zero, "offload_optimizer"),
            offloads_weights=_leaves(zero, "offload_param"),
            cpp_adam=cpp_adam,
            contiguous=bool(zero.get("contiguous_gradients", True)),
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
            max_live=max(reuse, int(zero.get("stage3_max_live_parameters", 1e9))),
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            smallest_divided=int(zero.get("stage3_param_persistence_threshold", 1e5)) + 1,
        )

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def reducer(self) -> Reducer | None:
        """What becomes of gradients during the backward pass; None: they stay until its end."""
        if self.stage < 2 and not (self.stage and self.overlap):
            return None
        if self.stage == 3:  # a full bucket is put in order of ranks; gloo clones what it reduces
            return Reducer(self.bucket_size, copies=1 + self.on_cpu, partitioned=True)
        return Reducer(self.bucket_size, kept_share=0 if self.offloads_optimizer else 1 / self.processes)

    def share(self, size: float) -> int:
        """Of what ZeRO divides among the processes."""
        return round(size / self.processes)

    def numbers(self, count: float) -> int:
        """Bytes of so many numbers in the precision of the weights."""
        return round(count * self.dtype.itemsize)


def _leaves(zero: dict[str, Any], what: str) -> bool:
    return bool((zero.get(what) or {}).get("device", "none") != "none")


def _held(step: StepPeak, engine: DeepSpeedMemoryConfig) -> Bytes:
    """Weights, optimizer and ZeRO-3's buffers: what is there at any time of any step."""
    held = Bytes({WEIGHTS: step.parts.get(WEIGHTS, 0)})
    own = engine.share(engine.numbers(step.trainable))
    offloaded, visible = engine.offloads_optimizer, engine.on_cpu or not engine.offloads_optimizer
    if engine.stage == 0:
        return held + Bytes({OPTIMIZER: MOMENTS * step.trainable})
    if visible:
        held[OPTIMIZER] += engine.share((MOMENTS + MASTER) * step.trainable)
    if offloaded and engine.on_cpu:  # gradients as the optimizer wants them
        held[GRADIENTS] += engine.share(MASTER * step.trainable)
    if engine.stage == 3:
        on_device = engine.on_cpu or not engine.offloads_weights
        held[WEIGHTS] = engine.share(held[WEIGHTS]) if on_device else 0
        held[GRADIENTS] += own if visible else 0
        held[BUCKETS] += _bucket(step, engine)
    elif offloaded:  # the way out of one gradient; on the host another, and of the new weights the way back
        way_out = engine.numbers(step.largest_tensor)
        held[OPTIMIZER] += way_out + (way_out + own if engine.on_cpu else 0)
    return held


def _bucket(step: StepPeak, engine: DeepSpeedMemoryConfig) -> int:
    """Bytes of the buckets that gradients move into; without them, ZeRO 3's wait where they are."""
    if engine.contiguous:
        return engine.numbers(engine.bucket_size) * (2 if engine.overlap and engine.stage < 3 else 1)
    return engine.numbers(min(step.trainable, engine.bucket_size)) if engine.stage == 3 else 0


def _persistent(step: StepPeak, engine: DeepSpeedMemoryConfig) -> int:
    """Bytes of the weights that ZeRO 3 does not give back, for they are small; views, of one process."""
    if engine.stage < 3 or engine.processes == 1:
        return 0
    return engine.numbers(sum(size for size in step.tensors if size < engine.smallest_divided))


def _gathered(step: StepPeak, engine: DeepSpeedMemoryConfig) -> int:
    """Bytes of whole weights under ZeRO 3.

    Of one process they are views of its partition, that is, of everything. Every module prefetches at least
    one tensor, also those without weights; so nearly always as much is gathered as is allowed to.
    """
    whole = step.parts.get(WEIGHTS, 0)
    if engine.stage < 3 or (engine.processes == 1 and (engine.on_cpu or not engine.offloads_weights)):
        return 0
    return min(whole, _persistent(step, engine) + engine.numbers(engine.max_live))


def _arriving(step: StepPeak, engine: DeepSpeedMemoryConfig) -> int:
    """Bytes of the tensor in which weights come in, until the last of them is used for the first time."""
    if engine.stage < 3 or engine.processes == 1:
        return 0
    return min(_gathered(step, engine) - _persistent(step, engine), engine.numbers(engine.prefetch))


def _reducing(step: StepPeak, engine: DeepSpeedMemoryConfig) -> Bytes:
    """After the backward pass: gradients move into the bucket, and from there to where they stay."""
    gradients = engine.numbers(step.trainable)
    full = engine.numbers(min(step.trainable, engine.bucket_size))
    if engine.stage == 0:
        return Bytes({GRADIENTS: gradients, BUCKETS: engine.numbers(min(step.trainable, FLATTENED))})
    if engine.stage == 3:  # they are in the bucket already
        return Bytes({BUCKETS: (1 + engine.on_cpu) * full, WEIGHTS: _persistent(step, engine)})
    bucket = Bytes({BUCKETS: _bucket(step, engine)})
    if engine.offloads_optimizer:
        bucket[GRADIENTS] += NORM * step.largest_tensor
    if not engine.contiguous:
        return bucket + Bytes({GRADIENTS: gradients, BUCKETS: full})
    stay = 0 if engine.offloads_optimizer else engine.share(gradients)
    return bucket + Bytes({GRADIENTS: gradients - full + stay})


def _updating(step: StepPeak, engine: DeepSpeedMemoryConfig) -> Bytes:
    """Adam's turn, group by group: its gradients as one float32 tensor, Adam's buffers, what is left.

    Below stage 3 the gradients are views of one tensor, which lives until the last group lets go of it.
    """
    if engine.stage == 0:
        one_by_one = max(
            2 * now + before for before, now in zip((0, *step.tensors), step.tensors, strict=False)
        )
        numbers = one_by_one if engine.on_cpu else max(step.groups)
        return Bytes({GRADIENTS: engine.numbers(step.trainable), OPTIMIZER: 4 * numbers})
    buffers = 2 if engine.on_cpu else 1
    if engine.offloads_optimizer:
        scratch = buffers * 4 * engine.share(max(step.groups))
        here = scratch if engine.on_cpu and not engine.cpp_adam else 0
        return Bytes({OPTIMIZER: here, WEIGHTS: _persistent(step, engine)})
    found = []
    for number, group in enumerate(step.groups):
        flat = 4 * engine.share(group)
        rest = step.groups[number + 1 :]
        left = 0
        if rest and engine.stage < 3:
            left = engine.share(engine.numbers(step.trainable if engine.contiguous else sum(rest)))
        found.append(Bytes({GRADIENTS: left + flat, OPTIMIZER: buffers * flat}))
    return max(found, key=lambda one: one.total())


def moments(step: StepPeak, engine: DeepSpeedMemoryConfig, always: dict[str, int]) -> dict[str, Bytes]:
    """Bytes by part at the moments that can be the peak. always: what others hold at any time."""
    held = _held(step, engine) + Bytes(always)
    clips = Bytes({FRAMES: step.parts.get(FRAMES, 0)})
    earlier = Bytes()  # ZeRO 2: the sum of the micro steps before; ZeRO 0 and 1 have it in the step itself
    if step.accumulates and engine.stage == 2 and not engine.offloads_optimizer:
        earlier[GRADIENTS] = engine.share(engine.numbers(step.trainable))
    passing = {
        name: Bytes({part: size for part, size in parts.items() if part not in (WEIGHTS, FRAMES)})
        for name, parts in (("forward", step.forward), ("backward", step.parts))
    }
    bucket = Bytes({BUCKETS: _bucket(step, engine) if engine.stage in (1, 2) else 0})
    waiting = bucket if engine.stage == 1 and step.accumulates else Bytes()  # until the last micro step
    whole, coming = (Bytes({WEIGHTS: size(step, engine)}) for size in (_gathered, _arriving))
    return {
        "the forward pass": held + clips + earlier + waiting + whole + coming + passing["forward"],
        "the backward pass": held + clips + earlier + bucket + whole + passing["backward"],
        "the reduction of gradients": held + clips + earlier + _reducing(step, engine),
        "the optimizer step": held + clips + _updating(step, engine),
    }
