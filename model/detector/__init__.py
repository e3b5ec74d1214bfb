"""The detector: neck, boundary head, proposals, cascaded stages, losses."""

from .detector import Detector, DetectorSettings, LossWeights, Prediction

__all__ = ["Detector", "DetectorSettings", "LossWeights", "Prediction"]
