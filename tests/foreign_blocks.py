"""Residual blocks as other libraries write them, for the tests of tracing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D = 8


class Basic(nn.Module):
    """A ResNet block as torchvision writes it."""

    def __init__(self, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.shortcut = nn.ReLU(inplace=True), shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            identity = self.shortcut(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 1)]
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convolutions)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y))
            if i < 2:
                y = F.relu(y, inplace=True)
        return F.relu(x + y)


class Inverted(nn.Module):
    """MobileNet: the branch is one Sequential with in-place activations inside."""

    def __init__(self, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.conv = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Conv2d(8, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class DropPath(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if self.probability == 0.0 or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.probability)
        mask.div_(1 - self.probability)
        return x * mask


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(n, length, d))


class PreNorm(nn.Module):
    """A ViT block as timm writes it; the drop-path module is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(D), Attention(), LayerScale()
        self.norm2, self.ls2, self.drop_path = nn.LayerNorm(D), LayerScale(), DropPath(0.4)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, D))

    def forward(self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Parallel(nn.Module):
    """GPT-J: attention and MLP read the same norm, one sum."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp, self.first = nn.LayerNorm(D), Attention(), nn.Linear(D, D), first

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attn(y) + self.mlp(y) if self.first else self.attn(y) + self.mlp(y) + x


class OwnParameters(nn.Module):
    """Layer scale, a position buffer, functional dropout and a clamp in the block's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gamma = nn.Linear(D, D), nn.Parameter(torch.rand(D))
        self.register_buffer("position", torch.rand(6, D))

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.fc(x + self.position[None]), 0.3, self.training)
        y = self.gamma.view(1, 1, -1) * y
        y.clamp_(max=0.5)  # in place, result unused
        return torch.add(y, x)


class Opaque(nn.Module):
    """Control flow on values: cannot be traced, stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.mean() > 100 else self.fc(-x)


class RandomSkip(nn.Module):
    """torch's random numbers decide: not traced either, but replayed like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 2 if self.training and torch.rand(1) < 0.5 else self.fc(x)


class Wrapped(nn.Module):
    """The additions lie in the children."""

    class Residual(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.identity = inner, nn.Identity()

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.identity(x) + scale * self.inner(x)

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Sequential(self.Residual(Opaque()), self.Residual(RandomSkip()))

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


def image() -> Tensor:
    return torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.randn(3, 6, D, generator=torch.Generator().manual_seed(1))
