"""The memory of one GPU in a training step: what the fake step found, and what engine and loader add.

DeepSpeed's share was measured with tools/plan_tracker.py around DeepSpeed 0.19.8 on a CPU (stages 0 to 3,
with and without bf16, one process) and follows from its source for several processes; it is arithmetic here,
as are the loader's batches and the decoder. Nobody sees the workspaces of kernels (cuDNN's convolutions above
all), NVDEC's own pictures, and what PyTorch's allocator loses between blocks; HEADROOM is left for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.augment import resized_size
from pipeline.loader import DataSettings
from tools.plan_step import BOUNDARIES, FEATURES, FRAMES, GRADIENTS, WEIGHTS, WORKING, StepPeak, fake_step
from train.optimizer import zero_stage
from train.settings import Settings

GIB = 2**30
HEADROOM = 0.1  # share of the GPU that is not planned with
# Driver, torch's kernels and cuDNN, before the first tensor. Assumed, not measured: it depends on the GPU;
# nvidia-smi shows the true figure beside `python -c "import torch; torch.zeros(1).cuda(); input()"`.
CUDA_CONTEXT = 600 * 2**20
ADAM_BYTES, MASTER_BYTES = 8, 4  # per parameter: two float32 moments; the float32 copy that ZeRO updates
OPTIMIZER, BUCKETS, DECODER, CONTEXT = "optimizer state", "gradient buckets", "decoder", "CUDA context"
PARTS = (
    WEIGHTS, GRADIENTS, OPTIMIZER, BUCKETS, FRAMES, BOUNDARIES, WORKING, FEATURES, DECODER, CONTEXT,
)  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """What of ds_config.json decides memory; the defaults are DeepSpeed's own."""

    stage: int
    processes: int
    bf16: bool
    optimizer_on_gpu: bool
    weights_on_gpu: bool
    buckets: int  # that hold `bucket_size` gradients each on their way between processes
    bucket_size: int
    max_live: int  # parameters that ZeRO-3 holds whole at once

    @staticmethod
    def of(config: dict[str, Any], processes: int) -> Engine:
        """From a checked ds_config (train.optimizer.read_ds_config)."""
        zero, stage = config.get("zero_optimization", {}), zero_stage(config)
        contiguous = zero.get("contiguous_gradients", True)
        overlap = bool(zero.get("overlap_comm", stage == 3))
        buckets = 0 if stage == 0 or (stage < 3 and not contiguous) else 1 + (overlap and stage < 3)
        return Engine(
            stage=stage,
            processes=processes,
            bf16=bool(config.get("bf16", {}).get("enabled", False)),
            optimizer_on_gpu=_stays(zero, "offload_optimizer"),
            weights_on_gpu=_stays(zero, "offload_param"),
            buckets=buckets,
            bucket_size=int(zero.get("reduce_bucket_size", 5e8)),
            max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        )

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32

    def share(self, size: float) -> int:
        """Of what ZeRO divides among the processes."""
        return round(size / self.processes)

    def weights(self, whole: int) -> int:
        """Bytes, of weights that are `whole` bytes in one piece."""
        if self.stage < 3:
            return whole
        gathered = min(whole, self.max_live * self.dtype.itemsize)
        return gathered + (self.share(whole) if self.weights_on_gpu else 0)

    def optimizer(self, step: StepPeak) -> int:
        """Bytes of moments and master weights; with offload only the way out of one gradient."""
        if self.stage == 0:
            return ADAM_BYTES * step.trainable
        if not self.optimizer_on_gpu:
            return self.dtype.itemsize * step.largest_tensor
        return self.share((ADAM_BYTES + MASTER_BYTES) * step.trainable)


def _stays(zero: dict[str, Any], what: str) -> bool:
    return bool((zero.get(what) or {}).get("device", "none") == "none")


@dataclass(frozen=True)
class Source:
    """Pictures of the data set's videos, in pixels: as decoded, before the resize."""

    height: int
    width: int


def loader_frames(settings: Settings) -> int:
    """Bytes of clips besides the micro batch that is trained on.

    The other micro batches of the step, those decoded ahead, and one more while single videos become a batch.
    """
    data, batch_size = settings.data, settings.optimizer.batch_size
    batch = batch_size * data.num_clips * 3 * data.clip_frames * data.crop**2
    ahead = settings.optimizer.accumulation_steps - 1 + data.prefetch + (batch_size > 1)
    return batch * ahead


def decoder(data: DataSettings, source: Source) -> int:
    """Bytes while a video is decoded (pipeline/decode.py, pipeline/augment.py), at most.

    A piece of frames at the source's size; if they are resized, the results in float32 and 64 frames on the
    way there; if they are recoloured, the crops in float32; and the crops once more, as bytes.
    """
    frames = min(data.piece_frames, data.num_clips * data.clip_frames)
    pixels = frames * 3 * source.height * source.width
    height, width = resized_size(source.height, source.width, data.resize)
    crops, resized = frames * 3 * data.crop**2, 0
    if (height, width) != (source.height, source.width):
        resized = frames * 3 * height * width * (4 + 1) + 64 * 3 * source.height * source.width * 4
    recoloured = crops * (4 + 1) if data.color > 0 else 0
    return pixels + resized + recoloured + crops


def _moments(step: StepPeak, engine: Engine, always: dict[str, int]) -> dict[str, dict[str, int]]:
    """Bytes by part at the moments that can be the peak: in the backward pass, reducing, updating."""
    gradients = engine.dtype.itemsize * step.trainable
    kept = {WEIGHTS: engine.weights(step.parts.get(WEIGHTS, 0)), OPTIMIZER: engine.optimizer(step), **always}
    buckets = engine.buckets * engine.bucket_size * engine.dtype.itemsize
    divided = engine.share(gradients) if engine.stage == 3 and engine.optimizer_on_gpu else 0
    frames = always[FRAMES] + step.parts.get(FRAMES, 0)
    inside = {part: step.parts.get(part, 0) for part in (BOUNDARIES, WORKING, FEATURES)}
    # reducing: stage 0 flattens what it sends, stage 2 copies its share
    copied = {0: gradients, 2: engine.share(gradients)}.get(engine.stage, 0)
    # updating: Adam's scratch for one flat group, and the group's gradients as one float32 tensor
    flat = 4 * engine.share(step.largest_group) if engine.stage and engine.optimizer_on_gpu else 0
    scratch = 4 * step.largest_tensor if engine.stage == 0 else flat
    return {
        "the backward pass": {
            **kept,
            GRADIENTS: divided + step.parts.get(GRADIENTS, 0),
            BUCKETS: buckets,
            FRAMES: frames,
            **inside,
        },
        "the reduction of gradients": {
            **kept, GRADIENTS: divided + gradients + copied, BUCKETS: buckets, FRAMES: frames,
        },
        "the optimizer step": {
            **kept,
            GRADIENTS: divided + gradients + flat,
            OPTIMIZER: kept[OPTIMIZER] + scratch,
            BUCKETS: buckets if engine.stage == 3 else 0,
            FRAMES: frames,
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the moment of a step when one GPU holds most, and which moment that is."""

    parts: dict[str, int]
    moment: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def largest_part(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])


def _betas(settings: Settings) -> set[float]:
    """The coefficients at the ends of the run: a small one stores what a large one recomputes."""
    beta = settings.encoder.beta
    moves = settings.encoder.reversible and beta.schedule != "constant"
    return {beta.start, beta.end} if moves else {beta.end}


def estimate(settings: Settings, engine: Engine, *, num_classes: int, source: Source) -> Estimate:
    """The peak of a run with these settings, on each of its GPUs."""
    always = {
        FRAMES: loader_frames(settings),
        DECODER: decoder(settings.data, source),
        CONTEXT: CUDA_CONTEXT,
    }
    found = []
    for beta in _betas(settings):
        step = fake_step(settings, num_classes, dtype=engine.dtype, partitioned=engine.stage == 3, beta=beta)
        for moment, parts in _moments(step, engine, always).items():
            found.append(Estimate({part: parts.get(part, 0) for part in PARTS}, moment))
    return max(found, key=lambda one: one.total)
