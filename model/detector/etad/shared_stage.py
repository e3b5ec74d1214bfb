"""A stage of ETAD's cascade in OpenTAD's form: all heads from one layer, without convolutions of its own.

Liu et al., OpenTAD: the features of the neck go into the bins as they are, and one head gives the offsets of
start, end, centre and width. Weights of OpenTAD's checkpoints fit (tools/weights/names/etad.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from ...segments import at_least_float32
from ..align import expand_segments, pool_bins
from ..heads import StageOutput
from ..settings import DetectorSettings
from .bins import bin_weights
from .heads import ClassHead, initialize, layers


class SharedStage(nn.Module):
    """As `Stage`: average the features of the lengthened anchors, score the anchors, move them."""

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        own, hidden = settings.etad, (settings.head_dim,) * settings.etad.head_layers
        self.roi_bins, self.roi_context = settings.roi_bins, settings.roi_context
        self.weights = bin_weights(own.bins)
        norms = [nn.LayerNorm(settings.fc_dim)] if own.norms else []
        inputs = settings.neck_dim * settings.roi_bins
        self.shared = nn.Sequential(nn.Linear(inputs, settings.fc_dim), *norms, nn.ReLU())
        self.tiou, self.boundary, self.offsets = (layers(settings.fc_dim, *hidden, n) for n in (2, 2, 4))
        initialize(self)
        self.class_head = ClassHead(settings, num_classes) if own.class_scores else None

    def forward(self, features: Tensor, step_scores: Tensor | None, anchors: Tensor) -> StageOutput:
        """features: (B, neck_dim, T); step_scores: (B, K, T) in [0, 1], None without class scores; anchors:
        (B, P, 2) without gradient."""
        lengthened = expand_segments(anchors, self.roi_context)
        weights = self.weights(lengthened, features.shape[2], self.roi_bins)
        shared = self.shared(pool_bins(features, weights).flatten(2))
        offsets = at_least_float32(self.offsets(shared))
        if self.class_head is None or step_scores is None:
            class_logits = shared.new_zeros(*shared.shape[:2], 0)
        else:
            class_logits = self.class_head(shared, pool_bins(step_scores.to(features.dtype), weights))
        return StageOutput(
            tiou_logits=at_least_float32(self.tiou(shared)),
            boundary_logits=at_least_float32(self.boundary(shared)),
            boundary_offsets=offsets[..., :2],
            centre_offsets=offsets[..., 2:],
            class_logits=class_logits,
        )
