"""The action detectors: neck, heads, losses; see detector.py for what each of them offers."""

from .detector import Detector, Prediction
from .proposal_detector import ProposalDetector

__all__ = ["Detector", "Prediction", "ProposalDetector"]
