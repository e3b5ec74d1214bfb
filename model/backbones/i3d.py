"""I3D: Inception-v1 with its kernels inflated to three dimensions.

J. Carreira and A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR
2017. Names are those of the PyTorch form that most features of THUMOS-14 were made with; numbers are those of
the published TensorFlow model: padding "SAME" (zeros on both sides, the odd one behind), batch norm without a
learned scale (here: scale 1) and with eps 1e-3.

No block adds its input to its output, so nothing here can be reversible (model/rewire.py): its modules are
recomputed in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .batch_norm import BatchNorm3d
from .convolution import Convolution, Triple, channels_last_on_cpu, initialise_convolutions

# Channels of an Inception module's branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; after the pooling 1x1.
Widths = tuple[int, int, int, int, int, int]
MIXED: dict[str, Widths] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# The poolings, by the module that they come before: kernel and stride.
POOLS: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """x: (n, C, L, H, W), zero-padded so that sizes are divided by the stride and rounded up."""
    sides: list[int] = []
    for size, width, step in zip(x.shape[2:], kernel, stride, strict=True):
        missing = max((-(-size // step) - 1) * step + width - size, 0)
        sides = [missing // 2, missing - missing // 2, *sides]  # F.pad begins with the last dimension
    return F.pad(x, sides) if any(sides) else x


def max_pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """(n, C, L, H, W) -> (n, C, l, h, w). Inputs are outputs of ReLUs: padded zeros never win."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class StridedConvolution(nn.Conv3d):
    """A convolution without bias under "SAME" padding that the sides decide; in its weight's dtype."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.kernel, self.steps = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, L, H, W) -> (n, outputs, l, h, w), sizes divided by the stride and rounded up."""
        return super().forward(pad_same(x.to(self.weight.dtype), self.kernel, self.steps))


class Unit(nn.Module):
    """Convolution, batch norm, ReLU: (n, inputs, L, H, W) -> (n, outputs, l, h, w)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        kernel = (size, size, size)
        self.conv3d: nn.Conv3d = (
            Convolution(inputs, outputs, kernel)
            if stride == 1
            else StridedConvolution(inputs, outputs, kernel, (stride, stride, stride))
        )
        self.bn = BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class Inception(nn.Module):
    """Four branches side by side: (n, inputs, L, H, W) -> (n, the sum of their widths, L, H, W)."""

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], 1)
        self.b1a, self.b1b = Unit(inputs, widths[1], 1), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(inputs, widths[3], 1), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(inputs, widths[5], 1)
        self.num_features = widths[0] + widths[2] + widths[4] + widths[5]

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)]
        return torch.cat(branches, dim=1)


class I3D(Backbone):
    """12.3 M parameters, D = 1024, t = L / 8, h = H / 32, each rounded up at every halving; no classifier."""

    mean = (0.5, 0.5, 0.5)  # pixels in -1..1
    std = (0.5, 0.5, 0.5)
    stage_names = ()

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        channels = 192
        for name, widths in MIXED.items():
            module = Inception(channels, widths)
            self.add_module(name, module)
            channels = module.num_features
        self.num_features = channels
        self.recomputed_names = [name for name, _ in self.named_children()]
        initialise_convolutions(self)

    def parts(self) -> list[list[str]]:
        """As in Backbone; the stages are Mixed_3, Mixed_4 and Mixed_5, the stem comes before them."""
        stages = [[name for name in MIXED if name.startswith(f"Mixed_{stage}")] for stage in (3, 4, 5)]
        return [[name for name in self.recomputed_names if name not in MIXED], *stages]

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, L, H, W), normalised pixels. Returns (n, 1024, t, h, w) in the dtype of x."""
        y = channels_last_on_cpu(x)
        for name in self.recomputed_names:
            if name in POOLS:
                y = max_pool(y, *POOLS[name])
            y = self.get_submodule(name)(y)
        return y.to(x.dtype)


def i3d() -> I3D:
    """Inception I3D without its classifier."""
    return I3D()
