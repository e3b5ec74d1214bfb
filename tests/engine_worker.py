"""Every ZeRO mode against plain autograd, and resume; in its own processes, for DeepSpeed keeps global state.

    python tests/engine_worker.py RESULT.json                                      one process
    python -m torch.distributed.run --nproc_per_node 2 tests/engine_worker.py RESULT.json

Writes {"steps": {mode: {part: largest difference}}, "resume": {...}, ...}; test_train_engine.py reads it.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.backbones.transformer import TransformerBlock
from model.backbones.video_swin import WindowAttention
from model.detector.actionformer.detector import ActionFormer
from model.detector.actionformer.points import assign_actions, make_points
from model.detector.ground_truth import pad_actions
from model.detector.settings import DetectorSettings
from model.encode import sampled_encode
from model.late_choice import LateChoice, late_choice
from model.rewire import rewire
from model.sampling import sample_clips
from train.distributed import any_rank, barrier, rank, shut_down, world_size
from train.engine import (
    build_engine,
    full_state_dict,
    learning_rates,
    load_state,
    log_scalars,
    save_state,
    start_process_group,
)
from train.optimizer import OptimizerSettings, read_ds_config
from train.weight_average import WeightAverage

STEPS, TOTAL_STEPS = 3, 10
SETTINGS = OptimizerSettings(
    encoder_lr=1e-3,
    detector_lr=1e-2,
    weight_decay=0.05,
    eps=1e-6,
    warmup_steps=2,
    gradient_clip=0.5,
    decay_weights_alone=False,
)
LAYERS = {"layer_lrs": {"encoder.backbone.layer1.2": 3, "encoder": 0.5}, "decay_weights_alone": True}

ACTIONFORMER = DetectorSettings(
    kind="actionformer",
    num_steps=20,
    actionformer={
        "embed_dim": 8,
        "head_dim": 8,
        "num_heads": 2,
        "max_distances": (4.0, 8.0),
        "attention_windows": (3,),
        "drop_path": 0.0,  # it draws from the global generator
    },
)
# A softmax does not see what is added to all its logits: the key's bias gets noise, which Adam enlarges.
WITHOUT_GRADIENT = (".maps.key.bias", ".norms.key.bias", ".qkv.bias")
SLICE_BYTES = 60_000  # of 32 windows 9 at a time, of 256 tokens 78


@dataclass(frozen=True)
class Mode:
    stage: int
    offload: bool = False
    accumulation: int = 1
    frozen: str = ""  # name prefix of the parameters that are not trained
    bf16: bool = False
    cpu_adam: bool = True
    clip_sampling: str = "random"
    actionformer: bool = False  # in place of the small head
    ema: bool = False  # an average of the weights beside them
    layers: bool = False  # learning rates and weight decay by layer
    traced: bool = False  # a backbone that nobody prepared for rewiring
    keep_graphs: bool = False  # of the kept clips, from the forward to the backward
    sliced: bool = False  # a backbone of windows and tokens, whose branches run on slices of them


MODES = {
    "zero 0": Mode(0),
    "zero 1": Mode(1),
    "zero 2": Mode(2),
    "zero 3": Mode(3),
    "zero 1, offload": Mode(1, offload=True),
    "zero 2, offload": Mode(2, offload=True),
    "zero 3, offload": Mode(3, offload=True),
    "zero 0, 2 micro steps": Mode(0, accumulation=2),
    "zero 2, 2 micro steps": Mode(2, accumulation=2),
    "zero 3, 2 micro steps": Mode(3, accumulation=2),
    "zero 2, frozen stem": Mode(2, frozen="encoder.backbone.stem"),
    "zero 3, frozen stem": Mode(3, frozen="encoder.backbone.stem"),
    "zero 3, frozen encoder": Mode(3, frozen="encoder"),
    "zero 1, offload, torch's Adam": Mode(1, offload=True, cpu_adam=False),
    "zero 1, bf16": Mode(1, bf16=True),
    "zero 1, bf16, offload, torch's Adam": Mode(1, offload=True, bf16=True, cpu_adam=False),
    "zero 3, bf16": Mode(3, bf16=True),
    "zero 0, farthest": Mode(0, clip_sampling="farthest"),
    "zero 1, dpp": Mode(1, clip_sampling="dpp"),
    "zero 1, offload, top_gradient": Mode(1, offload=True, clip_sampling="top_gradient"),
    "zero 2, importance": Mode(2, clip_sampling="importance"),
    "zero 3, dpp": Mode(3, clip_sampling="dpp"),
    "zero 3, top_gradient": Mode(3, clip_sampling="top_gradient"),
    "zero 3, offload, importance": Mode(3, offload=True, clip_sampling="importance"),
    "zero 0, layers": Mode(0, layers=True),
    "zero 1, layers": Mode(1, layers=True),
    "zero 2, offload, layers": Mode(2, offload=True, layers=True),
    "zero 3, layers, actionformer": Mode(3, layers=True, actionformer=True),
    "zero 3, layers, ema": Mode(3, layers=True, ema=True),
    "zero 3, offload, 2 micro steps, layers": Mode(3, offload=True, accumulation=2, layers=True),
    "zero 0, actionformer": Mode(0, actionformer=True),
    "zero 1, actionformer": Mode(1, actionformer=True),
    "zero 2, offload, actionformer": Mode(2, offload=True, actionformer=True),
    "zero 3, actionformer": Mode(3, actionformer=True),
    "zero 0, ema": Mode(0, ema=True),
    "zero 1, ema": Mode(1, ema=True),
    "zero 2, frozen stem, ema": Mode(2, frozen="encoder.backbone.stem", ema=True),
    "zero 2, offload, ema": Mode(2, offload=True, ema=True),
    "zero 3, 2 micro steps, ema": Mode(3, accumulation=2, ema=True),
    "zero 3, offload, ema": Mode(3, offload=True, ema=True),
    "zero 1, bf16, ema": Mode(1, bf16=True, ema=True),
    "zero 3, bf16, ema": Mode(3, bf16=True, ema=True),
    "zero 1, traced": Mode(1, traced=True),
    "zero 2, offload, traced": Mode(2, offload=True, traced=True),
    "zero 3, traced": Mode(3, traced=True),
    "zero 3, offload, traced": Mode(3, offload=True, traced=True),
    "zero 1, kept graphs": Mode(1, keep_graphs=True),
    "zero 2, offload, 2 micro steps, kept graphs": Mode(2, offload=True, accumulation=2, keep_graphs=True),
    "zero 3, kept graphs": Mode(3, keep_graphs=True),
    "zero 1, sliced": Mode(1, sliced=True),
    "zero 2, offload, sliced": Mode(2, offload=True, sliced=True),
    "zero 3, sliced": Mode(3, sliced=True),
    "zero 3, offload, 2 micro steps, sliced": Mode(3, offload=True, accumulation=2, sliced=True),
}
EMA_DECAY = 0.7
RESUMED = ("zero 0", "zero 1", "zero 2", "zero 3", "zero 1, bf16", "zero 2, offload")
RESUMED += ("zero 1, offload, torch's Adam", "zero 1, bf16, offload, torch's Adam", "zero 3, actionformer")
RESUMED += (
    "zero 1, layers",
    "zero 3, layers, ema",
    "zero 0, ema",
    "zero 1, ema",
    "zero 3, offload, ema",
)


class Block(nn.Module):
    """A residual block of two branches; smooth, because a ReLU flips where rounding changes a sign."""

    downsample = None
    post_activation = False

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.GroupNorm(2, 8), nn.Conv3d(8, 8, 3, padding=1), nn.Tanh(), nn.Conv3d(8, 8, 1))
            for _ in range(2)
        )

    @property
    def branches(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second


class Backbone(nn.Module):
    stage_names, recomputed_names = ("layer1",), ("stem",)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.Tanh())
        self.layer1 = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(self.stem(x)).to(x.dtype)


class ForeignBlock(Block):
    """The same as another library writes it, with a parameter of its own; `branches` is for `plain` alone."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8, 1, 1, 1), 0.8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.first(x)
        return x + self.second(x)

    @property
    def branches(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (lambda x: self.gamma * self.first(x)), self.second


class ForeignBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.Tanh())
        self.layer1 = nn.Sequential(ForeignBlock(), ForeignBlock(), ForeignBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(self.stem(x))


class WindowBackbone(nn.Module):
    stage_names, recomputed_names = ("layer1",), ("stem",)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.Tanh())
        shifts = ((0, 0, 0), (1, 1, 1), (0, 0, 0))
        attentions = (WindowAttention(8, 2, (2, 2, 2), shift) for shift in shifts)
        self.layer1 = nn.Sequential(*(TransformerBlock(8, attention, 0.0) for attention in attentions))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(self.stem(x).movedim(1, 4)).movedim(4, 1).to(x.dtype)


class Encoder(nn.Module):
    """A rewired stem and stage; with dropout it draws from the global generator."""

    def __init__(self, dropout: float, traced: bool = False, sliced: bool = False):
        super().__init__()
        self.backbone = WindowBackbone() if sliced else ForeignBackbone() if traced else Backbone()
        self.dropout = nn.Dropout(dropout)
        table = rewire(self.backbone, beta=1.0, slice_bytes=SLICE_BYTES)
        assert sum(row.num_branches for row in table) == 6

    def forward(self, clips: Tensor) -> Tensor:
        pixels = clips.to(self.backbone.stem[0].weight.dtype) / 64 - 2
        return self.dropout(self.backbone(pixels)).mean((3, 4))

    def plain(self, clips: Tensor) -> Tensor:
        """The same function without any autograd.Function: Re2TAL's recurrence, written out."""
        maps = self.backbone.stem[1](self.backbone.stem[0](clips.float() / 64 - 2))
        tokens_last = isinstance(self.backbone, WindowBackbone)
        before = now = maps.movedim(1, 4) if tokens_last else maps
        for block in self.backbone.layer1:
            for branch in block.branches:
                before, now = now, before + branch(now)
        maps = (now + before) / 2
        return (maps.movedim(4, 1) if tokens_last else maps).mean((3, 4))


class Network(nn.Module):
    """Encoder and a small head with a loss that mixes all clips of a video."""

    def __init__(
        self,
        seed: int = 7,
        *,
        dropout: float = 0.0,
        frozen: str = "",
        actionformer: bool = False,
        traced: bool = False,
        sliced: bool = False,
    ):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.keep_graphs = Encoder(dropout, traced, sliced), False
        self.detector = nn.Sequential(nn.Conv1d(8, 16, 3), nn.Tanh(), nn.Conv1d(16, 2, 3))
        if actionformer:
            self.detector = ActionFormer(ACTIONFORMER, num_features=8, num_classes=2)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(
                not (frozen and name.startswith(frozen)) and not name.endswith(WITHOUT_GRADIENT)
            )

    def forward(self, clips: Tensor, kept: Tensor | LateChoice) -> Tensor:
        keep_graphs = self.keep_graphs
        features = sampled_encode(self.encoder, clips, kept, clips_per_forward=4, keep_graphs=keep_graphs)
        return self.loss(features, kept)

    def loss(self, features: Tensor, kept: Tensor | LateChoice) -> Tensor:
        if isinstance(self.detector, ActionFormer):
            return self.detector.loss(features, *actions_of(kept), generator=torch.Generator())[0]
        scores = self.detector(features).float()
        return (scores[:, 0] * scores[:, 1].roll(1, 0)).mean() + scores.square().mean()

    def plain(self, clips: Tensor, kept: Tensor | LateChoice) -> Tensor:
        """Plain autograd on the sampled clips: the others are encoded without a graph."""
        if isinstance(kept, LateChoice):
            return self.plain_late(clips, kept)
        videos = []
        for video, numbers in zip(clips, kept.tolist(), strict=True):
            steps = []
            for number in range(len(video)):
                with nullcontext() if number in numbers else torch.no_grad():
                    steps.append(self.encoder.plain(video[number : number + 1]))
            videos.append(torch.cat(steps, 2))
        return self.loss(torch.cat(videos), kept)

    def plain_late(self, clips: Tensor, choice: LateChoice) -> Tensor:
        """Every clip in one graph; the gradient of the features of those not chosen is taken out of it."""
        features = torch.stack([self.encoder.plain(video) for video in clips])  # (B, N, D, t)

        def chosen_alone(gradient: Tensor) -> Tensor:
            chosen = choice.choose((gradient if choice.by_gradient else features.detach()).flatten(2))
            weights = torch.ones(1) if chosen.weights is None else chosen.weights.float()
            weights = weights.expand(chosen.clips.shape)
            factors = torch.zeros(clips.shape[:2]).scatter(1, chosen.clips, weights)
            return gradient * factors[..., None, None]

        features.register_hook(chosen_alone)
        return self.loss(features.transpose(1, 2).flatten(2), choice)


def actions_of(kept: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Ground truth that follows from the kept clips: one action in each video, of 5 to 13 of the 20 steps."""
    starts, ends = kept.amin(1) * 2.0, kept.amin(1) * 2.0 + 3 + 2 * kept.amax(1)
    return list(torch.stack([starts, ends], 1)[:, None]), list((kept.sum(1) % 2)[:, None])


def count_by_hand(detector: ActionFormer, kept: list[Tensor]) -> None:
    """Move the normaliser as a step does whose ranks keep these clips, and let the loss read it only."""
    points = make_points(ACTIONFORMER.num_steps, ACTIONFORMER.actionformer, device=torch.device("cpu"))
    count = 0.0
    for of_rank in kept:
        segments, labels = actions_of(of_rank)
        actions = pad_actions(segments, labels, num_videos=len(of_rank), num_steps=20, num_classes=2)
        count += float(assign_actions(points, actions, 2, centre_radius=1.5)[0].amax(2).sum()) / len(kept)
    assert count > 1, "no point is matched"
    value = 0.9 * detector.normaliser.value + 0.1 * count
    detector.normaliser.value.copy_(value)
    detector.normaliser.forward = lambda _: value


def batch(step: int, of_rank: int, clip_sampling: str = "random") -> tuple[Tensor, Tensor | LateChoice]:
    """Clips (2, 5, 3, 4, 8, 8) and the 3 kept ones of each video; the same whoever asks."""
    generator = torch.Generator().manual_seed(100 * step + of_rank)
    clips = torch.randint(0, 256, (2, 5, 3, 4, 8, 8), dtype=torch.uint8, generator=generator)
    if clip_sampling != "random":
        return clips, late_choice(clip_sampling, 3, generator=generator)
    return clips, sample_clips(2, 5, 0.6, strategy="random", generator=generator)


@dataclass(frozen=True)
class StepsResult:
    state: dict[str, Tensor]
    norms: list[float | None]  # of the gradient, before it is clipped
    average: dict[str, Tensor] | None = None


def adamw(network: nn.Module, layers: bool) -> torch.optim.Optimizer:
    """A group for each parameter; the factors are written out by hand."""
    groups = []
    for name, p in network.named_parameters():
        rate = SETTINGS.encoder_lr if name.startswith("encoder.") else SETTINGS.detector_lr
        decay = 0.05
        if layers:
            if name.startswith("encoder.backbone.layer1.2."):
                rate *= 3.0
            elif name.startswith("encoder."):
                rate *= 0.5
            is_norm = p.ndim == 1 or p.shape[0] == 1 and p.ndim == 3 and name.endswith("scale")
            decay = 0.0 if is_norm else 0.05
        groups.append({"params": [p], "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=SETTINGS.betas, eps=SETTINGS.eps)


def torch_steps(
    network: Network, loss_of: Callable[[int], Tensor], accumulation: int, *, layers: bool = False
) -> StepsResult:
    """STEPS steps of plain torch: mean loss over the micro steps, clip, AdamW, the schedule by hand."""
    optimizer, norms = adamw(network, layers), []
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * [0.5, 1.0, 1.0][step]  # warmup over 2 steps, then the cosine's first
        optimizer.zero_grad()
        for micro in range(accumulation):
            (loss_of(step * accumulation + micro) / accumulation).backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), SETTINGS.gradient_clip)))
        optimizer.step()
        for name, value in network.state_dict().items():
            average[name] = EMA_DECAY * average[name] + (1 - EMA_DECAY) * value
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return StepsResult(state, norms, average)


@cache
def reference(
    accumulation: int,
    frozen: str,
    actionformer: bool,
    clip_sampling: str = "random",
    layers: bool = False,
    traced: bool = False,
    sliced: bool = False,
) -> StepsResult:
    """Plain autograd over the data of all ranks."""
    network = Network(frozen=frozen, actionformer=actionformer, traced=traced, sliced=sliced)

    def loss_of(number: int) -> Tensor:
        batches = [batch(number, r, clip_sampling) for r in range(world_size())]
        if actionformer:
            count_by_hand(network.detector, [kept for _, kept in batches])
        return sum(network.plain(*of_rank) for of_rank in batches) / world_size()

    return torch_steps(network, loss_of, accumulation, layers=layers)


def by_torch() -> StepsResult:
    """SampledEncode without DeepSpeed; wrapped in DDP where there is more than one process."""
    network = Network()
    wrapped = nn.parallel.DistributedDataParallel(network) if world_size() > 1 else network
    return torch_steps(network, lambda number: wrapped(*batch(number, rank())), 1)


def engine_of(network: Network, mode: Mode):
    config = copy.deepcopy(read_ds_config())
    config["zero_optimization"]["stage"] = mode.stage
    if mode.offload:
        config["zero_optimization"]["offload_optimizer"]["device"] = "cpu"
        config["zero_optimization"]["offload_param"]["device"] = "cpu" if mode.stage == 3 else "none"
    config["bf16"]["enabled"] = mode.bf16
    changes = {"accumulation_steps": mode.accumulation, "batch_size": 2, "cpu_adam": mode.cpu_adam}
    changes |= LAYERS if mode.layers else {}
    settings = SETTINGS.model_copy(update=changes)
    return build_engine(network, settings, ds_config=config, total_steps=TOTAL_STEPS)


def run_steps(
    engine, first: int, last: int, clip_sampling: str = "random", average: WeightAverage | None = None
) -> list[float | None]:
    """Micro steps, with an evaluation after each (of averaged weights, if any); returns gradient norms."""
    norms = []
    for number in range(first, last):
        engine.train()
        loss = engine(*batch(number, rank(), clip_sampling))
        engine.backward(loss)
        is_last = engine.is_gradient_accumulation_boundary()
        engine.step()
        if is_last:
            norm = engine.get_global_grad_norm()
            norms.append(None if norm is None else float(norm))
            if average is not None:
                average.update()
        engine.eval()
        with torch.no_grad(), average.swapped_in() if average and is_last else nullcontext():
            engine(*batch(number, rank()))
    return norms


def difference(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference, per part of the network."""
    assert got.keys() == want.keys()
    parts = {"encoder": 0.0, "detector": 0.0}
    for name, value in want.items():
        part = name.split(".")[0]
        parts[part] = max(parts[part], float((got[name] - value).abs().max()))
    return parts


def compare(got: StepsResult, want: StepsResult) -> dict[str, float | None]:
    """Differences of the parameters after the last step, and of the first gradient norm (relative)."""
    norm = None if got.norms[0] is None else abs(got.norms[0] / want.norms[0] - 1)
    average = {} if got.average is None else {"average": max(difference(got.average, want.average).values())}
    return difference(got.state, want.state) | {"norm": norm} | average


def compare_steps() -> dict[str, dict[str, float | None]]:
    want = reference(1, "", False)
    results = {"plain torch" if world_size() == 1 else "torch DDP": compare(by_torch(), want)}
    results["moved"] = difference(want.state, Network().state_dict())  # what there is to get wrong
    for name, mode in MODES.items():
        start = time.perf_counter()
        network = Network(
            frozen=mode.frozen, actionformer=mode.actionformer, traced=mode.traced, sliced=mode.sliced
        )
        network.keep_graphs = mode.keep_graphs
        engine = engine_of(network, mode)
        average = WeightAverage(engine, EMA_DECAY) if mode.ema else None
        norms = run_steps(engine, 0, STEPS * mode.accumulation, mode.clip_sampling, average)
        got = StepsResult(full_state_dict(engine), norms, average.full_state_dict() if average else None)
        want = reference(
            mode.accumulation,
            mode.frozen,
            mode.actionformer,
            mode.clip_sampling,
            mode.layers,
            mode.traced,
            mode.sliced,
        )
        results[name] = compare(got, want)
        results[name]["seconds"] = round(time.perf_counter() - start, 2)
        engine.destroy()
    return results


def resume(folder: Path, mode: Mode) -> dict[str, object]:
    """Two steps, save, two steps; another engine, with other weights, loads and takes the last two."""
    one = engine_of(Network(dropout=0.3, actionformer=mode.actionformer), mode)
    first = WeightAverage(one, EMA_DECAY) if mode.ema else None
    torch.manual_seed(rank())
    run_steps(one, 0, 2, average=first)
    save_state(one, folder)
    if first is not None:
        first.save(folder)
    run_steps(one, 2, 4, average=first)
    want, rates, steps = full_state_dict(one), learning_rates(one), one.global_steps
    want_average = first.full_state_dict() if first is not None else want
    one.destroy()
    two = engine_of(Network(seed=8, dropout=0.3, actionformer=mode.actionformer), mode)
    second = WeightAverage(two, EMA_DECAY) if mode.ema else None
    load_state(two, folder)
    if second is not None:
        second.load(folder)
    run_steps(two, 2, 4, average=second)
    got_average = second.full_state_dict() if second is not None else want
    result = {
        "difference": difference(full_state_dict(two), want),
        "average": difference(got_average, want_average),
        "rates": learning_rates(two) == rates,
        "steps": [two.global_steps, steps],
    }
    two.destroy()
    return result


def tensorboard(folder: Path) -> bool:
    """Whether a number reaches DeepSpeed's TensorBoard monitor."""
    config = read_ds_config()
    config["tensorboard"] |= {"enabled": True, "output_path": str(folder)}
    engine = build_engine(Network(), SETTINGS, ds_config=config, total_steps=TOTAL_STEPS)
    log_scalars(engine, 5, {"average_mAP": 0.5})
    engine.destroy()
    barrier()
    return any(b"average_mAP" in file.read_bytes() for file in folder.rglob("events*"))


class Bomb:
    """Unpickling it writes a file: what an attacker's checkpoint could do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def refused(engine, folder: Path) -> str:
    try:
        load_state(engine, folder)
    except ValueError as error:
        return str(error)
    return ""


def refusals(folder: Path) -> dict[str, object]:
    """What load_state says to another layout, to a folder without a state, to a file that carries code."""
    other = engine_of(Network(), Mode(2))
    result: dict[str, object] = {"stage": refused(other, folder), "nothing": refused(other, folder / "no")}
    other.destroy()
    regrouped = engine_of(Network(), Mode(1, layers=True))
    result["groups"] = refused(regrouped, folder)
    regrouped.destroy()
    engine = engine_of(Network(), Mode(1))
    mark = folder / "executed"
    if rank() == 0:
        for file in folder.glob("engine/*model_states.pt"):
            torch.save({"module": Bomb(mark)}, file)
    barrier()
    result |= {"bomb": refused(engine, folder), "executed": mark.exists()}
    engine.destroy()
    return result


def main(result_file: Path) -> None:
    torch.set_num_threads(1)
    start_process_group("cpu")
    results: dict[str, object] = {"steps": compare_steps(), "resume": {}}
    shared = [TemporaryDirectory() if rank() == 0 else None]
    folders = [Path(shared[0].name) if shared[0] else None]
    dist.broadcast_object_list(folders)
    for name in RESUMED:
        results["resume"][name] = resume(folders[0] / name, MODES[name])
    results["refusals"] = refusals(folders[0] / "zero 1")
    results["tensorboard"] = tensorboard(folders[0] / "tensorboard")
    results["any_rank"] = any_rank(torch.tensor([0.0, float(rank() == world_size() - 1)])).tolist()
    if rank() == 0:
        result_file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    shut_down(0)
