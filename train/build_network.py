"""Builds the network of a run from its settings, with the encoder's pretrained weights if it names any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.backbones.named import NamedBackbone, pretrained_weights
from model.feature_network import FeatureNetwork
from model.network import Network
from model.settings import PRETRAINED
from pipeline.settings import DataSettings
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
    copy_weights(network, read_safetensors(path), where=str(path))


def copy_weights(network: Network, weights: dict[str, Tensor], *, where: str) -> None:
    """As `load_encoder_weights`, from tensors; where: what they are from, for messages."""
    backbone = network.encoder.backbone
    own = backbone.weighted.state_dict()
    heads = tuple(f"{module}." for module in backbone.head)
    left_out = [name for name in weights if name not in own and name.startswith(heads)]
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(
                f"{where}: tensor {name} {tuple(tensor.shape)} is missing; is it another backbone's file?"
            )
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"{where}: {name} is {tuple(weights[name].shape)}, the backbone wants {tuple(tensor.shape)}"
            )
    left = sorted(set(weights) - set(own) - set(left_out))
    if left:
        raise ValueError(f"{where}: {len(left)} tensors have no place in the backbone, first {left[0]}")
    backbone.weighted.load_state_dict({name: weights[name] for name in own})
    if left_out and rank() == 0:
        to_stderr(f"{where}: {len(own)} tensors; left out the classifier's {', '.join(left_out)}")


def load_pretrained(network: Network, backbone: str, weights: dict[str, Tensor]) -> None:
    """Copy the weights that the backbone's library offers, and say so."""
    copy_weights(network, weights, where=f"{backbone}: its pretrained weights")
    if rank() == 0:
        to_stderr(f"encoder.weights: {len(weights)} pretrained tensors of {backbone}, from its library")


def say_what_the_backbone_is(network: Network | FeatureNetwork, data: DataSettings) -> None:
    """One line, from the first process, of a backbone of another library."""
    backbone = network.encoder.backbone if isinstance(network, Network) else None
    if isinstance(backbone, NamedBackbone) and rank() == 0:
        to_stderr(f"{backbone.describe()}; here {data.clip_frames} frames of {data.crop}x{data.crop}")


def say_that_classes_are_unknown(num_classes: int) -> None:
    """One line, from the first process, unless there is one class alone."""
    if num_classes > 1 and rank() == 0:
        to_stderr(
            "detector.kind: etad knows no classes, all score 1; compute mAP with leantad eval "
            "--external-scores, or set detector.etad.class_scores=true before training"
        )


def build_network(settings: Settings, num_classes: int) -> Network | FeatureNetwork:
    """The network, initialised from settings.seed, then from encoder.weights; of features, a detector."""
    encoder, pretrained = settings.encoder, None
    if encoder.weights == PRETRAINED:
        pretrained = pretrained_weights(encoder.backbone)  # what its library downloads tells how it is built
    torch.manual_seed(settings.seed)
    network: Network | FeatureNetwork
    if settings.data.num_features is not None:
        network = FeatureNetwork(
            settings.detector, num_features=settings.data.num_features, num_classes=num_classes
        )
    else:
        network = Network(encoder, settings.detector, num_classes=num_classes)
    if settings.detector.kind == "etad" and not settings.detector.etad.class_scores:
        say_that_classes_are_unknown(num_classes)
    if isinstance(network, Network) and encoder.weights is not None:
        if pretrained is not None:
            load_pretrained(network, encoder.backbone, pretrained)
        else:
            load_encoder_weights(network, Path(encoder.weights))
    return network


def for_resume(settings: Settings) -> Settings:
    """The settings of a network that a checkpoint will fill: nothing is downloaded for it a second time."""
    if settings.encoder.weights != PRETRAINED:
        return settings
    encoder = settings.encoder.model_copy(update={"weights": None})
    return settings.model_copy(update={"encoder": encoder})


def resolve_device(name: str, *, where: str = "run.device") -> torch.device:
    """`auto` is cuda where there is one; asking for a cuda that is not there is an error, not a fallback.

    where: the setting or option that asks, for the message.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{where}: got cuda, but torch sees no GPU; want cpu or auto (and see nvidia-smi)")
    return torch.device(name)
