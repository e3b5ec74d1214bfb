"""TSM: a 2-D residual network over frames, where each block sees some channels of the frames beside its own.

J. Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019. The shift stands
before the first convolution of every residual branch ("blockres"): one eighth of the channels comes from the
next frame, one eighth from the previous, zeros beyond the clip. The rest is torchvision's ResNet (in the
bottleneck, the 3x3 convolution has the stride), with its key names but for the stem: `stem.conv1`,
`stem.bn1`, one module that can be recomputed as a whole.

The states between blocks are (n, t, D, h, w), so that frames fold into the batch without a copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import BatchNorm2d
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
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """relu(shortcut(x) + residual(x)), one branch: shift, 2-D layers, drop-path.

    `branches`, `downsample` and `post_activation` are what `model.rewire` reads.
    """

    post_activation = True  # the ReLU comes after the addition
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
        """The branch F: everything between the input and the addition."""
        y = self.per_frame(temporal_shift(x, self.shift_divisor).flatten(0, 1))
        return self.drop_path(y.unflatten(0, x.shape[:2]))

    @property
    def branches(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The residual branches, in order; each calls its submodules through their `__call__`."""
        return (self.residual,)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, inputs, h, w) -> (n, t, outputs, h', w')."""
        residual = self.residual(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(residual + shortcut)


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
        return self.bn2(self.conv2(x))


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
        return self.bn3(self.conv3(x))


@dataclass(frozen=True)
class Layout:
    """Sizes of one network."""

    block: type[Block]
    blocks: tuple[int, ...]  # per stage
    widths: tuple[int, ...] = (64, 128, 256, 512)  # per stage; D is the last times the block's expansion
    shift_divisor: int = 8  # one part of the channels comes from the next frame, one from the previous
    drop_path: float = 0.0  # rate of the last block; it rises linearly from 0 in the first


class TSM(nn.Module):
    """The family: a stem, `layer1`, `layer2`, ...; every frame keeps its place in time; no classifier."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB pixels in 0..1: ImageNet's
    recomputed_names = ["stem"]

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.num_features = layout.widths[-1] * layout.block.expansion
        self.stem = _stem(layout.widths[0])
        self.stage_names: list[str] = []
        rates = iter(rising_rates(layout.drop_path, sum(layout.blocks)))
        inputs = layout.widths[0]
        for number, (width, blocks) in enumerate(zip(layout.widths, layout.blocks, strict=True), start=1):
            stage = nn.Sequential()
            for index in range(blocks):
                stride = 2 if index == 0 and number > 1 else 1
                stage.append(
                    layout.block(
                        inputs, width, stride, shift_divisor=layout.shift_divisor, drop_path=next(rates)
                    )
                )
                inputs = width * layout.block.expansion
            self.stage_names.append(f"layer{number}")
            self.add_module(self.stage_names[-1], stage)
        # The peak lies in layer1: keeping what these transitions compute leaves it where it is.
        self.stored_names = [f"{name}.0" for name in self.stage_names[1:]]
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, D, L, h, w) in the dtype of x.

        h, w are H/32, W/32, rounded up.
        """
        y = x.transpose(1, 2)
        if x.device.type == "cpu":  # channels last: max pooling takes a tenth of the time
            y = y.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        y = self.stem(y)
        for name in self.stage_names:
            y = getattr(self, name)(y)
        return y.transpose(1, 2).to(x.dtype)

    def pool(self, y: Tensor) -> Tensor:
        """y: (n, D, t, h, w). Returns (n, D, t), the mean over space."""
        return y.mean(dim=(3, 4))


def _stem(outputs: int) -> PerFrame:
    """(n, L, 3, H, W) -> (n, L, outputs, H/4, W/4)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(3, outputs, 7, 2, 3, bias=False)
    layers["bn1"] = BatchNorm2d(outputs)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
    return PerFrame(layers)


def _initialise(network: nn.Module) -> None:
    """torchvision's initialisation: He et al. over fan-out; norms keep torch's weight 1, bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def tsm_r18() -> TSM:
    """TSM over ResNet-18: 11.2 M parameters, D = 512, t = L."""
    return TSM(Layout(BasicBlock, (2, 2, 2, 2)))


def tsm_r50() -> TSM:
    """TSM over ResNet-50: 23.5 M parameters, D = 2048, t = L."""
    return TSM(Layout(Bottleneck, (3, 4, 6, 3)))
