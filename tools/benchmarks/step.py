"""One training step in each way to save memory: its seconds, its peak, and its gradient against autograd's.

Each mode trains the same encoder under a DeepSpeed engine, as a run does, with a linear head in the
detector's place. Dropout is off and batch norms use their stored statistics, so that modes which compute the
same function give the same loss.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.encode import sampled_encode
from model.rewire import rewire, rewired_stages
from model.sampling import num_kept, sample_clips
from tools.benchmarks.common import check_backbone
from tools.benchmarks.memory import MIB, Encoder
from tools.benchmarks.trackers import LiveBytes
from tools.benchmarks.trained import build, checkpoint_blocks
from train.engine import build_engine
from train.optimizer import OptimizerSettings, check_ds_config, merged, read_ds_config

TOTAL_STEPS = 1000  # of the learning rate's schedule
OUT_OF_MEMORY = "out of memory"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Mode:
    """A way to train; recompute: what runs again in the backward, "blocks", "clips", or nothing."""

    name: str
    recompute: str = ""
    reversible: bool = False
    sampled: bool = False
    keep_graphs: bool = False


MODES = (
    Mode("plain"),
    Mode("blocks checkpointed", recompute="blocks"),
    Mode("clips checkpointed", recompute="clips"),
    Mode("reversible", reversible=True),
    Mode("sampled", sampled=True),
    Mode("sampled, graphs kept", sampled=True, keep_graphs=True),
    Mode("sampled + reversible", sampled=True, reversible=True),
    Mode("sampled + reversible, states kept", sampled=True, reversible=True, keep_graphs=True),
)


@dataclass(frozen=True)
class StepOptions:
    """One run of the benchmark; every combination of dtypes, zero stages and offload is measured."""

    backbone: str
    clip: tuple[int, int, int, int]  # C, L, H, W
    clips: int
    batch: int
    ratio: float
    clips_per_forward: int
    dtypes: tuple[str, ...]  # float32, bf16
    zero: tuple[int, ...]
    offload: tuple[str, ...]  # none, optimizer, all
    repeats: int
    device: str  # cpu or cuda

    def check(self) -> None:
        """ValueError for a backbone or ratio that cannot be, before anything is measured."""
        check_backbone(self.backbone)
        num_kept(self.clips, self.ratio)

    def setups(self) -> Iterator[Setup]:
        """Every combination; parameters are offloaded by ZeRO-3 alone."""
        for dtype in self.dtypes:
            for stage in self.zero:
                for offload in self.offload:
                    if (stage or offload == "none") and (stage == 3 or offload != "all"):
                        yield Setup(dtype, stage, offload)


@dataclass(frozen=True)
class Setup:
    """What all modes of a group have in common."""

    dtype: str
    zero: int
    offload: str

    def ds_config(self) -> dict[str, Any]:
        """The DeepSpeed settings: ds_config.json, changed."""
        zero: dict[str, Any] = {"stage": self.zero}
        zero["offload_optimizer"] = {"device": "none" if self.offload == "none" else "cpu"}
        zero["offload_param"] = {"device": "cpu" if self.offload == "all" else "none"}
        changes = {"zero_optimization": zero, "bf16": {"enabled": self.dtype == "bf16"}}
        return check_ds_config(merged(read_ds_config(), changes))


@dataclass(frozen=True)
class StepRow:
    """A mode's least seconds and peak MiB, above what lies there between steps, also as multiples of plain's.

    loss_off, gradient_off: relative, of one step from the same weights, against ordinary autograd of the same
    function and the same clips with a gradient. None: not measured here, or the device's memory is too small
    (state: OUT_OF_MEMORY if it is too small for the mode itself).
    """

    device: str
    dtype: str
    zero: int
    offload: str
    mode: str
    seconds: float | None = None
    times_plain: float | None = None
    peak_mib: float | None = None
    peak_of_plain: float | None = None
    loss_off: float | None = None
    gradient_off: float | None = None
    state: str = ""


class StepNetwork(nn.Module):
    """An encoder and a head with one loss; (B, N, C, L, H, W) uint8 clips, (B, M) kept ones -> the loss."""

    def __init__(self, options: StepOptions, mode: Mode):
        super().__init__()
        self.mode, self.clips_per_forward = mode, options.clips_per_forward
        backbone = build(options.backbone, "cpu").eval()
        if mode.recompute == "blocks":
            checkpoint_blocks(backbone)
        if mode.reversible:
            rewire(backbone)
        self.encoder = Encoder(backbone)
        torch.manual_seed(1)
        self.detector = nn.LazyConv1d(8, 1)  # features of each step to eight scores
        self.to(options.device)
        with torch.no_grad():
            self.detector(self.encoder(make_clips(options)[0, :1]))

    def forward(self, clips: Tensor, kept: Tensor) -> Tensor:
        scores = self.detector(self._features(clips, kept)).float()  # (B, 8, N * t)
        targets = torch.linspace(-1, 1, scores.shape[-1], device=scores.device)
        loss: Tensor = (scores - targets).square().mean()
        return loss

    def _features(self, clips: Tensor, kept: Tensor) -> Tensor:
        """(B, D, N * t)"""
        if self.mode.sampled:
            return sampled_encode(
                self.encoder,
                clips,
                kept,
                clips_per_forward=self.clips_per_forward,
                keep_graphs=self.mode.keep_graphs,
            )
        encode: Any = self.encoder
        if self.mode.recompute == "clips":
            encode = partial(checkpoint, self.encoder, use_reentrant=False)
        return self.full_features(clips, encode)

    def full_features(self, clips: Tensor, encode: Any) -> Tensor:
        """(B, D, N * t) of all clips in one graph."""
        chunks = torch.split(clips.flatten(0, 1), self.clips_per_forward)
        features = torch.cat([encode(chunk) for chunk in chunks])  # (B * N, D, t)
        by_video = torch.unflatten(features, 0, tuple(clips.shape[:2]))  # (B, N, D, t)
        return by_video.transpose(1, 2).flatten(2)


class ReferenceNetwork(StepNetwork):
    """The same function, with all activations kept by autograd; clips that are not kept have no gradient."""

    def __init__(self, options: StepOptions, mode: Mode):
        super().__init__(options, Mode(mode.name, reversible=mode.reversible, sampled=mode.sampled))
        for stage in rewired_stages(self.encoder) if mode.reversible else ():
            stage.invert = False

    def _features(self, clips: Tensor, kept: Tensor) -> Tensor:
        features = self.full_features(clips, self.encoder)
        if not self.mode.sampled:
            return features
        by_clip = torch.unflatten(features, 2, (clips.shape[1], -1))  # (B, D, N, t)
        is_kept = torch.zeros(clips.shape[:2], dtype=torch.bool).scatter_(1, kept.cpu(), True)
        mask = is_kept.to(features.device)[:, None, :, None]
        return torch.where(mask, by_clip, by_clip.detach()).flatten(2)


def make_clips(options: StepOptions) -> Tensor:
    """Random clips of a fixed seed: (B, N, C, L, H, W) uint8."""
    shape = (options.batch, options.clips, *options.clip)
    clips = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return clips.to(options.device)


def kept_clips(options: StepOptions) -> Tensor:
    """(B, M): the clips with a gradient."""
    generator = torch.Generator().manual_seed(0)
    return sample_clips(options.batch, options.clips, options.ratio, strategy="uniform", generator=generator)


def loss_and_gradient(network: StepNetwork, dtype: str, clips: Tensor, kept: Tensor) -> tuple[float, Tensor]:
    """Of one step; the gradient of all parameters in one vector, float64."""
    network = network.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    loss = network(clips, kept)
    loss.backward()
    gradients = [p.grad.double().flatten() for p in network.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def agreement(options: StepOptions, mode: Mode, dtype: str) -> tuple[float, float]:
    """How far loss and gradient are from ordinary autograd's, relative."""
    clips, kept = make_clips(options), kept_clips(options)
    # the reference first: where one of the two does not fit, it is this one
    wanted, reference = loss_and_gradient(ReferenceNetwork(options, mode), dtype, clips, kept)
    loss, gradient = loss_and_gradient(StepNetwork(options, mode), dtype, clips, kept)
    return abs(loss - wanted) / abs(wanted), float((gradient - reference).norm() / reference.norm())


def if_it_fits(function: Callable[[], Result]) -> Result | None:
    """What the function returns; None if the GPU's memory is too small for it. All it took is given back."""
    try:
        return function()
    except torch.OutOfMemoryError:
        return None
    finally:
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


@dataclass
class Trainer:
    """An engine and its steps."""

    engine: Any
    clips: Tensor
    kept: Tensor

    def backward(self) -> None:
        """Forward and backward."""
        self.engine.backward(self.engine(self.clips, self.kept))

    def step(self) -> None:
        """Forward, backward, and the update of the weights."""
        self.backward()
        self.engine.step()
        if self.clips.is_cuda:
            torch.cuda.synchronize()

    def seconds(self) -> float:
        """Of a step; on a CPU the process's own, so that other processes count for less."""
        clock = time.perf_counter if self.clips.is_cuda else time.process_time
        start = clock()
        self.step()
        return clock() - start

    def peak(self) -> int:
        """The most bytes alive at one time in forward and backward, above those that are there before.

        Without the update: its own memory is the same in every mode, and at small shapes hides theirs.
        """
        if self.clips.is_cuda:
            before: int = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.backward()
            highest: int = torch.cuda.max_memory_allocated()
            self.engine.step()
            return highest - before
        live = LiveBytes(_existing_storages())
        with live:
            self.backward()
        self.engine.step()
        return live.peak


def _existing_storages() -> set[int]:
    """Data pointers of all tensors that are alive: parameters, gradients, optimizer state, clips."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]  # no fake ones
    return {t.untyped_storage().data_ptr() for t in tensors if t.layout == torch.strided and not t.is_meta}


def build_trainer(options: StepOptions, setup: Setup, mode: Mode) -> Trainer:
    """An engine around the mode's network, after one step: what lasts between steps is there."""
    settings = OptimizerSettings(batch_size=options.batch)
    network = StepNetwork(options, mode)
    device = torch.device(options.device)
    engine = build_engine(
        network, settings, ds_config=setup.ds_config(), total_steps=TOTAL_STEPS, device=device
    )
    trainer = Trainer(engine, make_clips(options), kept_clips(options))
    trainer.step()
    return trainer


@dataclass(frozen=True)
class Cost:
    """Of a mode's step."""

    seconds: float
    peak_mib: float


def costs_in_turns(options: StepOptions, setup: Setup) -> dict[Mode, Cost | None]:
    """Of all modes; their timed steps are taken in turns, so that all see the same machine."""
    trainers = {mode: build_trainer(options, setup, mode) for mode in MODES}
    peaks = {mode: trainer.peak() / MIB for mode, trainer in trainers.items()}
    least = dict.fromkeys(MODES, float("inf"))
    for _ in range(options.repeats):
        for mode, trainer in trainers.items():
            least[mode] = min(least[mode], trainer.seconds())
    return {mode: Cost(least[mode], peaks[mode]) for mode in MODES}


def cost_alone(options: StepOptions, setup: Setup, mode: Mode) -> Cost:
    """Of one mode, which has the device's memory for itself."""
    trainer = build_trainer(options, setup, mode)
    peak = trainer.peak() / MIB
    return Cost(min(trainer.seconds() for _ in range(options.repeats)), peak)


def measure(options: StepOptions, setup: Setup) -> list[StepRow]:
    """A row for each of MODES; on a GPU one mode after the other, for the shapes of the papers fill it."""
    exact = {mode: if_it_fits(partial(agreement, options, mode, setup.dtype)) for mode in MODES}
    if options.device == "cpu":
        costs = costs_in_turns(options, setup)
    else:
        costs = {mode: if_it_fits(partial(cost_alone, options, setup, mode)) for mode in MODES}
    return [row_of(setup, options.device, mode, costs[mode], costs[MODES[0]], exact[mode]) for mode in MODES]


def row_of(
    setup: Setup,
    device: str,
    mode: Mode,
    cost: Cost | None,
    plain: Cost | None,
    exact: tuple[float, float] | None,
) -> StepRow:
    """The row of a mode, as far as memory let it be measured."""
    loss_off, gradient_off = exact or (None, None)
    row = StepRow(**vars(setup), device=device, mode=mode.name, loss_off=loss_off, gradient_off=gradient_off)
    if cost is None:
        return replace(row, state=OUT_OF_MEMORY)
    row = replace(row, seconds=round(cost.seconds, 3), peak_mib=round(cost.peak_mib, 1))
    if plain is None:
        return row
    times, peak = cost.seconds / plain.seconds, cost.peak_mib / plain.peak_mib
    return replace(row, times_plain=round(times, 3), peak_of_plain=round(peak, 3))


def empty_rows(setup: Setup) -> list[StepRow]:
    """What stands where there is no GPU: no figure."""
    return [StepRow("cuda", setup.dtype, setup.zero, setup.offload, mode.name) for mode in MODES]
