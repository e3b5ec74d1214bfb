"""The memory of one device in a training step: the fake step, and what DeepSpeed and the loader add.

DeepSpeed's part is in deepspeed_memory.py; it is arithmetic, as are the loader's batches and the decoder.
Nobody sees the workspaces of kernels (cuDNN's convolutions above all), NVDEC's own pictures, and what
PyTorch's allocator loses between blocks; HEADROOM is left for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.augment import FRAMES_IN_FLOAT, resized_size
from pipeline.settings import MAX_GPU_WORKERS, MAX_WORKERS, DataSettings, frames_per_chunk
from tools.planning.deepspeed_memory import OPTIMIZER, DeepSpeedMemoryConfig, moments
from tools.planning.step import BOUNDARIES, BUCKETS, FEATURES, FRAMES, GRADIENTS, WEIGHTS, WORKING, fake_step
from train.settings import Settings

GIB = 2**30
HEADROOM = 0.1  # share of the GPU that is not planned with
# Before the first tensor of ours, and of each of the GPU's decoders beside its frames: measured on an H100
# with torch 2.11 and DALI 2.4, see LOG.md. The context alone is 529, cuBLAS and cuDNN 164; it depends on the
# GPU, and nvidia-smi shows it beside `python -c "import torch; torch.zeros(1).cuda(); input()"`.
CUDA_CONTEXT = 800 * 2**20
DECODER_SESSION = 100 * 2**20
DECODER, CONTEXT = "decoder", "CUDA context"
PARTS = (
    WEIGHTS, GRADIENTS, OPTIMIZER, BUCKETS, FRAMES, BOUNDARIES, WORKING, FEATURES, DECODER, CONTEXT,
)  # fmt: skip


@dataclass(frozen=True)
class FrameSize:
    """Pixels of the data set's frames, as decoded, before the resize."""

    height: int
    width: int


def clip_bytes(settings: Settings, *, on_cpu: bool) -> int:
    """Bytes of clips on the device, besides the micro batch that is trained on where that is the CPU.

    A GPU has two chunks of clips (model/clip_chunks.py); all else waits in host memory.
    """
    data, videos = settings.data, settings.optimizer.batch_size
    clip = 3 * data.clip_frames * data.crop**2
    if not on_cpu:
        return 2 * clip * min(settings.encoder.clips_per_forward, videos * data.num_clips)
    return clip * data.num_clips * videos * (settings.optimizer.accumulation_steps - 1 + data.prefetch)


def decoder_bytes(data: DataSettings, source: FrameSize, *, on_cpu: bool) -> int:
    """Bytes on the device while videos are decoded (pipeline/clip_decoder.py, pipeline/augment.py), at most.

    The decode chunks at the source's size; if they are resized, the results twice, as bytes, and some frames
    of each decoder in float32; if they are recoloured or blurred, the crops in float32; and the crops once
    more. A GPU's decoders hold memory of their own; what the CPU decodes for a GPU waits in host memory.
    """
    if data.decoder == "cpu" and not on_cpu:
        return 0
    workers = data.decode_workers or (MAX_WORKERS if on_cpu else MAX_GPU_WORKERS)
    frames = max(workers, frames_per_chunk(source.height, source.width, data.decode_chunk_mib))
    frames = min(frames, data.num_clips * data.clip_frames)
    pixels = frames * 3 * source.height * source.width
    height, width = resized_size(source.height, source.width, data.resize)
    if data.least_area < 1:  # then the part of the picture becomes the square at once
        height = width = data.crop
    crops, resized = frames * 3 * data.crop**2, 0
    if (height, width) != (source.height, source.width):
        in_float = min(frames, workers * FRAMES_IN_FLOAT) * 3 * 4
        resized = frames * 3 * height * width * 2
        resized += in_float * (source.height * source.width + height * width)
    recoloured = crops * (4 + 1) if data.color > 0 or data.blur > 0 else 0
    return pixels + resized + recoloured + crops + (0 if on_cpu else workers * DECODER_SESSION)


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the moment of a step when one device holds most, and which moment that is."""

    parts: dict[str, int]
    moment: str

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def _betas(settings: Settings) -> set[float]:
    """The coefficients at the ends of the run: a small one stores what a large one recomputes."""
    beta = settings.encoder.beta_of_run
    moves = settings.encoder.reversible and beta.schedule != "constant"
    return {beta.start, beta.end} if moves else {beta.end}


def estimate(
    settings: Settings, deepspeed: DeepSpeedMemoryConfig, *, num_classes: int, source: FrameSize
) -> Estimate:
    """The peak of a run with these settings, on each of its devices."""
    always = {
        FRAMES: clip_bytes(settings, on_cpu=deepspeed.on_cpu),
        DECODER: decoder_bytes(settings.data, source, on_cpu=deepspeed.on_cpu),
        CONTEXT: 0 if deepspeed.on_cpu else CUDA_CONTEXT,
    }
    estimates = []
    for beta in _betas(settings):
        peak = fake_step(settings, num_classes, dtype=deepspeed.dtype, reducer=deepspeed.reducer, beta=beta)
        for moment, parts in moments(peak, deepspeed, always).items():
            estimates.append(Estimate({part: parts.get(part, 0) for part in PARTS}, moment))
    return max(estimates, key=lambda one: one.total)
