"""Batch norms that keep float32 statistics beside bfloat16 weights, as DeepSpeed's bf16 leaves them.

torch's own refuse the mixture (it wants weights of the statistics' type) or, cast as a whole, round the
statistics to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def freeze_batch_norms(module: nn.Module) -> None:
    """Let the batch norms in a module use the statistics that they have, whatever mode the rest is in."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()


def trained_statistics(module: nn.Module) -> Iterator[Tensor]:
    """The running means and variances that a forward of the module changes in the mode that it is in."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            yield from (tensor for tensor in (norm.running_mean, norm.running_var) if tensor is not None)


class KeepsStatistics(nn.modules.batchnorm._BatchNorm):
    """Derived together with a batch norm of any class: its forward, with weights of the statistics' type."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, D, ...) -> the same, in the dtype of x."""
        statistics, weight = self.running_mean, self.weight
        if statistics is None or weight is None or weight.dtype == statistics.dtype:
            return super().forward(x)
        own = dict(self._parameters)
        for name, parameter in own.items():
            self._parameters[name] = None if parameter is None else parameter.to(statistics.dtype)  # type: ignore[assignment]
        try:
            return super().forward(x)
        finally:
            self._parameters.update(own)


class BatchNorm2d(KeepsStatistics, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, with float32 statistics whatever the weights."""


class BatchNorm3d(KeepsStatistics, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, with float32 statistics whatever the weights."""
