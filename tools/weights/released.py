"""Converts whole detectors of other projects, encoder and head, into a checkpoint that predict and eval take.

What tensors tell, such as widths and layers, is read off them; what they do not, such as the number of
feature steps, the attention windows and the suppression, is in the recipe of that detector. The network of
those settings must then have every tensor of the file, and no other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.files import remove_folder
from pipeline.packing.transcode import EncodingSpec
from pipeline.text import counted, first_names, suggestion
from tools.weights import shapes
from tools.weights.families import Family, SplitDetector, split
from tools.weights.matching import MatchedWeights, best_match, sources_of
from train.build_network import build_network
from train.checkpoint import PACKING, write_weights
from train.settings import RECIPES, Settings, load_settings

SOURCE = "source.json"
# Whose detector, which encoder, how many classes it scores -> the recipe that it was trained by.
TRAINED_BY = {
    ("etad", "r2plus1d_34", 1): "activitynet_etad_paper",
    ("opentad-etad", "r2plus1d_34", 1): "activitynet_etad_opentad",
    ("opentad-actionformer", "video_swin_t", 1): "activitynet_re2tal_swin_t",
    ("opentad-actionformer", "video_swin_t", 20): "thumos_re2tal_swin_t",
    ("opentad-actionformer", "slowfast_101_mmaction2", 1): "activitynet_re2tal_slowfast101",
    ("opentad-actionformer", "slowfast_101_mmaction2", 20): "thumos_re2tal_slowfast101",
}
# How the recipes want videos packed, and so how predict encodes them.
PACKED = EncodingSpec(fps=Fraction(15), short_side=256, side_multiple=16)  # as make-shards packs
OPTIONAL = frozenset({"detector.normaliser.value"})  # counts in training alone; some files have it
REVERSIBLE = (".inv_block.", ".Fm.")  # in names of Re2TAL's encoders
AGNOSTIC = "action"  # the class of a detector that knows none


@dataclass(frozen=True)
class ConvertedDetector:
    """A whole detector as our network: its state_dict, and the settings that build it."""

    family: Family
    recipe: str
    settings: Settings
    classes: tuple[str, ...]
    encoder: MatchedWeights
    state: dict[str, Tensor]

    def summary(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "detector": self.family.name,
            "recipe": self.recipe,
            "backbone": self.encoder.backbone,
            "reversible": self.settings.encoder.reversible,
            "num_steps": self.settings.detector.num_steps,
            "classes": len(self.classes),
            "tensors": len(self.state),
        }


def convert_detector(
    weights: Mapping[str, Tensor],
    family: Family,
    *,
    backbone: str | None = None,
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    overrides: Iterable[str] = (),
) -> ConvertedDetector:
    """A checkpoint of a family as our network.

    backbone, recipe: None: found. classes: names in the order of the scores, needed unless there is one.
    overrides: key=value on top of the recipe. ValueError for what is missing, unexpected or of another shape.
    """
    parts = split(weights, family)
    encoder = match_encoder(parts, backbone)
    num_classes = shapes.num_classes(parts.detector)
    name = recipe or recipe_for(family, encoder.backbone, num_classes)
    found = settings_of_tensors(parts, encoder, load_settings(Path(name)))
    settings = load_settings(Path(name), [*found, *overrides])
    names = class_names(classes, num_classes)
    network = build_network(settings, num_classes)
    state = state_of(parts, encoder, network.state_dict(), recipe=name)
    return ConvertedDetector(family, name, settings, names, encoder, state)


def match_encoder(parts: SplitDetector, backbone: str | None) -> MatchedWeights:
    """The encoder's tensors as those of a backbone; ValueError unless they are all of it and no more."""
    if not parts.encoder:
        raise ValueError(
            f"weights: {parts.family.what}, trained on features: the file holds no encoder; want a detector "
            "trained end to end"
        )
    found = []
    for source in parts.family.sources:
        if backbone is None or source in sources_of(backbone):
            try:
                found.append(best_match(parts.encoder, backbone=backbone, source=source))
            except ValueError as error:
                problem = error
    if not found:
        raise problem if backbone is None else ValueError(f"--backbone {backbone}: {problem}")
    best = max(found, key=lambda one: (one.share, -len(one.unexpected)))
    lacking = [*best.missing, *best.wrong_shape]
    if lacking or best.unexpected:
        raise ValueError(
            f"weights: the encoder is nearly {best.backbone}, but for {len(lacking)} tensors missing "
            f"({first_names(lacking)}) and {len(best.unexpected)} unexpected "
            f"({first_names(best.unexpected)}); it is a variant that has no network here"
        )
    return best


def recipe_for(family: Family, backbone: str, num_classes: int) -> str:
    """The recipe that a detector was trained by; ValueError if none is known."""
    found = TRAINED_BY.get((family.name, backbone, num_classes))
    if found is None:
        known = sorted({recipe for (name, *_), recipe in TRAINED_BY.items() if name == family.name})
        raise ValueError(
            f"--recipe: none is known for {family.name} with {backbone} and "
            f"{counted(num_classes, 'class', 'classes')}; name one with its number of steps, attention "
            f"windows and suppression, as {first_names(known, quoted=False)} has them"
        )
    return found


def settings_of_tensors(parts: SplitDetector, encoder: MatchedWeights, recipe: Settings) -> list[str]:
    """Settings as key=value: what tensors and family tell, where the recipe may say otherwise."""
    detector = {key: value for key, value in parts.settings.items() if key != "actionformer"}
    values = {f"detector.{key}": value for key, value in detector.items() if not isinstance(value, dict)}
    for group in ("actionformer", "etad"):
        values |= {f"detector.{group}.{key}": v for key, v in parts.settings.get(group, {}).items()}
    distances = values.get("detector.actionformer.max_distances", ())
    if len(distances) == len(recipe.detector.actionformer.max_distances):
        values.pop("detector.actionformer.max_distances", None)
    if len(values.get("detector.regression_tiou", ())) == recipe.detector.num_stages:
        values.pop("detector.regression_tiou", None)
    reversible = any(mark in name for name in parts.encoder for mark in REVERSIBLE)
    values |= {
        "encoder.backbone": encoder.backbone,
        "encoder.weights": None,
        "encoder.reversible": reversible,
        "optimizer.ema_decay": 0,  # there is one set of weights
    }
    if reversible:  # Re2TAL's network, in floating point
        values |= {"encoder.beta.schedule": "constant", "encoder.beta.end": 1, "encoder.leapfrog": False}
        values["encoder.fixed_point_states"] = False
    if parts.family.name == "opentad-etad":
        values["data.crop"] = recipe.data.short_side  # to evaluate, it shows more than to train
    if parts.family.name == "opentad-actionformer":
        values["data.resize"] = recipe.data.crop  # to evaluate, it makes the short side as long as the crop
        if shapes.num_classes(parts.detector) == 1:
            values |= {"post.quality_power": 1, "post.class_power": 1}  # times an external class score
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def class_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the classes, in the order of the scores."""
    if given is None and count == 1:
        return (AGNOSTIC,)
    if given is None or len(given) != count:
        got = "none" if given is None else f"{len(given)}"
        raise ValueError(
            f"--classes: got {got}, the detector scores {count}; want a file with their names, one a line, "
            "in the order of the scores, such as OpenTAD's category_idx.txt"
        )
    return tuple(given)


def state_of(
    parts: SplitDetector, encoder: MatchedWeights, wanted: Mapping[str, Tensor], *, recipe: str
) -> dict[str, Tensor]:
    """The whole network's tensors, float32; ValueError unless they are those of the network of the recipe."""
    state = {f"encoder.backbone.{name}": tensor for name, tensor in encoder.tensors.items()}
    state |= {f"detector.{name}": tensor for name, tensor in parts.detector.items()}
    state |= {name: tensor for name, tensor in wanted.items() if name in OPTIONAL and name not in state}
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(tensor.shape)}, want {tuple(wanted[name].shape)}"
            for name, tensor in state.items()
            if name in wanted and wanted[name].shape != tensor.shape
        ],
    }
    lines = [
        f"{len(names)} {kind}: {first_names(names, quoted=False)}"
        for kind, names in problems.items()
        if names
    ]
    if lines:
        raise ValueError(
            f"weights: not the detector of recipe {recipe}: {'; '.join(lines)}; is it another one's, or cut?"
        )
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in state.items()
    }


def write_detector(out: Path, found: ConvertedDetector, source: Mapping[str, Any]) -> None:
    """Write the folder that predict and eval take, whole or not at all; one that is there is replaced.

    source: where the weights are from, for source.json.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        settings = found.settings.model_dump(mode="json")
        write_weights(temporary, state=found.state, settings=settings, classes=found.classes)
        packing = {"copy": False, **vars(PACKED), "fps": float(PACKED.fps)}
        (temporary / PACKING).write_text(json.dumps(packing, indent=1), encoding="utf-8")
        (temporary / SOURCE).write_text(json.dumps(dict(source), indent=1), encoding="utf-8")
        if out.exists():
            remove_folder(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_recipe(name: str | None) -> None:
    """ValueError for the name of a recipe that is none, with the nearest one."""
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name is not None and name not in known and not Path(name).is_file():
        raise ValueError(f"--recipe {name}: no such file or recipe; {suggestion(name, known)}")
