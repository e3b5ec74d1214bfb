"""Builds the network of a run from its settings, with the encoder's pretrained weights if it names any."""

from __future__ import annotations

from pathlib import Path

import torch

from model.feature_network import FeatureNetwork
from model.network import Network
from train.checkpoint import read_safetensors
from train.cli import to_stderr
from train.distributed import rank
from train.settings import Settings


def load_encoder_weights(network: Network, path: Path) -> None:
    """Copy a safetensors file of backbone weights, names as in model/backbones, into the encoder.

    Raises ValueError naming the first tensor that is missing, unexpected or of another shape.
    """
    if not path.is_file():
        raise ValueError(
            f"encoder.weights: {path} is not a file; want a safetensors file of backbone weights"
        )
    weights = read_safetensors(path)
    own = network.encoder.backbone.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(
                f"{path}: tensor {name} {tuple(tensor.shape)} is missing; is it another backbone's file?"
            )
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(weights[name].shape)}, the backbone wants {tuple(tensor.shape)}"
            )
    left = sorted(set(weights) - set(own))
    if left:
        raise ValueError(f"{path}: {len(left)} tensors have no place in the backbone, first {left[0]}")
    network.encoder.backbone.load_state_dict(weights)


def say_that_classes_are_unknown(num_classes: int) -> None:
    """One line, from the first process, unless there is one class alone."""
    if num_classes > 1 and rank() == 0:
        to_stderr(
            "detector.kind: etad knows no classes, all score 1; compute mAP with leantad eval "
            "--external-scores, or set detector.etad.class_scores=true before training"
        )


def build_network(settings: Settings, num_classes: int) -> Network | FeatureNetwork:
    """The network, initialised from settings.seed, then from encoder.weights; of features, a detector."""
    torch.manual_seed(settings.seed)
    network: Network | FeatureNetwork
    if settings.data.num_features is not None:
        network = FeatureNetwork(
            settings.detector, num_features=settings.data.num_features, num_classes=num_classes
        )
    else:
        network = Network(settings.encoder, settings.detector, num_classes=num_classes)
    if settings.detector.kind == "etad" and not settings.detector.etad.class_scores:
        say_that_classes_are_unknown(num_classes)
    if settings.encoder.weights is not None and isinstance(network, Network):
        load_encoder_weights(network, Path(settings.encoder.weights))
    return network


def resolve_device(name: str, *, where: str = "run.device") -> torch.device:
    """`auto` is cuda where there is one; asking for a cuda that is not there is an error, not a fallback.

    where: the setting or option that asks, for the message.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{where}: got cuda, but torch sees no GPU; want cpu or auto (and see nvidia-smi)")
    return torch.device(name)
