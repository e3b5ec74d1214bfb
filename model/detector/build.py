"""The detector that the settings name."""

from __future__ import annotations

from .actionformer.detector import ActionFormer
from .detector import Detector
from .etad.detector import Etad
from .proposal_detector import ProposalDetector
from .settings import DetectorSettings


def build_detector(settings: DetectorSettings, *, num_features: int, num_classes: int) -> Detector:
    """num_features: D, channels of the features; num_classes: K."""
    kinds: dict[str, type[ActionFormer | Etad | ProposalDetector]] = {
        "actionformer": ActionFormer,
        "etad": Etad,
        "proposals": ProposalDetector,
    }
    return kinds[settings.kind](settings, num_features=num_features, num_classes=num_classes)
