"""The action detector: neck, step heads, proposals, cascaded stages, losses."""

from .detector import Detector, DetectorSettings, LossWeights, Prediction

__all__ = ["Detector", "DetectorSettings", "LossWeights", "Prediction"]
