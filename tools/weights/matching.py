"""Matches the tensors of a checkpoint with a backbone's, by the rules of the source that wrote it.

Whose rules, and which backbone, is found by trying all of them, unless one is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from model.backbones import BACKBONES, build_backbone
from model.backbones.libraries import is_foreign_name
from tools.weights.names import (
    efficientnet,
    i3d,
    leantad,
    library,
    r2plus1d,
    slowfast,
    tsm,
    video_swin,
    videomae,
)

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]

MIN_SHARE = 0.95  # of the backbone's tensors must be in the file
_MMACTION2: dict[str, Rename] = {
    "mmaction2": slowfast.from_mmaction2,
    "opentad-re2tal": slowfast.from_opentad_re2tal,
}
# by the beginning of a backbone's name, the longest that fits: source -> its rules
SOURCES: dict[str, dict[str, Rename]] = {
    "i3d": {"pytorch-i3d": i3d.from_pytorch, "kinetics-i3d": i3d.from_tensorflow, "jax-i3d": i3d.from_flax},
    "r2plus1d": {"torchvision": r2plus1d.from_torchvision, "tsp": r2plus1d.from_tsp},
    # Tensors do not tell PySlowFast's networks from mmaction2's with a lateral norm; slow frames differ.
    "slowfast": {"pyslowfast": slowfast.from_pyslowfast, "caffe2": slowfast.from_caffe2},
    "slowfast_50_mmaction2": _MMACTION2,
    "slowfast_101_mmaction2": _MMACTION2,
    "tsm": {"torchvision": tsm.from_torchvision, "mit": tsm.from_mit, "mmaction2": tsm.from_mmaction2},
    "video_swin": {
        "torchvision": video_swin.from_torchvision,
        "mmaction2": video_swin.from_mmaction2,
        "opentad-re2tal": video_swin.from_opentad_re2tal,
    },
    "videomae": {
        "videomae": videomae.from_videomae,
        "mmaction2": videomae.from_mmaction2,
        "huggingface": videomae.from_huggingface,
    },
}
OF_LIBRARIES = ("library", "efficientnet-pytorch")  # whose names other libraries' networks can be in
SOURCE_NAMES = sorted(
    {"leantad", *OF_LIBRARIES, *(source for sources in SOURCES.values() for source in sources)}
)


@dataclass(frozen=True)
class MatchedWeights:
    """A checkpoint compared with a backbone, by the rules of one source. Names are ours, but `unexpected`."""

    backbone: str
    source: str
    tensors: dict[str, Tensor]  # that the file and the backbone have, in the same shape
    missing: list[str]
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # in the file, in the backbone
    unexpected: list[str]

    @property
    def share(self) -> float:
        """Of the backbone's tensors, those matched: 0 to 1."""
        return len(self.tensors) / (len(self.tensors) + len(self.missing) + len(self.wrong_shape))

    def summary(self) -> dict[str, Any]:
        """What matched and what did not, as JSON values."""
        return {
            "backbone": self.backbone,
            "source": self.source,
            "matched": len(self.tensors),
            "missing": self.missing,
            "wrong_shape": {name: list(map(list, shapes)) for name, shapes in self.wrong_shape.items()},
            "unexpected": self.unexpected,
        }


def sources_of(backbone: str) -> dict[str, Rename]:
    """The sources whose checkpoints fit a backbone of this name."""
    if is_foreign_name(backbone):
        own = backbone_tensors(backbone)
        rules = (library.from_library, efficientnet.from_efficientnet_pytorch)
        found = {source: partial(rule, own=own) for source, rule in zip(OF_LIBRARIES, rules, strict=True)}
        return {**found, "leantad": library.from_checkpoint}
    family = max((name for name in SOURCES if backbone.startswith(name)), key=len)
    return {**SOURCES[family], "leantad": leantad.from_checkpoint}


@cache
def backbone_tensors(backbone: str) -> dict[str, Tensor]:
    """The backbone's state_dict, shapes only."""
    with torch.device("meta"):
        return build_backbone(backbone).weighted.state_dict()


def match_weights(weights: dict[str, Tensor], backbone: str, source: str) -> MatchedWeights | None:
    """The checkpoint's tensors as the backbone's; None if the source's rules cannot read it at all."""
    own = backbone_tensors(backbone)
    try:
        converted = sources_of(backbone)[source](weights)
    except ValueError:
        return None
    both = [name for name in own if name in converted]
    same = {name: converted[name] for name in both if converted[name].shape == own[name].shape}
    return MatchedWeights(
        backbone,
        source,
        tensors=same,
        missing=[name for name in own if name not in converted],
        wrong_shape={n: (tuple(converted[n].shape), tuple(own[n].shape)) for n in both if n not in same},
        unexpected=[name for name in converted if name not in own],
    )


def best_match(weights: dict[str, Tensor], *, backbone: str | None, source: str | None) -> MatchedWeights:
    """Of the backbones and sources allowed, the pair that matches most; of equals, with least left over.

    Raises ValueError if source and backbone do not go together, or less than MIN_SHARE is matched.
    """
    pairs = [
        (name, rules)
        for name in ([backbone] if backbone else BACKBONES)
        for rules in sources_of(name)
        if source in (None, rules)
    ]
    if not pairs:
        fitting = ", ".join(sources_of(backbone or ""))
        raise ValueError(f"--source: got {source}, want one that has {backbone}: {fitting}")
    found = [one for one in (match_weights(weights, *pair) for pair in pairs) if one is not None]
    best = max(found, key=lambda one: (one.share, -len(one.unexpected)), default=None)
    if best is None:
        what, first = backbone or "any backbone", next(iter(weights))
        raise ValueError(f"weights: no rules read this file as {what}; its first tensor is {first}")
    if best.share < MIN_SHARE:
        raise ValueError(_too_few_matched(best, backbone))
    return best


def _too_few_matched(best: MatchedWeights, backbone: str | None) -> str:
    if best.missing:
        name, problem = best.missing[0], "missing"
    else:
        name, problem = next(iter(best.wrong_shape)), "of another shape"
    return (
        f"weights: {best.share:.1%} of {best.backbone} found by the rules of {best.source}, want "
        f"{MIN_SHARE:.0%} (first {problem}: {name}; {len(best.unexpected)} tensors left over); "
        f"is it a checkpoint of another network than {backbone or 'any backbone'}?"
    )
