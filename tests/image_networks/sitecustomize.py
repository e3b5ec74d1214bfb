"""On PYTHONPATH, this folder lets a process import timm and torchvision.

`make setup` puts both into ENVIRONMENT/image-networks, without what they depend on: pip's ordinary index has
no torchvision for a PyTorch without CUDA. Without its compiled part torchvision's import stops at two
operators of boxes, which nothing here calls; declared, it goes through.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class DeclaresOperators(MetaPathFinder):
    """Finds nothing, but declares the operators as soon as somebody looks for torchvision."""

    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch  # not for processes that never want torchvision

            if torch.version.cuda is None:
                for name in ("nms", "qnms"):
                    torch.library.define(
                        f"torchvision::{name}", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
                    )
        return None


sys.path.append(str(Path(sys.prefix) / "image-networks"))
sys.meta_path.insert(0, DeclaresOperators())
