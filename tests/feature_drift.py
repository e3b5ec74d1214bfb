"""How far rewiring moves a pretrained network's features: `python tests/feature_drift.py WEIGHTS VIDEOS`.

WEIGHTS: a folder with efficientnet_lite0_imagenet.safetensors; VIDEOS: a folder of mp4 files, of which eight
are read, 8 frames of 96x96 pixels each. Prints, by beta, with and without leapfrog and the shift in time, the
relative L2 distance of a frame's features from the network before: mean and largest. Wants timm.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden_efficientnet import NAME, WEIGHTS

from model.backbones import build_backbone
from model.rewire import set_beta
from model.rewire_backbone import rewire_backbone
from tools.weights.matching import best_match

FRAMES, SIZE, VIDEOS = 8, 96, 8


def first_clip(path: Path) -> Tensor:
    """The middle square of the first frames, (3, FRAMES, SIZE, SIZE) in 0..1."""
    with av.open(str(path)) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(FRAMES), strict=False)]
    images = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)) for frame in frames])
    side = min(images.shape[1:3])
    top, left = (images.shape[1] - side) // 2, (images.shape[2] - side) // 2
    square = images[:, top : top + side, left : left + side].movedim(3, 1).float()
    resized = F.interpolate(square, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return resized.transpose(0, 1) / 255


def main(weights: Path, videos: Path) -> None:
    clips = torch.stack([first_clip(path) for path in sorted(videos.glob("*.mp4"))[:VIDEOS]])
    tensors = best_match(load_file(weights / WEIGHTS), backbone=NAME, source=None).tensors
    for temporal in ("mean", "shift"):
        for leapfrog in (False, True):
            backbone = build_backbone(NAME, temporal).eval()
            backbone.weighted.load_state_dict(tensors)
            mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (backbone.mean, backbone.std))
            x = (clips - mean) / std
            with torch.no_grad():
                before = backbone.pool(backbone(x))
                rewire_backbone(backbone, beta=0.0, leapfrog=leapfrog)
                for beta in (0.0, 0.5, 1.0):
                    set_beta(backbone, beta)
                    moved = (backbone.pool(backbone(x)) - before).norm(dim=1) / before.norm(dim=1)
                    print(
                        f"temporal {temporal}, leapfrog {leapfrog}, beta {beta}: "
                        f"mean {moved.mean():.3f}, largest {moved.max():.3f}"
                    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
