"""TSM: a 2-D residual network over frames, where each block reads some channels of the neighbouring frames.

J. Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019. The shift stands
before the first convolution of every residual branch ("blockres"): one eighth of the channels comes from the
next frame, one eighth from the previous, zeros beyond the clip. The rest is torchvision's ResNet (in the
bottleneck, the 3x3 convolution has the stride), with its key names but for the stem: `stem.conv1`,
`stem.bn1`, one module that can be recomputed as a whole.

The states between blocks are (n, t, D, h, w), so that frames fold into the batch without a copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..prepared import PostActivationBlock
from .backbone import Backbone
from .batch_norm import BatchNorm2d
from .convolution import initialise_convolutions
from .drop_path import DropPath, rising_rates


def temporal_shift(x: Tensor, divisor: int) -> Tensor:
    """x: (n, t, D, h, w). Returns the same shape: a new tensor, zero where there is no such frame.

    The first D / divisor channels are those of the next frame, as many after them those of the previous.
    """
    fold = x.shape[2] // divisor
    following = F.pad(x[:, 1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1))
    previous = F.pad(x[:, :-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
    parts = (following, previous, x[:, :, 2 * fold :])
    if x.stride(2) > 1:
        return torch.cat(parts, dim=2)
    # channels last in memory: torch.cat keeps the order of dimensions, not that of memory
    return torch.cat([part.movedim(2, -1) for part in parts], dim=-1).movedim(-1, 2)


class PerFrame(nn.Sequential):
    """2-D layers on every frame: (n, t, D, h, w) -> (n, t, d, h', w')."""

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential, with the frames folded into the batch."""
        y: Tensor = super().forward(x.flatten(0, 1))  # type: ignore[no-untyped-call]
        return torch.unflatten(y, 0, x.shape[:2])


class Block(PostActivationBlock):
    """The branch is shift, 2-D layers, drop-path: (n, t, inputs, h, w) -> (n, t, outputs, h', w')."""

    expansion: int  # output channels / width

    def __init__(self, inputs: int, width: int, stride: int, *, shift_divisor: int, drop_path: float) -> None:
        super().__init__()
        self.shift_divisor = shift_divisor
        self.add_layers(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample = None
        outputs = width * self.expansion
        if stride != 1 or inputs != outputs:
            self.downsample = PerFrame(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs)
            )

    def add_layers(self, inputs: int, width: int, stride: int) -> None:
        """Make the layers that `per_frame` calls."""
        raise NotImplementedError

    def per_frame(self, x: Tensor) -> Tensor:
        """The 2-D layers of the branch: (n t, inputs, h, w) -> (n t, outputs, h', w')."""
        raise NotImplementedError

    def residual(self, x: Tensor) -> Tensor:
        y = self.per_frame(temporal_shift(x, self.shift_divisor).flatten(0, 1))
        residual: Tensor = self.drop_path(torch.unflatten(y, 0, x.shape[:2]))
        return residual


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def add_layers(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width)

    def per_frame(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return x


class Bottleneck(Block):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def add_layers(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * width)

    def per_frame(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return x


@dataclass(frozen=True)
class Layout:
    """Sizes of one network."""

    block: type[Block]
    blocks: tuple[int, ...]  # per stage
    widths: tuple[int, ...] = (64, 128, 256, 512)  # per stage; D is the last times the block's expansion
    shift_divisor: int = 8  # one part of the channels comes from the next frame, one from the previous
    drop_path: float = 0.0  # rate of the last block; it rises linearly from 0 in the first


class TSM(Backbone):
    """The family: a stem, `layer1`, `layer2`, ...; one feature step per frame; no classifier."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.num_features = layout.widths[-1] * layout.block.expansion
        self.stem = _stem(layout.widths[0])
        self.stage_names = [f"layer{number}" for number in range(1, len(layout.blocks) + 1)]
        self.recomputed_names = ["stem"]
        rates = iter(rising_rates(layout.drop_path, sum(layout.blocks)))
        for stage, name in enumerate(self.stage_names):
            self.add_module(name, _stage(layout, stage, rates))
        # The peak lies in layer1: keeping what these transitions compute leaves it where it is.
        self.stored_names = [f"{name}.0" for name in self.stage_names[1:]]
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, L, h, w) in the dtype of x.

        h, w are H/32, W/32, rounded up.
        """
        y: Tensor = x.transpose(1, 2)
        if x.device.type == "cpu":  # channels last: max pooling takes a tenth of the time
            y = y.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        y = self.stem(y)
        for name in self.stage_names:
            y = self.get_submodule(name)(y)
        return y.transpose(1, 2).to(x.dtype)


def _stem(outputs: int) -> PerFrame:
    """(n, L, 3, H, W) -> (n, L, outputs, H/4, W/4)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, outputs, 7, 2, 3, bias=False)
    layers["bn1"] = BatchNorm2d(outputs)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
    return PerFrame(layers)


def _stage(layout: Layout, stage: int, rates: Iterator[float]) -> nn.Sequential:
    """The blocks of a stage, counted from 0; rates: of drop-path, one for each block."""
    width, outputs = layout.widths[stage], layout.widths[stage] * layout.block.expansion
    inputs = layout.widths[stage - 1] * layout.block.expansion if stage else layout.widths[0]
    blocks = nn.Sequential()
    for number in range(layout.blocks[stage]):
        stride = 2 if number == 0 and stage else 1
        rate = next(rates)
        blocks.append(layout.block(inputs, width, stride, shift_divisor=layout.shift_divisor, drop_path=rate))
        inputs = outputs
    return blocks


def tsm_r18() -> TSM:
    """TSM over ResNet-18: 11.2 M parameters, D = 512, t = L."""
    return TSM(Layout(BasicBlock, (2, 2, 2, 2)))


def tsm_r50() -> TSM:
    """TSM over ResNet-50: 23.5 M parameters, D = 2048, t = L."""
    return TSM(Layout(Bottleneck, (3, 4, 6, 3)))
