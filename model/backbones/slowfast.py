"""SlowFast: two residual pathways over one clip, few frames with many channels and many with few.

C. Feichtenhofer et al., "SlowFast Networks for Video Recognition", ICCV 2019. The fast pathway sees every
frame of the clip, the slow one every fourth; before each of its four stages the output of a lateral
convolution of the fast pathway is concatenated to the slow one. slowfast_50 and slowfast_101 are PySlowFast's
SLOWFAST_8x8_R50 and SLOWFAST_8x8_R101_101_101, with their numbers (minus the `head`). The *_mmaction2 are
mmaction2's: bare laterals (no norm, no ReLU; *_lateral_norm has them), other slow frames, ImageNet's
normalisation. Re2TAL and OpenTAD start from the bare ones.

A block is a shortcut and a residual branch (model/prepared.py): `model.rewire` can make it reversible.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..deterministic import FrameMaxPool
from ..prepared import PostActivationBlock
from .backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from .batch_norm import BatchNorm3d
from .convolution import Convolution, Triple, channels_last_on_cpu, initialise_convolutions

FrameRule = Callable[[int, int], Tensor]  # frames of the clip, alpha -> int64 numbers of the slow frames


def spread_frames(num_frames: int, alpha: int) -> Tensor:
    """PySlowFast's slow frames: num_frames / alpha, evenly from the first to the last, rounded down."""
    return torch.linspace(0, num_frames - 1, num_frames // alpha).long()


def strided_frames(num_frames: int, alpha: int) -> Tensor:
    """mmaction2's slow frames: every alpha-th, from the first."""
    return torch.arange(0, num_frames, alpha)


def convolve(inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> nn.Sequential:
    """Convolution, norm, ReLU: (n, inputs, L, H, W) -> (n, outputs, l, h, w)."""
    return nn.Sequential(
        Convolution(inputs, outputs, kernel, stride), BatchNorm3d(outputs), nn.ReLU(inplace=True)
    )


class Bottleneck(PostActivationBlock):
    """The branch convolves in time, in space (with the stride) and pointwise.

    (n, inputs, L, H, W) -> (n, outputs, L, h, w).
    """

    def __init__(self, inputs: int, middle: int, outputs: int, frames: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = convolve(inputs, middle, (frames, 1, 1))
        self.conv2 = convolve(middle, middle, (1, 3, 3), (1, stride, stride))
        self.conv3 = nn.Sequential(Convolution(middle, outputs, (1, 1, 1)), BatchNorm3d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                Convolution(inputs, outputs, (1, 1, 1), (1, stride, stride)), BatchNorm3d(outputs)
            )

    def residual(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return y


@dataclass(frozen=True)
class Layout:
    """Sizes of one network. A stage's middle channels are twice those of the stage before."""

    blocks: tuple[int, ...]  # per stage, in both pathways
    width: int = 64  # channels of the slow stem, and middle channels of the slow pathway's first stage
    alpha: int = 4  # frames of the fast pathway per frame of the slow one
    beta_inv: int = 8  # channels of the slow pathway per channel of the fast one
    fusion: int = 2  # channels of a lateral per channel of the fast pathway
    lateral_frames: int = 7  # kernel of the laterals, in time
    slow_frames: tuple[int, ...] = (1, 1, 1, 3, 3)  # kernel in time of the stem and of each stage
    fast_frames: tuple[int, ...] = (5, 3, 3, 3, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)  # of each stage's first block, in space
    lateral_norm: bool = True  # batch norm and ReLU after a lateral's convolution
    # Rewired, a stage keeps its input (with the lateral, 1.25 states of the stage before) and two states of
    # its own, however deep it is. These keep the input alone and run again as a whole: of 390 MiB for a clip
    # of 32x112x112, SlowFast-101 then saves 30, not 56.
    recomputed: tuple[int, ...] = (1, 2, 4)
    frame_rule: FrameRule = spread_frames
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)  # of the pixels that the weights were trained on
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)

    def __post_init__(self) -> None:
        stages = len(self.blocks)
        for name, length in (("slow_frames", stages + 1), ("fast_frames", stages + 1), ("strides", stages)):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name}: got {len(getattr(self, name))} values, want {length}")

    def slow_channels(self, stage: int) -> int:
        """Output channels of a stage of the slow pathway; stage 0 is the stem."""
        return self.width if stage == 0 else self.width * 2 ** (stage + 1)


class TakeFrames(nn.Module):
    """Some of the frames of a clip: (n, C, L, H, W) -> (n, C, L / alpha, H, W)."""

    def __init__(self, rule: FrameRule, alpha: int) -> None:
        super().__init__()
        self.rule, self.alpha = rule, alpha

    def forward(self, x: Tensor) -> Tensor:
        """On a CPU the result is channels last."""
        frames = self.rule(x.shape[2], self.alpha).to(x.device, non_blocking=True)
        return channels_last_on_cpu(x.index_select(2, frames))


def _stem(outputs: int, frames: int) -> OrderedDict[str, nn.Module]:
    """(n, 3, L, H, W) -> (n, outputs, L, H/4, W/4)."""
    conv, norm, relu = convolve(3, outputs, (frames, 7, 7), (1, 2, 2))
    pool = FrameMaxPool(3, 2, 1)
    return OrderedDict(conv=conv, norm=norm, relu=relu, pool=pool)


class SlowFast(Backbone):
    """The family: two pathways `slow` and `fast`, each a stem and `layer1`, `layer2`, ... with its `blocks`.

    `lateral1` reads the fast stem, `lateral2` the fast layer1, and so on: their outputs are concatenated
    behind the channels of the slow pathway. No classifier.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        stages = range(1, len(layout.blocks) + 1)
        self.alpha, self.mean, self.std = layout.alpha, layout.mean, layout.std
        last = layout.slow_channels(len(layout.blocks))
        self.num_features = last + last // layout.beta_inv
        self.layer_names = [f"layer{stage}" for stage in stages]
        self.lateral_names = [f"lateral{stage}" for stage in stages]
        layers = [(path, stage) for path in ("slow", "fast") for stage in stages]
        self.stage_names = [f"{path}.layer{stage}.blocks" for path, stage in layers]
        self.recomputed_names = ["slow.stem", "fast.stem", *self.lateral_names]
        self.recomputed_names += [f"{p}.layer{stage}" for p, stage in layers if stage in layout.recomputed]
        take = OrderedDict[str, nn.Module](frames=TakeFrames(layout.frame_rule, layout.alpha))
        self.slow = nn.ModuleDict({"stem": nn.Sequential(take | _stem(layout.width, layout.slow_frames[0]))})
        stem = _stem(layout.width // layout.beta_inv, layout.fast_frames[0])
        self.fast = nn.ModuleDict({"stem": nn.Sequential(stem)})
        for stage in stages:
            self.slow[f"layer{stage}"] = _slow_stage(layout, stage)
            self.fast[f"layer{stage}"] = _fast_stage(layout, stage)
            self.add_module(f"lateral{stage}", _lateral(layout, stage))
        _initialise(self)

    def parts(self) -> list[list[str]]:
        """As in Backbone; the lateral after the stem or a stage reads it alone, and goes with it."""
        parts = [[f"slow.{layer}", f"fast.{layer}"] for layer in ["stem", *self.layer_names]]
        for part, lateral in zip(parts, self.lateral_names, strict=False):  # none follows the last stage
            part.append(lateral)
        return parts

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, t, h, w) in the dtype of x, t = L / alpha.

        D is the slow pathway's channels, then the fast one's, averaged over each run of alpha frames (OpenTAD
        interpolates them to t steps, which reads two frames of four). Space shrinks by 4 in the stems and
        by the strides of the stages, rounded up. Raises ValueError if alpha does not divide L.
        """
        if x.shape[2] % self.alpha:
            raise ValueError(
                f"clip: got {x.shape[2]} frames, want a multiple of {self.alpha} "
                f"(the slow pathway of SlowFast sees one frame in {self.alpha}); set the clip's frames to one"
            )
        x = channels_last_on_cpu(x)
        slow, fast = self.slow["stem"](x), self.fast["stem"](x)
        for layer, lateral in zip(self.layer_names, self.lateral_names, strict=True):
            slow = self.slow[layer](torch.cat((slow, self.get_submodule(lateral)(fast)), dim=1))
            fast = self.fast[layer](fast)
        fast = fast.unflatten(2, (-1, self.alpha)).mean(3)  # (n, D_fast, t, h, w)
        return torch.cat((slow, fast), dim=1).to(x.dtype)


def _slow_stage(layout: Layout, stage: int) -> nn.Sequential:
    before, outputs = layout.slow_channels(stage - 1), layout.slow_channels(stage)
    inputs = before + before * layout.fusion // layout.beta_inv
    return _stage(layout, stage, inputs, outputs, layout.slow_frames[stage])


def _fast_stage(layout: Layout, stage: int) -> nn.Sequential:
    inputs = layout.slow_channels(stage - 1) // layout.beta_inv
    outputs = layout.slow_channels(stage) // layout.beta_inv
    return _stage(layout, stage, inputs, outputs, layout.fast_frames[stage])


def _stage(layout: Layout, stage: int, inputs: int, outputs: int, frames: int) -> nn.Sequential:
    first = Bottleneck(inputs, outputs // 4, outputs, frames, layout.strides[stage - 1])
    others = [Bottleneck(outputs, outputs // 4, outputs, frames) for _ in range(layout.blocks[stage - 1] - 1)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *others)))


def _lateral(layout: Layout, stage: int) -> nn.Sequential:
    """(n, inputs, L, h, w) -> (n, fusion * inputs, L / alpha, h, w)."""
    inputs = layout.slow_channels(stage - 1) // layout.beta_inv
    layers = convolve(inputs, inputs * layout.fusion, (layout.lateral_frames, 1, 1), (layout.alpha, 1, 1))
    return layers if layout.lateral_norm else nn.Sequential(layers[0])


def _initialise(network: SlowFast) -> None:
    """PySlowFast's: as torchvision's, but a branch's last norm starts at weight 0."""
    initialise_convolutions(network)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.conv3.get_parameter("1.weight"))


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)


def _mmaction2(blocks: tuple[int, ...], *, lateral_norm: bool = False) -> Layout:
    return Layout(
        blocks, lateral_norm=lateral_norm, frame_rule=strided_frames, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def slowfast_50() -> SlowFast:
    """PySlowFast's SlowFast 8x8 R50: 33.7 M parameters, D = 2048 + 256, t = L / 4."""
    return SlowFast(Layout(R50))


def slowfast_101() -> SlowFast:
    """PySlowFast's SlowFast 8x8 R101 (both pathways): 62.0 M parameters, D = 2048 + 256, t = L / 4."""
    return SlowFast(Layout(R101, lateral_frames=5))


def slowfast_50_mmaction2() -> SlowFast:
    """mmaction2's SlowFast 8x8 R50: as slowfast_50, with bare laterals."""
    return SlowFast(_mmaction2(R50))


def slowfast_50_mmaction2_lateral_norm() -> SlowFast:
    """mmaction2's SlowFast 8x8 R50 of its step schedule (`lateral_norm=True`): laterals as in slowfast_50."""
    return SlowFast(_mmaction2(R50, lateral_norm=True))


def slowfast_101_mmaction2() -> SlowFast:
    """mmaction2's SlowFast 8x8 R101, which Re2TAL rewires: as slowfast_101, bare laterals of 7 frames."""
    return SlowFast(_mmaction2(R101))
