"""A model as one file: what evaluation and prediction read of a checkpoint, in a zip that runs nothing.

    mine.leantad    model.json           settings, classes, packing, thresholds; size and sha256 of weights
                    model.safetensors    every tensor of the network, as in the checkpoint (averaged if
                                         it has both)

The same checkpoint gives the same bytes. Settings that belong to a machine (LOCAL) have no value in it, and a
file that gives them one is refused: a stranger's model names no path, no address and no command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from model.backbones.libraries import named_folder
from pipeline.features.records import FEATURE_FIELDS
from pipeline.files import file_sha256, parse_json, replacing, sha256_of
from pipeline.packing.prepare import ENCODING_FIELDS, encoding_spec_of
from pipeline.text import first_names, short
from train.build_network import build_network
from train.checkpoint import (
    AVERAGE,
    SETTINGS,
    WEIGHTS,
    first_mismatch,
    read_classes,
    read_packing,
    read_weights,
    weights_folder,
)
from train.cli import one_line
from train.evaluation.class_thresholds import THRESHOLDS, ClassThresholds, read_thresholds
from train.model_zip import WANTED, read_members, write_members
from train.settings import Settings, apply_override, read_settings, settings_from

DOCUMENT = "model.json"
FORMAT, VERSION = "leantad-model", 1
# Settings that mean something on one machine alone -> what they are in a file.
LOCAL = {"data.shards": "", "encoder.weights": None, "run.ds_config": None, "run.device": "auto"}
# What decides a video's pixels.
PACKING_FIELDS = ("copy", *ENCODING_FIELDS)
LONGEST_DOCUMENT = 16 << 20  # bytes of model.json: 100,000 classes have 3 MiB
MOST_VALUES = 32  # of a setting that is a list: each may be a stage of the network, which takes time to build


class WeightsEntry(BaseModel):
    """What model.json states of model.safetensors."""

    model_config = ConfigDict(extra="forbid", strict=True)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Document(BaseModel):
    """model.json. packing: those of PACKING_FIELDS and FEATURE_FIELDS that the data set has."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["leantad-model"]
    version: Literal[1]
    classes: list[str] = Field(min_length=1)
    packing: dict[str, bool | int | float | str]
    thresholds: ClassThresholds | None
    weights: WeightsEntry
    settings: dict[str, Any]


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file, checked: the tensors are those of the network of its settings."""

    settings: Settings
    classes: tuple[str, ...]
    packing: Mapping[str, Any]
    thresholds: ClassThresholds | None
    tensors: dict[str, Tensor]

    def settings_with(self, overrides: Iterable[str]) -> Settings:
        """Its settings with key=value on top; ValueError for what is no setting or out of range."""
        values = self.settings.model_dump(mode="json")
        for override in overrides:
            apply_override(values, override)
        return settings_from(values)


# ----------------------------------------------------------------------------------------------- writing


def write_model_file(path: Path, checkpoint: Path) -> tuple[Path, tuple[str, ...]]:
    """Write the model of a run folder (its best checkpoint) or checkpoint folder; returns folder and classes.

    The file appears when it is whole. ValueError where the checkpoint lacks what prediction needs, or its
    files do not belong together.
    """
    folder = weights_folder(checkpoint).resolve()  # a link would move when a run beside us saves
    settings = read_settings(
        folder / SETTINGS, [f"{name}={json.dumps(value)}" for name, value in LOCAL.items()]
    )
    _check_backbone(settings)
    weights = folder / (AVERAGE if settings.optimizer.ema_decay else WEIGHTS)
    packing, thresholds = read_packing(folder), None
    if (folder / THRESHOLDS).is_file():
        thresholds = read_thresholds(folder).model_dump(mode="json")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "classes": read_classes(folder),
        "packing": {name: packing[name] for name in (*PACKING_FIELDS, *FEATURE_FIELDS) if name in packing},
        "thresholds": thresholds,
        "weights": {"bytes": weights.stat().st_size, "sha256": file_sha256(weights)},
        "settings": settings.model_dump(mode="json"),
    }
    text = json.dumps(document, indent=1).encode() + b"\n"
    checked = _read_document(text, where=folder)
    _check_network(settings, checked.classes, read_weights(folder, weights.name), where=weights)
    with replacing(path) as partial:
        write_members(partial, {DOCUMENT: text, WEIGHTS: weights})
    return folder, tuple(checked.classes)


def _check_network(
    settings: Settings, classes: Sequence[str], tensors: dict[str, Tensor], *, where: Path
) -> None:
    """ValueError unless the tensors are those of the settings' network, found out without its memory."""
    try:
        with torch.device("meta"):
            network = build_network(settings, len(classes))
    except (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{where}: no network has its settings ({short(error, 100)}); {WANTED}") from None
    check_tensors(network, tensors, where=where)


def check_tensors(network: nn.Module, tensors: dict[str, Tensor], *, where: Path) -> None:
    """ValueError naming the first tensor that is not as the network has it."""
    mismatch = first_mismatch(tensors, network.state_dict())
    if mismatch is not None:
        reason = short(ValueError(mismatch), 250)  # it quotes names that are in the file
        raise ValueError(
            f"{where}: its weights are another network's than its settings: {reason}; "
            "leave out --set where it changes the network, or export the model again"
        )


# ----------------------------------------------------------------------------------------------- reading


def read_model_file(path: Path) -> ModelFile:
    """Read a model file; ValueError, one line, for one that is damaged, cut, foreign or of a newer release.

    Nothing is unpacked to disk, and nothing takes more memory than the file has bytes, but for the weights,
    which are there twice for a moment.
    """
    text, data = read_members(path, {DOCUMENT: LONGEST_DOCUMENT, WEIGHTS: None})
    found = _read_document(text, where=path)
    if len(data) != found.weights.bytes or sha256_of(data) != found.weights.sha256:
        raise ValueError(f"{path}: damaged, its weights are not those that {DOCUMENT} states; copy it again")
    return _model_of(found, data, path)


def _read_document(text: bytes, *, where: Path) -> Document:
    """model.json, checked but for its settings."""
    value = parse_json(text, where=f"{where}: {DOCUMENT}")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"{where}: is no model file, {DOCUMENT} in it is another program's; {WANTED}")
    if value.get("version") != VERSION:
        version = short(value.get("version"), 20)
        raise ValueError(
            f"{where}: is of version {version}, this release reads {VERSION}; install a newer LeanTAD"
        )
    try:
        json.dumps(value, allow_nan=False)  # Python's reader takes numbers that JSON does not have
        document = Document.model_validate(value)
        if _longest_list(document.settings) > MOST_VALUES:
            raise ValueError(f"settings: a list of more than {MOST_VALUES} values")
        of_features = (document.settings.get("data") or {}).get("num_features") is not None
        _check_packing(document.packing, of_features=of_features)
        if len(set(document.classes)) < len(document.classes):
            raise ValueError("classes: one stands twice")
        "".join(document.classes).encode()  # half a character, which JSON can state, could not be printed
    except (ValueError, OverflowError) as error:
        raise _refusal(where, error) from None
    return document


def _check_backbone(settings: Settings) -> None:
    """ValueError for a backbone that is described by a folder of one machine."""
    if named_folder(settings.encoder.backbone) is not None:
        raise ValueError(
            f"encoder.backbone: {short(settings.encoder.backbone)} is a folder of one machine; want a "
            "name that means the same everywhere, as hf:ORG/NAME"
        )


def _longest_list(values: object) -> int:
    """The length of the longest list in nested settings."""
    if isinstance(values, Mapping):
        return max(map(_longest_list, values.values()), default=0)
    return len(values) if isinstance(values, list) else 0


def _check_packing(packing: Mapping[str, Any], *, of_features: bool) -> None:
    """ValueError unless videos can be encoded so, at a size and rate they have; or features be made so."""
    unknown = packing.keys() - {*PACKING_FIELDS, *(FEATURE_FIELDS if of_features else ())}
    if unknown:
        raise ValueError(f"packing: {first_names(sorted(unknown))} unknown")
    if not of_features:
        encoding_spec_of(packing)


def _model_of(document: Document, data: bytes, path: Path) -> ModelFile:
    """The content of a file from its two members."""
    try:
        settings = settings_from(document.settings)
        _check_backbone(settings)
    except ValueError as error:
        raise _refusal(path, error) from None
    for name, blank in LOCAL.items():
        group, field = name.split(".")
        value = getattr(getattr(settings, group), field)
        if value != blank:
            raise ValueError(f"{path}: sets {name} to {short(value)}, and no model file sets it; {WANTED}")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: {WEIGHTS} in it is no safetensors file ({short(error, 100)})") from None
    _check_network(settings, document.classes, tensors, where=path)
    return ModelFile(settings, tuple(document.classes), document.packing, document.thresholds, tensors)


def _refusal(where: Path, error: Exception) -> ValueError:
    reason = short(ValueError(one_line(error)), 200)
    return ValueError(f"{where}: {DOCUMENT}: {reason}; is it a newer release's? Or export it again")
