"""The optimizer's parameter groups: which learning rate and weight decay each parameter of a network has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.text import suggestion
from train.optimizer import OptimizerSettings

WITHOUT_DECAY = ", without decay"  # ends the name of a group whose parameters do not shrink


def parameter_groups(network: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trainable parameters of `network.encoder` and `network.detector` by learning rate and weight decay.

    Groups come in the order of the parameters; their names are "encoder", "detector" or a prefix of
    optimizer.layer_lrs. Raises ValueError if a prefix fits no trainable parameter.
    """
    rates = {"encoder": settings.encoder_lr, "detector": settings.detector_lr}
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    others = [name for name in trainable if name.split(".")[0] not in rates]
    assert not others, f"trainable parameters outside encoder and detector: {others[:3]}"
    _check_prefixes(network, settings.layer_lrs)
    factors = dict.fromkeys(rates, 1.0) | dict(settings.layer_lrs)
    groups: dict[str, dict[str, Any]] = {}
    for part, rate in rates.items():
        for name in [name for name in trainable if begins_with(name, part)]:
            prefix = max((each for each in factors if begins_with(name, each)), key=len)
            decays = has_decay(name, trainable[name]) or not settings.decay_weights_alone
            group = groups.setdefault(
                prefix if decays else prefix + WITHOUT_DECAY,
                {
                    "params": [],
                    "lr": rate * factors[prefix],
                    "weight_decay": settings.weight_decay if decays else 0.0,
                },
            )
            group["params"].append(trainable[name])
    return [{**group, "name": name} for name, group in groups.items()]


def begins_with(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or lies below it: layer1.0 below layer1, not layer10."""
    return name == prefix or name.startswith(f"{prefix}.")


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or a kernel; not a bias, a table of biases, or the scale of a norm."""
    last = name.rpartition(".")[2]  # weight, weight_hh_l0 of an LSTM, in_proj_weight of an attention
    return parameter.ndim > 1 and (last.startswith("weight") or last.endswith("weight"))


def _check_prefixes(network: nn.Module, prefixes: Mapping[str, float]) -> None:
    """ValueError for the first prefix that is of no parameter, or of frozen ones alone."""
    names = {name: p.requires_grad for name, p in network.named_parameters()}
    for prefix in prefixes:
        fitting = [trainable for name, trainable in names.items() if begins_with(name, prefix)]
        if not fitting:
            parts = [name.split(".") for name in names]
            known = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part) + 1))
            raise ValueError(
                f"optimizer.layer_lrs: no parameter begins with {prefix}; "
                f"{suggestion(prefix, known, otherwise='encoder.backbone and detector begin most of them')}"
            )
        if not any(fitting):
            raise ValueError(
                f"optimizer.layer_lrs: all parameters that begin with {prefix} are frozen; leave it out, or "
                "train them (encoder.frozen, encoder.frozen_stages)"
            )


def group_sizes(groups: list[dict[str, Any]]) -> dict[str, int]:
    """Elements of each group, by name."""
    return {group["name"]: sum(p.numel() for p in group["params"]) for group in groups}
