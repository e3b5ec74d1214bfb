"""The detector: neck, boundary head, proposals, cascaded stages, losses."""

from .detector import Detector, Prediction

__all__ = ["Detector", "Prediction"]
