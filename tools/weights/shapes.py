"""What the tensors of a detector, in our names, tell of its settings: widths, layers, stages, levels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

GROUPS = 4  # of ETAD's convolutions


def etad_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings below `detector`, of ETAD's detector in names of model/detector/etad."""
    neck_dim = _shape(tensors, "neck.embed.0.weight")[0]
    stages = _count(tensors, r"stages\.(\d+)\.")
    fc_dim, inputs = _shape(tensors, "stages.0.shared.0.weight")
    opentad = "stages.0.offsets.0.weight" in tensors
    return {
        "kind": "etad",
        "neck_dim": neck_dim,
        "fc_dim": fc_dim,
        "head_dim": _shape(tensors, "stages.0.tiou.0.weight")[0],
        "roi_bins": inputs // (neck_dim if opentad else neck_dim // 2),
        "regression_tiou": [round(0.7 + 0.1 * min(stage, 2), 1) for stage in range(stages)],
        "etad": {
            "head_layers": _count(tensors, r"stages\.0\.tiou\.(\d+)\.") - 1,
            "origin": "opentad" if opentad else "authors",
            "bins": "aligned" if opentad else "sampled",
        },
    }


def actionformer_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings below `detector`, of ActionFormer's detector in names of model/detector/actionformer."""
    levels = _count(tensors, r"pyramid\.norms\.(\d+)\.")
    head_layers = _count(tensors, r"classes\.layers\.(\d+)\.")
    embed_dim = _shape(tensors, "pyramid.embed.0.conv.weight")[0]
    return {
        "kind": "actionformer",
        "actionformer": {
            "embed_dim": embed_dim,
            "head_dim": _shape(tensors, "classes.layers.0.conv.weight")[0] if head_layers else embed_dim,
            "embed_layers": _count(tensors, r"pyramid\.embed\.(\d+)\."),
            "stem_layers": _count(tensors, r"pyramid\.stem\.(\d+)\."),
            "head_layers": head_layers,
            "max_distances": [4.0 * 2**level for level in range(levels - 1)],
            "origin": "opentad" if "normaliser.value" in tensors else "authors",
        },
    }


def num_features(tensors: Mapping[str, Tensor]) -> int:
    """D, the channels of the features that a detector of either kind takes."""
    if "neck.embed.0.weight" in tensors:
        return GROUPS * _shape(tensors, "neck.embed.0.weight")[1]
    return _shape(tensors, "pyramid.embed.0.conv.weight")[1]


def num_classes(tensors: Mapping[str, Tensor]) -> int:
    """K, how many classes a detector scores; 1 for one that knows no classes."""
    return _shape(tensors, "classes.last.weight")[0] if "classes.last.weight" in tensors else 1


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers there are whose names begin so, the first group their number."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The first two numbers of the shape of a weight: outputs and inputs."""
    if name not in tensors:
        raise ValueError(f"weights: the detector lacks {name}; is the file whole?")
    shape = tuple(tensors[name].shape)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"weights: {name} is {shape}, want outputs x inputs; is it another detector's file?")
    return shape[0], shape[1]
