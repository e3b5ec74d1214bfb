"""Builds a library's network as a backbone, without its classifier, and reads what the library says of it.

Where the input's size, mean and std come from: timm's data configuration, the meta data of torchvision's
weights, the image processor's file of Hugging Face, attributes of an entry's network.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .backbone import IMAGENET_MEAN, IMAGENET_STD
from .libraries import BUILDING_ERRORS, entry_network, library_network

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Described:
    """A network and what its library says of it."""

    network: nn.Module
    frames: int | None  # of the clips that it was made for; None: it takes single images
    size: tuple[int, int]  # height and width, in pixels, that it was made for
    mean: Triple = IMAGENET_MEAN  # of pixels in 0..1
    std: Triple = IMAGENET_STD
    origin: str = "ImageNet's, for want of a description"  # whose mean and std these are
    features: tuple[int, ...] = ()  # D is one of these; empty: as the output has it
    head: tuple[str, ...] = ()  # modules of the classifier, which was left out
    argument: str | None = None  # name of forward's argument; None: the first
    frames_first: bool = False  # whether clips are (n, L, C, H, W)
    prefix_tokens: int = 0  # of an output of tokens: those that stand for no place
    step_frames: int | None = None  # of a step in the tokens of a clip; None: not known
    # whether one step's tokens follow those of another, or the steps of one place those of another
    steps_order: Literal["slow", "fast"] = "slow"
    # it takes clips of other lengths, or other pixels, too, but mixes up their steps, or places
    fixed: Literal["frames", "pixels", None] = None


def _pair(value: Any) -> tuple[int, int]:
    """Height and width of 224, (224,), (3, 224, 224), {"height": 224, "width": 224} and the like."""
    if isinstance(value, Mapping):
        sides = [value[key] for key in ("height", "width", "shortest_edge") if value.get(key)]
    else:
        sides = list(value)[-2:] if isinstance(value, list | tuple) else [value]
    return int(sides[0]), int(sides[-1])


def _triple(value: Any) -> Triple:
    red, green, blue = (float(number) for number in value)
    return red, green, blue


# ------------------------------------------------------------------------------------------------- timm


def _timm(full_name: str, pretrained: bool) -> Described:
    try:
        network = library_network(full_name, {"num_classes": 0, "global_pool": ""}, pretrained=pretrained)
    except ValueError:  # some always pool
        network = library_network(full_name, {"num_classes": 0}, pretrained=pretrained)
    data = importlib.import_module("timm.data").resolve_model_data_config(network)
    described = getattr(network, "pretrained_cfg", None) or {}
    head = described.get("classifier") or ()
    sizes = (getattr(network, name, None) for name in ("head_hidden_size", "num_features"))
    return Described(
        network,
        frames=None,
        size=_pair(data["input_size"]),
        mean=_triple(data["mean"]),
        std=_triple(data["std"]),
        origin="timm's",
        features=tuple(int(size) for size in sizes if size),
        head=(head,) if isinstance(head, str) else tuple(head),
        prefix_tokens=int(getattr(network, "num_prefix_tokens", 0)),
    )


# ------------------------------------------------------------------------------------------ torchvision

VIDEO_FRAMES = 16  # of a clip, where the weights do not want more
_HEADS = ("fc", "classifier", "heads", "head")


def _without_classifier(full_name: str, network: nn.Module) -> tuple[str, int]:
    """Let the last linear map of the head hand on its input; returns its name and number of inputs."""
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = [
        (name, module)
        for name, module in network.named_modules()
        if name.partition(".")[0] in _HEADS and isinstance(module, layers)
    ]
    if not found:
        raise ValueError(f"{full_name}: has no classifier that could be left out, want one of {_HEADS}")
    name, layer = found[-1]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return name, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _keep_time(network: nn.Module) -> None:
    """Let a mean over time and space be one over space: the flattened output is then (n, D t)."""
    if isinstance(getattr(network, "avgpool", None), nn.AdaptiveAvgPool3d):
        network.avgpool = nn.AdaptiveAvgPool3d((None, 1, 1))


def _torchvision(full_name: str, pretrained: bool) -> Described:
    network = library_network(full_name, pretrained=pretrained)
    name, features = _without_classifier(full_name, network)
    models = importlib.import_module("torchvision.models")
    of_video = full_name.partition(":")[2] in models.list_models(module=models.video)
    if of_video:
        _keep_time(network)
    described = Described(
        network,
        frames=VIDEO_FRAMES if of_video else None,
        size=(112, 112) if of_video else (224, 224),
        features=(features,),
        head=(name,),
    )
    try:
        weights = models.get_model_weights(full_name.partition(":")[2]).DEFAULT
        preset = weights.transforms()
    except BUILDING_ERRORS:  # without pretrained weights
        return described
    return replace(
        described,
        frames=max(VIDEO_FRAMES, weights.meta.get("min_temporal_size") or 0) if of_video else None,
        size=_pair(preset.crop_size),
        mean=_triple(preset.mean),
        std=_triple(preset.std),
        origin="those of torchvision's weights",
    )


# ----------------------------------------------------------------------------------------- Hugging Face

# model_type -> tokens before those of places, in which order the steps follow, what is fixed (see Described)
_VIDEO_TOKENS: dict[str, tuple[int, Literal["slow", "fast"], Literal["frames", "pixels", None]]] = {
    "videomae": (0, "slow", None),
    "vivit": (1, "slow", None),
    "vjepa2": (0, "slow", "pixels"),
    "timesformer": (1, "fast", "frames"),
}
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


def _processor(name: str) -> tuple[Mapping[str, Any], str] | None:
    """What the image processor's file says, and its name; None if it is not on this machine."""
    find = importlib.import_module("transformers.utils").cached_file
    for file in _PROCESSORS:
        try:
            path = Path(name) / file if Path(name).is_dir() else Path(find(name, file, local_files_only=True))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (*BUILDING_ERRORS, RecursionError):
            continue
        if isinstance(content, dict) and "image_mean" in content and "image_std" in content:
            return content, file
    return None


def _step_frames(config: Any) -> int:
    """How many frames become one step of tokens."""
    tubelet = getattr(config, "tubelet_size", 1)
    return int(tubelet[0] if isinstance(tubelet, list | tuple) else tubelet)


def _hugging_face(full_name: str, pretrained: bool) -> Described:
    network = library_network(full_name, pretrained=pretrained)
    config: Any = network.config
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    described = Described(
        network,
        frames=frames,
        size=_pair(size),
        argument=str(getattr(network, "main_input_name", "pixel_values")),
        frames_first=True,
        prefix_tokens=0 if frames else _prefix_tokens(network, config),
    )
    if frames and config.model_type in _VIDEO_TOKENS:
        prefix, order, fixed = _VIDEO_TOKENS[config.model_type]
        described = replace(
            described, prefix_tokens=prefix, step_frames=_step_frames(config), steps_order=order, fixed=fixed
        )
    if found := _processor(full_name.partition(":")[2]):
        content, file = found
        mean, std = _triple(content["image_mean"]), _triple(content["image_std"])
        described = replace(described, mean=mean, std=std, origin=f"those of its {file}")
    return described


def _prefix_tokens(network: nn.Module, config: Any) -> int:
    """Class and register tokens of a vision transformer: 0 or more."""
    names = [re.sub(r".*\.", "", name) for name, _ in network.named_parameters()]
    count = sum(name in ("cls_token", "class_embedding", "distillation_token") for name in names)
    return count + int(getattr(config, "num_register_tokens", 0) or 0)


# ----------------------------------------------------------------------------------------------- entries


def _entry(full_name: str, pretrained: bool) -> Described:
    if pretrained:
        raise ValueError(
            f"{full_name}: encoder.weights: pretrained is for timm, torchvision and hf; give a file"
        )
    network = entry_network(full_name.partition(":")[2])
    shape = tuple(getattr(network, "input_shape", (8, 112, 112)))
    if len(shape) not in (2, 3) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(
            f"{full_name}: input_shape: got {shape!r}, want (L, H, W), or (H, W) of one for images"
        )
    *frames, height, width = shape
    described = Described(network, frames=frames[0] if frames else None, size=(height, width))
    if not hasattr(network, "mean") or not hasattr(network, "std"):
        return described
    mean, std = _triple(network.mean), _triple(network.std)
    return replace(described, mean=mean, std=std, origin="its own")


_DESCRIBE = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face, "entry": _entry}


def describe_network(full_name: str, *, pretrained: bool = False) -> Described:
    """The network of this name, in evaluation mode, with its description.

    pretrained: with the weights that the library downloads. Raises ValueError, one line, for what is not
    there.
    """
    found = _DESCRIBE[full_name.partition(":")[0]](full_name, pretrained)
    found.network.eval()
    return found
