"""What every backbone offers: its sizes, the normalisation of its pixels, and the mean over space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..prepared import PreparedNetwork

# Of RGB pixels in 0..1: the input is (pixel - mean) / std
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(PreparedNetwork):
    """(n, C, L, H, W) normalised pixels -> (n, D, t, h, w) features in the dtype of the pixels."""

    num_features: int  # D
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def parts(self) -> Sequence[Sequence[str]]:
        """Dotted names of the modules of the stem, then of each stage, in the order of the forward pass."""
        return [["stem"], *([name] for name in self.stage_names)]

    def pool(self, features: Tensor) -> Tensor:
        """features: (n, D, t, h, w). Returns (n, D, t), the mean over space."""
        return features.mean(dim=(3, 4))

    @property
    def weighted(self) -> nn.Module:
        """The module whose state dict a file of weights holds."""
        return self

    @property
    def head(self) -> tuple[str, ...]:
        """Modules that such a file may hold besides, and that are left out: a classifier's."""
        return ()
