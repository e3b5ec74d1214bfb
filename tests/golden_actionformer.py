"""ActionFormer's detector against its authors' code and OpenTAD's, from a fixture's files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.backbones.drop_path import DropPath
from model.detector.actionformer.detector import ActionFormer
from model.detector.ground_truth import PaddedActions
from model.detector.settings import DetectorSettings
from train.postprocess import Candidates, PostSettings, suppress


@dataclass(frozen=True)
class Fixture:
    """The files of a fixture, and our detector with its weights."""

    meta: dict[str, Any]
    data: dict[str, Tensor]
    detector: ActionFormer

    def rows(self, prefix: str) -> list[Tensor]:
        """The tensors PREFIX.0, PREFIX.1 and so on."""
        count = sum(name.startswith(f"{prefix}.") and name[len(prefix) + 1 :].isdigit() for name in self.data)
        return [self.data[f"{prefix}.{number}"] for number in range(count)]


@dataclass(frozen=True)
class Outputs:
    """What the detector computes on the way to its loss."""

    levels: list[Tensor]  # before the level norms
    raw: list[Tensor]  # distances before their factors
    maps: list[Tensor]
    masks: list[Tensor]
    logits: Tensor  # (B, P, K)
    distances: Tensor  # (B, P, 2)
    mask: Tensor  # (B, P)

    def by_level(self, values: Tensor) -> list[Tensor]:
        return list(torch.split(values, [mask.shape[2] for mask in self.masks], 1))


def outputs_of(detector: ActionFormer, features: Tensor, mask: Tensor) -> Outputs:
    """features: (B, D, T), mask: (B, T)."""
    levels: list[Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: levels.append(inputs[0]))
        for norm in detector.pyramid.norms
    ]
    try:
        maps, masks = detector.pyramid(features, mask[:, None])
    finally:
        for hook in hooks:
            hook.remove()
    logits, raw = detector.classes(maps, masks), detector.distances(maps, masks)
    distances = detector.scales(raw)
    valid = torch.cat(masks, 2)[:, 0]
    return Outputs(levels, raw, maps, masks, torch.cat(logits, 1), torch.cat(distances, 1), valid)


def padded_actions(segments: list[Tensor], labels: list[Tensor]) -> PaddedActions:
    """The ground truth as it is, unclipped."""
    most = max(1, *(len(each) for each in labels))
    pad = [most - len(each) for each in labels]
    return PaddedActions(
        torch.stack(
            [F.pad(each.reshape(-1, 2), (0, 0, 0, n)) for each, n in zip(segments, pad, strict=True)]
        ),
        torch.stack([F.pad(each.long(), (0, n)) for each, n in zip(labels, pad, strict=True)]),
        torch.stack([torch.arange(most) < len(each) for each in labels]),
    )


def require(config: Mapping[str, Any], **wanted: object) -> None:
    """ValueError for a configuration that our detector has no setting for."""
    for name, value in wanted.items():
        if name in config and config[name] != value:
            raise ValueError(f"configuration: {name} is {config[name]!r}, ours is always {value!r}")


def distances_of(ranges: list[list[float]]) -> tuple[float, ...]:
    """The settings' max_distances."""
    if any(a[1] != b[0] for a, b in zip(ranges, ranges[1:], strict=False)) or ranges[-1][1] < 10_000:
        raise ValueError(f"configuration: regression ranges {ranges}, ours follow one another without end")
    return tuple(float(high) for _, high in ranges[:-1])


def windows_of(value: int | list[int]) -> tuple[int, ...]:
    """-1 and 1 are attention to everything."""
    return tuple(0 if window <= 1 else window for window in (value if isinstance(value, list) else [value]))


def build(settings: dict[str, Any], *, num_steps: int, inputs: int, classes: int, weights: dict[str, Tensor]):
    whole = DetectorSettings(
        kind="actionformer", num_steps=num_steps, actionformer={**settings, "point_offset": 0.0}
    )
    detector = ActionFormer(whole, num_features=inputs, num_classes=classes)
    start = {"normaliser.value": detector.normaliser.value.clone()}
    detector.load_state_dict({**start, **weights})
    return detector


@contextmanager
def drawn(detector: ActionFormer, draws: Tensor | None) -> Iterator[None]:
    """Inside, drop path takes these uniform numbers (calls, B), not its own; None: nothing is dropped."""
    modules = [module for module in detector.modules() if isinstance(module, DropPath)]
    rates = [module.rate for module in modules]
    if draws is not None and len(draws) != len(modules):
        raise ValueError(f"{len(draws)} rows of draws for {len(modules)} branches")
    try:
        for number, module in enumerate(modules):
            if draws is None:
                module.rate = 0.0
            else:
                kept = (draws[number] >= module.rate) / (1 - module.rate)
                module.forward = lambda x, kept=kept: x * kept.view(-1, 1, 1).to(x.dtype)  # type: ignore
        yield
    finally:
        for module, rate in zip(modules, rates, strict=True):
            module.rate = rate
            module.__dict__.pop("forward", None)


def take_steps(
    detector: ActionFormer, features: Tensor, mask: Tensor, actions: PaddedActions, *, start: float | None
) -> tuple[dict[str, Tensor], Outputs]:
    """The parts of one loss in the detector's mode; start: the normaliser before it, None: as it is."""
    if start is not None:
        detector.normaliser.value.fill_(start)
    outputs = outputs_of(detector, features, mask)
    parts = detector.losses(outputs.logits, outputs.distances, outputs.mask, actions, features.shape[2])
    return parts, outputs


def nms_settings(**values: Any) -> PostSettings:
    return PostSettings(nms="gaussian", nms_tiou=0, quality_power=0, **values)


def kept_rows(
    segments: Tensor, labels: Tensor, scores: Tensor, settings: PostSettings
) -> tuple[Tensor, Tensor]:
    """Suppression and voting of ours: rows (n, 3) of start, end and score, and their labels."""
    enough = scores > settings.min_score
    candidates = Candidates(*(x[enough].numpy() for x in (segments.double(), labels.long(), scores.double())))
    kept = suppress(candidates, settings)
    rows = np.concatenate([kept.segments, kept.scores[:, None]], 1)
    return torch.from_numpy(rows), torch.from_numpy(kept.label.copy())


def padded(features: list[Tensor], num_steps: int) -> tuple[Tensor, Tensor]:
    """Features (D, t) of videos, zeros behind them: (B, D, T) and the mask (B, T)."""
    mask = torch.stack([torch.arange(num_steps) < x.shape[1] for x in features])
    return torch.stack([F.pad(x, (0, num_steps - x.shape[1])) for x in features]), mask
