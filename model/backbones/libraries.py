"""Networks of other libraries by name: "timm:resnet50", "torchvision:r3d_18", "hf:vit", "entry:mine".

Nothing is downloaded unless pretrained weights are asked for, and no code that a folder brings is run. An
entry is code of an installed package that registered for it, in the group `leantad.backbones`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from torch import nn

LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}  # prefix -> package
KINDS = "timm:NAME, torchvision:NAME, hf:FOLDER, hf:MODEL_TYPE or hf:CLASS"
GROUP = "leantad.backbones"  # of entry points
FOREIGN = "timm:NAME, torchvision:NAME, hf:ORG/NAME, hf:FOLDER or entry:NAME"  # what a recipe can name
# What can follow a prefix. timm would take hf-hub: and local-dir: as well; no name of ours has a colon.
_NAMES = {"timm": r"[\w.]+", "torchvision": r"\w+", "hf": r"[^:\0\r\n]+", "entry": r"[\w.-]+"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Whatever a library raises for a name or options that are none of its own
BUILDING_ERRORS = (
    ValueError, OSError, RuntimeError, KeyError, AttributeError, TypeError, AssertionError, ImportError,
)  # fmt: skip


def is_foreign_name(name: str) -> bool:
    """Whether this is the name of a network that is not ours, well-formed; nothing is looked up."""
    prefix, _, rest = name.partition(":")
    return prefix in _NAMES and re.fullmatch(_NAMES[prefix], rest) is not None and len(rest) <= 200


def named_folder(name: str) -> str | None:
    """The folder that a name reads: of hf:FOLDER; None for what no folder can be meant by, or is there."""
    prefix, _, rest = name.partition(":")
    if prefix != "hf" or (_HUB_NAME.fullmatch(rest) and not Path(rest).is_dir()):
        return None
    return rest


def missing_library(prefix: str) -> str | None:
    """Why a library cannot be used, in one line; None if it can."""
    package = LIBRARIES[prefix]
    if importlib.util.find_spec(package) is None:
        command = f'pip install -c constraints.txt "leantad[{package}]"'
        return f"{package} is not installed (in the checkout: {command})"
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever a library raises that does not fit its neighbours
        return f"{package} cannot be imported ({one_line(error)})"
    return None


def one_line(error: BaseException, length: int = 200) -> str:
    """The beginning of an error's text."""
    return " ".join(str(error).split())[:length]


def library_network(
    full_name: str, options: Mapping[str, Any] | None = None, *, pretrained: bool = False
) -> nn.Module:
    """The network, with fresh weights.

    options: of timm's or torchvision's builder, or of the configuration of Hugging Face. pretrained: with the
    weights that the library downloads. Raises ValueError for a name, or a library, that is not there.
    """
    prefix, _, name = full_name.partition(":")
    if prefix not in LIBRARIES or not name:
        raise ValueError(f"got {full_name!r}, want {KINDS}")
    if missing := missing_library(prefix):
        raise ValueError(f"{full_name}: {missing}")
    try:
        return BUILDERS[prefix](name, dict(options or {}), pretrained)
    except BUILDING_ERRORS as error:
        if pretrained:
            reason = f"no pretrained weights of it, or no network to download them by ({one_line(error)})"
            raise ValueError(
                f"{full_name}: {LIBRARIES[prefix]} has {reason}; give a file as encoder.weights, or null"
            ) from error
        raise ValueError(
            f"{full_name}: {LIBRARIES[prefix]} has no such network ({one_line(error)})"
        ) from error


def _timm(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    if ":" in name or "/" in name:  # hf-hub:, local-dir:, URLs
        raise ValueError("want a name that timm.list_models() knows")
    network: nn.Module = importlib.import_module("timm").create_model(name, pretrained=pretrained, **options)
    return network


def _torchvision(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    get_model = importlib.import_module("torchvision.models").get_model
    if "weights_backbone" not in options and ("rcnn" in name or "_resnet" in name or "_mobilenet" in name):
        options = {**options, "weights_backbone": None}  # of segmentation and detection: downloaded otherwise
    network: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None, **options)
    return network


def _hugging_face(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    transformers = importlib.import_module("transformers")
    network: nn.Module
    safe: dict[str, Any] = {"local_files_only": not pretrained, "trust_remote_code": False}
    if pretrained:
        network = transformers.AutoModel.from_pretrained(name, use_safetensors=True, **safe, **options)
        return network
    if Path(name).is_dir() or ("/" in name and _HUB_NAME.fullmatch(name)):
        config = _saved_config(transformers, name, {**safe, **options})
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


def _saved_config(transformers: Any, name: str, options: dict[str, Any]) -> Any:
    """The configuration in a folder, or in the files that Hugging Face downloaded earlier."""
    try:
        return transformers.AutoConfig.from_pretrained(name, **options)
    except OSError:
        if Path(name).is_dir():
            raise
        raise ValueError(
            "no such folder, and nothing is downloaded: its config.json is not among Hugging Face's files "
            f"here; hf download {name} config.json gets it, or encoder.weights=pretrained"
        ) from None


BUILDERS: dict[str, Callable[[str, dict[str, Any], bool], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}


def entry_network(name: str) -> nn.Module:
    """What an installed package registered under this name returns, called without arguments.

    Raises ValueError if none did, or several. A package that lies in the working folder does not count: a
    checkpoint may come with one beside it.
    """
    found = [entry for entry in entry_points(group=GROUP, name=name) if _is_installed(entry)]
    if len(found) != 1:
        known = ", ".join(sorted({entry.name for entry in entry_points(group=GROUP)})) or "none"
        several = " and ".join(entry.value for entry in found)
        problem = (
            f"{several} are both of this name" if found else f"no installed package has it; {known} known"
        )
        raise ValueError(f"entry:{name}: {problem} (entry points of the group {GROUP})")
    try:
        network = found[0].load()()
    except Exception as error:  # whatever foreign code raises
        raise ValueError(f"entry:{name}: {found[0].value} cannot be built ({one_line(error)})") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ValueError(f"entry:{name}: {found[0].value} returned a {kind}, want a torch.nn.Module")
    return network


def _is_installed(entry: EntryPoint) -> bool:
    """Whether its package lies anywhere but in the working folder."""
    folder = Path(str(entry.dist.locate_file(""))) if entry.dist is not None else Path()
    return folder.resolve() != Path.cwd()
