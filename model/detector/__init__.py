"""The action detector: neck, step heads, proposals, cascaded stages, losses."""

from .detector import Detector, Prediction

__all__ = ["Detector", "Prediction"]
