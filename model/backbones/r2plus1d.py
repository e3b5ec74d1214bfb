"""R(2+1)D: residual networks whose 3-D convolutions are split into space (1, 3, 3) and time (3, 1, 1).

D. Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018.
r2plus1d_18 has torchvision's key names, shapes and numbers (minus its `fc`), r2plus1d_34 those of TSP and
ETAD (which follow Caffe2: other middle channels in each stage's first block, batch-norm eps 1e-3).
r2plus1d_tiny is ours: group norm, for 8x32x32 clips on a CPU.

A block is a shortcut and a residual branch (model/prepared.py): `model.rewire` can make it reversible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..prepared import PostActivationBlock
from .backbone import Backbone
from .batch_norm import BatchNorm3d
from .convolution import Convolution, channels_last_on_cpu, initialise_convolutions

Norm = Callable[[int], nn.Module]  # channels -> normalisation layer


def middle_channels(inputs: int, outputs: int) -> int:
    """Channels between space and time; the pair then has as many weights as one 3x3x3 convolution."""
    return (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)


def conv2plus1d(inputs: int, middle: int, outputs: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    """Space, norm, ReLU, time: (n, inputs, L, H, W) -> (n, outputs, l, h, w)."""
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        norm(middle),
        nn.ReLU(inplace=True),
        Convolution(middle, outputs, (3, 1, 1), (stride, 1, 1)),
    )


class BasicBlock(PostActivationBlock):
    """The branch has two (2+1)-D convolutions: (n, inputs, L, H, W) -> (n, outputs, l, h, w)."""

    def __init__(
        self, inputs: int, outputs: int, middles: tuple[int, int], norm: Norm, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            conv2plus1d(inputs, middles[0], outputs, norm, stride), norm(outputs), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(conv2plus1d(outputs, middles[1], outputs, norm), norm(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def residual(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y


@dataclass(frozen=True)
class Layout:
    """Sizes of one network; `middle` and `first_middles` give the channels between space and time."""

    stem: tuple[int, int, int]  # spatial kernel, middle channels, output channels
    channels: tuple[int, ...]  # per stage; the last is D
    blocks: tuple[int, ...]  # per stage
    strides: tuple[int, ...]  # of each stage's first block, in time and space alike
    middle: Callable[[int, int], int]
    # (inputs, outputs) -> middle channels of the two convolutions of a stage's first block
    first_middles: Callable[[int, int], tuple[int, int]]


class R2Plus1D(Backbone):
    """The family: a stem, `layer1`, `layer2`, ... of basic blocks; no classifier."""

    # Kinetics-400's, those of every published R(2+1)D and TSP checkpoint
    mean = (0.43216, 0.394666, 0.37645)
    std = (0.22803, 0.22145, 0.216989)

    def __init__(self, layout: Layout, norm: Norm) -> None:
        super().__init__()
        self.num_features = layout.channels[-1]
        self.stem = _stem(*layout.stem, norm)
        self.stage_names = [f"layer{number}" for number in range(1, len(layout.blocks) + 1)]
        self.recomputed_names = ["stem"]
        for stage, name in enumerate(self.stage_names):
            self.add_module(name, _stage(layout, stage, norm))
        # The peak lies in layer1: keeping what the late transitions compute leaves it where it is, keeping
        # what the stem computes would raise it by 13 %.
        self.stored_names = [f"{name}.0" for name in self.stage_names[2:]]
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, t, h, w) in the dtype of x.

        t is L, and h, w are H/2, W/2, divided by the strides of the stages and rounded up.
        """
        x = channels_last_on_cpu(x)
        y: Tensor = self.stem(x)
        for name in self.stage_names:
            y = self.get_submodule(name)(y)
        return y.to(x.dtype)


def _stem(kernel: int, middle: int, outputs: int, norm: Norm) -> nn.Sequential:
    """(n, 3, L, H, W) -> (n, outputs, L, H/2, W/2)."""
    return nn.Sequential(
        nn.Conv3d(3, middle, (1, kernel, kernel), (1, 2, 2), (0, kernel // 2, kernel // 2), bias=False),
        norm(middle),
        nn.ReLU(inplace=True),
        Convolution(middle, outputs, (3, 1, 1)),
        norm(outputs),
        nn.ReLU(inplace=True),
    )


def _stage(layout: Layout, stage: int, norm: Norm) -> nn.Sequential:
    """(n, inputs, L, H, W) -> (n, outputs, l, h, w); stages are counted from 0."""
    inputs, outputs = [layout.stem[2], *layout.channels][stage : stage + 2]
    middles = layout.first_middles(inputs, outputs)
    first = BasicBlock(inputs, outputs, middles, norm, layout.strides[stage])
    middles = (layout.middle(outputs, outputs),) * 2
    others = [BasicBlock(outputs, outputs, middles, norm) for _ in range(layout.blocks[stage] - 1)]
    return nn.Sequential(first, *others)


def _torchvision_first(inputs: int, outputs: int) -> tuple[int, int]:
    return (middle_channels(inputs, outputs),) * 2


def _caffe2_first(inputs: int, outputs: int) -> tuple[int, int]:
    return middle_channels(inputs, outputs), middle_channels(outputs, outputs)


def _resnet(blocks: Sequence[int], first_middles: Callable[[int, int], tuple[int, int]]) -> Layout:
    return Layout(
        (7, 45, 64), (64, 128, 256, 512), tuple(blocks), (1, 2, 2, 2), middle_channels, first_middles
    )


def r2plus1d_18() -> R2Plus1D:
    """torchvision's R(2+1)D-18 without `fc`: 31.3 M parameters, D = 512, t = L / 8."""
    return R2Plus1D(_resnet((2, 2, 2, 2), _torchvision_first), BatchNorm3d)


def r2plus1d_34() -> R2Plus1D:
    """TSP's R(2+1)D-34: 63.5 M parameters, D = 512, t = L / 8; batch-norm eps and momentum are Caffe2's."""
    return R2Plus1D(_resnet((3, 4, 6, 3), _caffe2_first), partial(BatchNorm3d, eps=1e-3, momentum=0.9))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Independent of the batch, so that a clip encoded alone has the features it has in a batch."""
    return nn.GroupNorm(channels // 8, channels)


def r2plus1d_tiny() -> R2Plus1D:
    """For 8x32x32 clips from scratch on a CPU: D = 64, t = L / 4; 167 k parameters, 14.5 M multiply-adds."""
    layout = Layout(
        stem=(3, 16, 16),
        channels=(24, 64),
        blocks=(3, 3),
        strides=(2, 2),
        middle=lambda inputs, outputs: outputs // 2 if outputs > 24 else 16,
        first_middles=lambda inputs, outputs: (32, 32) if outputs > 24 else (16, 16),
    )
    return R2Plus1D(layout, _group_norm)
