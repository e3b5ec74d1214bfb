"""Batch norms that keep float32 statistics beside bfloat16 weights, as DeepSpeed's bf16 leaves them.

torch's own refuse the mixture (it wants weights of the statistics' type) or, cast as a whole, round the
statistics to 8 bits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _Mixed(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        """(n, D, ...) -> the same, in the dtype of x; as torch's, whatever the weights' dtype."""
        if self.weight.dtype == self.running_mean.dtype:
            return super().forward(x)
        self._check_input_dim(x)
        batch = self.training
        tracked = not batch or self.track_running_stats
        if batch and tracked:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight.to(self.running_mean.dtype),
            self.bias.to(self.running_mean.dtype),
            batch,
            self.momentum,
            self.eps,
        )


class BatchNorm2d(_Mixed, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, with float32 statistics whatever the weights."""


class BatchNorm3d(_Mixed, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, with float32 statistics whatever the weights."""
