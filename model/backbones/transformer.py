"""The transformer block of the Video Swin and VideoMAE backbones, and their initialisation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..prepared import BranchFunction, ResidualBlock
from .drop_path import DropPath


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class TransformerBlock(ResidualBlock):
    """x + attention, then x + MLP: two branches, each with a norm before it and drop-path after it.

    attention: a module that keeps the shape (..., D) of its input.
    """

    post_activation = False
    downsample = None

    def __init__(self, dim: int, attention: nn.Module, drop_path: float, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def attention_branch(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same: norm, attention, drop-path."""
        y: Tensor = self.drop_path(self.attn(self.norm1(x)))
        return y

    def mlp_branch(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same: norm, MLP, drop-path."""
        y: Tensor = self.drop_path(self.mlp(self.norm2(x)))
        return y

    @property
    def branches(self) -> tuple[BranchFunction, ...]:
        return self.attention_branch, self.mlp_branch

    def forward(self, x: Tensor) -> Tensor:
        """(n, ..., D) -> the same."""
        for branch in self.branches:
            x = x + branch(x)
        return x


def initialise_linears(network: nn.Module) -> None:
    """Linear weights from a normal distribution of standard deviation 0.02, biases 0; the rest as torch's."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
