"""On PYTHONPATH, this folder lets a process import timm and torchvision.

`make setup` puts both into ENVIRONMENT/image-networks, without what they depend on: pip's ordinary index has
no torchvision for a PyTorch without CUDA. Without its compiled part torchvision's import stops at two
operators of boxes, which nothing here calls; declared, it goes through.
"""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(sys.prefix) / "image-networks"))
if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
        )
