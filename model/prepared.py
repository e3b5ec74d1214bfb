"""What a network offers so that `model.rewire` can make it reversible: residual blocks, names of stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

BranchFunction = Callable[[Tensor], Tensor]  # a SliceableBranch also runs on some of its rows


class ResidualBlock(nn.Module):
    """A shortcut plus residual branches. `rewire` reads these attributes, of blocks of other classes too."""

    post_activation: bool  # whether a ReLU follows the addition
    downsample: nn.Module | None  # the shortcut of a block that changes the shape; None: the input itself

    @property
    def branches(self) -> tuple[BranchFunction, ...]:
        """The residual branches, in order; each calls its submodules through their `__call__`."""
        raise NotImplementedError


class PostActivationBlock(ResidualBlock):
    """relu(shortcut(x) + residual(x)): one branch."""

    post_activation = True
    relu: nn.ReLU

    def residual(self, x: Tensor) -> Tensor:
        """The branch F: everything between the input and the addition."""
        raise NotImplementedError

    @property
    def branches(self) -> tuple[BranchFunction, ...]:
        return (self.residual,)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> the shape of the branch."""
        residual = self.residual(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(residual + shortcut)
        return y


class PreparedNetwork(nn.Module):
    """A network of residual stages. `rewire` reads these attributes, of networks of other classes too."""

    stage_names: Sequence[str]  # dotted, of the nn.Sequential stages of residual blocks
    recomputed_names: Sequence[str]  # dotted, of other modules of one tensor in and out, such as a stem
    # Of the recomputed modules and shape-changing blocks that keep their activations all the same
    stored_names: Sequence[str] = ()
