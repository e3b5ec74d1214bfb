"""Converts detectors of other projects, with their encoder or on features, into what predict and eval take.

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
from tools.weights.files import float32_copies
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
# The same of detectors on features: whose, their width, how many classes.
TRAINED_ON_FEATURES_BY = {
    ("etad", 512, 1): "activitynet_tsp_features",
    ("opentad-etad", 512, 1): "activitynet_tsp_features",
    ("opentad-etad", 2048, 1): "thumos_etad",
    ("actionformer", 512, 1): "activitynet_tsp_actionformer",
    ("opentad-actionformer", 512, 1): "activitynet_tsp_actionformer",
    ("actionformer", 2048, 20): "thumos_i3d_features",
    ("opentad-actionformer", 2048, 20): "thumos_i3d_features",
}
# How the recipes want videos packed, and so how predict encodes them.
PACKED = EncodingSpec(fps=Fraction(15), short_side=256, side_multiple=16)  # as make-shards packs
OPTIONAL = frozenset({"detector.normaliser.value"})  # counts in training alone; some files have it
REVERSIBLE = (".inv_block.", ".Fm.")  # in names of Re2TAL's encoders
AGNOSTIC = "action"  # the class of a detector that knows none


@dataclass(frozen=True)
class ConvertedDetector:
    """A detector as our network: its state_dict, and the settings that build it.

    encoder: None for one that takes features.
    """

    family: Family
    recipe: str
    settings: Settings
    classes: tuple[str, ...]
    encoder: MatchedWeights | None
    state: dict[str, Tensor]

    def summary(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {
            "detector": self.family.name,
            "recipe": self.recipe,
            "backbone": self.encoder and self.encoder.backbone,
            "reversible": self.encoder and self.settings.encoder.reversible,
            "num_features": self.settings.data.num_features,
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
    encoder = match_encoder(parts, backbone) if parts.encoder else None
    num_classes = shapes.num_classes(parts.detector)
    name = recipe or recipe_for(parts, encoder)
    found = settings_of_tensors(parts, encoder, load_settings(Path(name)))
    settings = load_settings(Path(name), [*found, *overrides])
    names = class_names(classes, num_classes)
    network = build_network(settings, num_classes)
    state = state_of(parts, encoder, network.state_dict(), recipe=name)
    return ConvertedDetector(family, name, settings, names, encoder, state)


def match_encoder(parts: SplitDetector, backbone: str | None) -> MatchedWeights:
    """The encoder's tensors as those of a backbone; ValueError unless they are all of it and no more."""
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


def recipe_for(parts: SplitDetector, encoder: MatchedWeights | None) -> str:
    """The recipe that a detector was trained by; ValueError if none is known."""
    family, num_classes = parts.family, shapes.num_classes(parts.detector)
    width = shapes.num_features(parts.detector)
    if encoder is None:
        found = TRAINED_ON_FEATURES_BY.get((family.name, width, num_classes))
        source = f"features of width {width}"
    else:
        found = TRAINED_BY.get((family.name, encoder.backbone, num_classes))
        source = encoder.backbone
    if found is None:
        tables = [*TRAINED_BY.items(), *TRAINED_ON_FEATURES_BY.items()]
        known = sorted({recipe for (name, *_), recipe in tables if name == family.name})
        raise ValueError(
            f"--recipe: none is known for {family.name} with {source} and "
            f"{counted(num_classes, 'class', 'classes')}; name one with its number of steps, attention "
            f"windows and suppression, as {first_names(known, quoted=False)} has them"
        )
    return found


def settings_of_tensors(parts: SplitDetector, encoder: MatchedWeights | None, recipe: Settings) -> list[str]:
    """Settings as key=value: what tensors and family tell, where the recipe may say otherwise."""
    values = {f"detector.{key}": v for key, v in parts.settings.items() if not isinstance(v, dict)}
    for group in ("actionformer", "etad"):
        values |= {f"detector.{group}.{key}": v for key, v in parts.settings.get(group, {}).items()}
    if (
        len(values.get("detector.actionformer.max_distances", ()))
        == recipe.detector.actionformer.num_levels - 1
    ):
        del values["detector.actionformer.max_distances"]
    if len(values.get("detector.regression_tiou", ())) == recipe.detector.num_stages:
        del values["detector.regression_tiou"]
    values |= {"encoder.weights": None, "optimizer.ema_decay": 0}  # there is one set of weights
    if encoder is None:
        values["data.num_features"] = shapes.num_features(parts.detector)
    else:
        values |= settings_of_encoder(parts, encoder, recipe)
    if parts.family.name == "opentad-etad":
        values["post.boundary_peaks"] = False
    if parts.settings["kind"] == "actionformer":
        if shapes.num_classes(parts.detector) == 1:
            values |= {"post.quality_power": 1, "post.class_power": 1}  # times an external class score
        if parts.family.name == "opentad-actionformer":
            values["detector.actionformer.point_offset"] = 0
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def settings_of_encoder(parts: SplitDetector, encoder: MatchedWeights, recipe: Settings) -> dict[str, Any]:
    """What the encoder's tensors tell, and how its project shows it pictures to evaluate."""
    reversible = any(mark in name for name in parts.encoder for mark in REVERSIBLE)
    values: dict[str, Any] = {"encoder.backbone": encoder.backbone, "encoder.reversible": reversible}
    if reversible:  # Re2TAL's network, in floating point
        values |= {"encoder.beta.schedule": "constant", "encoder.beta.end": 1, "encoder.leapfrog": False}
        values["encoder.fixed_point_states"] = False
    if parts.family.name == "opentad-etad":
        values["data.crop"] = recipe.data.short_side  # it shows more than to train
    if parts.family.name == "opentad-actionformer":
        values["data.resize"] = recipe.data.crop  # it makes the short side as long as the crop
    return values


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
    repeated = next((name for name in given if given.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"--classes: class {repeated!r} stands there more than once, want each class once")
    return tuple(given)


def state_of(
    parts: SplitDetector, encoder: MatchedWeights | None, wanted: Mapping[str, Tensor], *, recipe: str
) -> dict[str, Tensor]:
    """The whole network's tensors, float32; ValueError unless they are those of the network of the recipe."""
    own = {} if encoder is None else encoder.tensors
    state = {f"encoder.backbone.{name}": tensor for name, tensor in own.items()}
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
    return float32_copies(state)


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
        if found.encoder is None:
            packing = {}  # how its features were made is not in the file
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
