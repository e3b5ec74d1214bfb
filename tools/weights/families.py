"""Whole detectors of other projects: whose a checkpoint is, which tensors are encoder, which are detector.

A family is found by names that no other has. Every tensor is accounted for: it is of the encoder, of the
detector, or known to be no weight; what is none of these is an error, for a network with a part left out
would detect, but not what it was trained to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.text import counted, first_names
from tools.weights import shapes
from tools.weights.names import actionformer, etad
from tools.weights.names.renaming import strip

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
# What wraps a whole network: DataParallel, DistributedDataParallel.
WRAPPER = "module."
OPENTAD_ENCODER = ("backbone.model.backbone.", "backbone.model.", "backbone.")
OPENTAD_IGNORED = re.compile(r"backbone\.model\.(cls_head|data_preprocessor)\.")


@dataclass(frozen=True)
class Family:
    """A project's detector: its names, and what of our settings its tensors tell."""

    name: str
    what: str
    marker: re.Pattern[str]  # of a name that every checkpoint of it has, and none of the others
    rename: Rename
    settings: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    encoder: tuple[str, ...] = ()  # prefixes of the encoder's names, the longest first
    sources: tuple[str, ...] = ()  # whose rules the encoder's names follow
    ignored: re.Pattern[str] = re.compile(r"(?!)")  # names of tensors that are no weights


FAMILIES = (
    Family(
        "etad",
        "ETAD's detector, of its authors",
        re.compile(r"base_detector\.temporal_enhance\."),
        etad.from_authors,
        shapes.etad_settings,
        encoder=("feature_extractor.model.backbone.", "feature_extractor."),
        sources=("tsp", "torchvision"),
    ),
    Family(
        "opentad-actionformer",
        "ActionFormer's detector, of OpenTAD (Re2TAL's, too)",
        re.compile(r"projection\.branch\.\d+\.attn\."),
        actionformer.from_opentad,
        shapes.actionformer_settings,
        encoder=OPENTAD_ENCODER,
        sources=("opentad-re2tal", "mmaction2", "tsp"),
        ignored=OPENTAD_IGNORED,
    ),
    Family(
        "opentad-etad",
        "ETAD's detector, of OpenTAD",
        re.compile(r"roi_head\.proposal_heads\.\d+\.se_head\."),
        etad.from_opentad,
        shapes.etad_settings,
        encoder=OPENTAD_ENCODER,
        sources=("tsp", "torchvision"),
        ignored=OPENTAD_IGNORED,
    ),
    Family(
        "actionformer",
        "ActionFormer's detector, of its authors",
        re.compile(r"backbone\.embd\.\d+\.conv\."),
        actionformer.from_authors,
        shapes.actionformer_settings,
    ),
)
# Where the encoder lies in a whole detector of any kind, those that we have no network for included.
ENCODERS = ("feature_extractor.model.backbone.", "backbone.model.backbone.")
# Detectors that we have no network for, by a name that only they have.
UNKNOWN_HERE = {
    "TriDet's detector": re.compile(r"(projection|backbone)\.stem\.\d+\.psi\."),
    "AdaTAD's adapters": re.compile(r".*\.adapter\."),
    "another detector of OpenTAD": re.compile(r"(rpn|roi)_head\."),
}


@dataclass(frozen=True)
class SplitDetector:
    """A whole detector taken apart: the encoder's tensors in its source's names, the detector's in ours."""

    family: Family
    encoder: dict[str, Tensor]
    detector: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)  # of the detector, that its tensors tell


def family_of(weights: Mapping[str, Tensor]) -> Family | None:
    """The family of a checkpoint; None if it is no whole detector that we know, such as an encoder alone."""
    names = [strip(name, WRAPPER) for name in weights]
    for family in FAMILIES:
        if any(family.marker.match(name) for name in names):
            return family
    return None


def encoder_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a whole detector, without prefix; what is no such file stays as it is."""
    for prefix in ENCODERS:
        names = {name: strip(name, WRAPPER) for name in weights}
        found = {new.removeprefix(prefix): weights[n] for n, new in names.items() if new.startswith(prefix)}
        if found:
            return found
    return weights


def check_known(weights: Mapping[str, Tensor]) -> None:
    """ValueError for a detector that we have no network for, with those that we have."""
    for what, marker in UNKNOWN_HERE.items():
        found = next((name for name in weights if marker.match(strip(name, WRAPPER))), None)
        if found is not None:
            known = ", ".join(family.name for family in FAMILIES)
            raise ValueError(
                f"weights: {what} ({found}), which has no network here; want one of {known}, or "
                "--encoder-only for the encoder alone"
            )


def named_family(name: str, weights: Mapping[str, Tensor]) -> Family:
    """The family of this name, if the checkpoint is of it; else ValueError with the one that it is of."""
    family, found = next(family for family in FAMILIES if family.name == name), family_of(weights)
    if found is None:
        check_known(weights)
        raise ValueError(
            f"--source {name}: the file holds no detector, its first tensor is {next(iter(weights))}; "
            "want a whole one, or leave --source out"
        )
    if found is not family:
        raise ValueError(f"--source {name}: did you mean {found.name!r}? The file holds {found.what}")
    return family


def split(weights: Mapping[str, Tensor], family: Family) -> SplitDetector:
    """Take a checkpoint apart. ValueError for tensors that are neither encoder nor detector."""
    encoder: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    left = []
    for full, tensor in weights.items():
        name = strip(full, WRAPPER)
        prefix = next((each for each in family.encoder if name.startswith(each)), None)
        if family.rename({name: tensor}):
            heads[name] = tensor
        elif family.ignored.match(name):
            continue
        elif prefix is not None:
            encoder[name.removeprefix(prefix)] = tensor
        else:
            left.append(full)
    if left:
        tensors = counted(len(left), "tensor")
        raise ValueError(
            f"weights: {tensors} that {family.what} does not have: {first_names(left)}; it is a variant "
            "that has no network here"
        )
    detector = family.rename(heads)
    return SplitDetector(family, encoder, detector, family.settings(detector))
