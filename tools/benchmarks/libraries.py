"""Networks of other libraries by name, with random weights: "timm:resnet50", "torchvision:r3d_18", "hf:vit".

Nothing is downloaded, and no code that a folder brings is run.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}  # prefix -> package
KINDS = "timm:NAME, torchvision:NAME, hf:FOLDER, hf:MODEL_TYPE or hf:CLASS"


def missing_library(prefix: str) -> str | None:
    """Why a library cannot be used, in one line; None if it can."""
    package = LIBRARIES[prefix]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (pip install {package})"
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever a library raises that does not fit its neighbours
        return f"{package} cannot be imported ({' '.join(str(error).split())[:100]})"
    return None


def build_network(full_name: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """The network, with weights of a fixed seed, in training mode.

    options: of timm's or torchvision's builder, or of the configuration of Hugging Face. Raises ValueError
    for a name, or a library, that is not there.
    """
    prefix, _, name = full_name.partition(":")
    if prefix not in LIBRARIES or not name:
        raise ValueError(f"got {full_name!r}, want {KINDS}")
    if missing := missing_library(prefix):
        raise ValueError(f"{full_name}: {missing}")
    torch.manual_seed(0)
    try:
        network = BUILDERS[prefix](name, dict(options or {}))
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        message = " ".join(str(error).split())[:100]
        raise ValueError(f"{full_name}: {LIBRARIES[prefix]} has no such network ({message})") from error
    return network.train()


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    if ":" in name or "/" in name:  # hf-hub:, local-dir:, URLs
        raise ValueError("want a name that timm.list_models() knows")
    network: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **options)
    return network


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    get_model = importlib.import_module("torchvision.models").get_model
    if "weights_backbone" not in options and ("rcnn" in name or "_resnet" in name or "_mobilenet" in name):
        options = {**options, "weights_backbone": None}  # of segmentation and detection: downloaded otherwise
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def _hugging_face(name: str, options: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    network: nn.Module
    if Path(name).is_dir():
        config = transformers.AutoConfig.from_pretrained(
            name, local_files_only=True, trust_remote_code=False, **options
        )
    elif name.isidentifier() and hasattr(getattr(transformers, name, None), "config_class"):
        model_class = getattr(transformers, name)
        network = model_class(model_class.config_class(**options))
        return network
    elif not name.replace("-", "_").isidentifier():
        raise ValueError("no such folder, and nothing is downloaded")
    else:
        config = transformers.AutoConfig.for_model(name, **options)
    network = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return network


BUILDERS = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}
