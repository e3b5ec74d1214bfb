"""Checks of outputs, targets, losses and gradients that the fixtures of both projects share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from golden_actionformer import Fixture, Outputs, take_steps
from golden_check import FLOAT64, Check, compare
from torch import Tensor

from model.detector.actionformer.detector import ActionFormer
from model.detector.actionformer.points import assign_actions, make_points
from model.detector.ground_truth import PaddedActions


def loss_checks(
    name: str, parts: Mapping[str, Tensor], wanted: Mapping[str, float], *, weighted: float, **limits: float
) -> Iterator[Check]:
    """weighted: by what the reference's reg_loss is to be multiplied: ours has its weight."""
    total = next(key for key in ("final_loss", "cost") if key in wanted)
    of_distance = wanted["reg_loss"] * weighted
    yield compare(f"{name} cls_loss", parts["class"], wanted["cls_loss"], **limits)
    yield compare(f"{name} reg_loss", parts["distance"], of_distance, scale=1e-6, **limits)
    yield compare(f"{name} {total}", parts["class"] + parts["distance"], wanted[total], **limits)


def gradient_checks(
    name: str, detector: ActionFormer, fixture: Fixture, convert, norms: Mapping[str, float]
) -> Iterator[Check]:
    """Norms of every parameter's gradient, and those gradients that the fixture has whole.

    Biases of keys have none but for rounding: an error counts relative to at least 1e-3 of the largest.
    """
    largest = max(norms.values())
    own = {key: p.grad for key, p in detector.named_parameters()}
    for key, norm in norms.items():
        if key in ("features", "inputs"):
            continue  # compared by the caller
        name_of_ours = next(iter(convert({key: torch.zeros(1)})))
        gradient = own[name_of_ours]
        if name_of_ours == "scales.factors":
            gradient = gradient[int(key.split(".")[-2])]
        yield compare(f"{name} gradient norm of {key}", gradient.norm(), norm, scale=1e-3 * largest)
        whole = fixture.data.get(f"train.grad.{key}")
        if whole is not None:
            got = gradient.reshape(whole.shape)
            yield compare(f"{name} gradient of {key}", got, whole, scale=1e-3 * largest)


def output_checks(prefix: str, fixture: Fixture, outputs: Outputs) -> Iterator[Check]:
    """All outputs that the fixture has under the prefix, in the names of either project."""
    found = {
        "backbone": outputs.levels,
        "projection": outputs.levels,
        "fpn": outputs.maps,
        "fpn_mask": [mask.float() for mask in outputs.masks],
        "cls_logits": outputs.by_level(outputs.logits),
        "offsets": outputs.by_level(outputs.distances),
        "raw_offsets": outputs.raw,
    }
    for name, levels in found.items():
        for number, got in enumerate(levels):
            want = fixture.data.get(f"{prefix}.{name}.{number}")
            if want is None:
                continue
            if name in (
                "cls_logits",
                "offsets",
                "raw_offsets",
            ):  # behind the end OpenTAD leaves them as they come
                got, want = (x * outputs.masks[number].transpose(1, 2) for x in (got, want))
            yield compare(f"{prefix}.{name}.{number}", got, want.float())


def target_checks(fixture: Fixture, actions: PaddedActions, outputs: Outputs) -> Iterator[Check]:
    """Points, and what they are trained towards."""
    detector, data = fixture.detector, fixture.data
    points = make_points(outputs.masks[0].shape[2], detector.settings, device=torch.device("cpu"))
    columns = [points.position, points.min_distance, points.max_distance, points.stride]
    if "points.0" in data:
        yield compare("points", torch.stack(columns, 1), torch.cat(fixture.rows("points")))
    radius = detector.settings.centre_radius
    classes, distances = assign_actions(points, actions, detector.num_classes, centre_radius=radius)
    wanted = data["train.target_cls"].float()
    yield compare("train.target_cls", classes, wanted)
    there = wanted.amax(2) > 0
    yield compare("train.target_offset", distances[there], data["train.target_offset"][there])


def float64_checks(
    fixture: Fixture,
    features: Tensor,
    mask: Tensor,
    actions: PaddedActions,
    base: dict[str, Any],
    *,
    weight: float,
) -> Iterator[Check]:
    """The losses of the network in float64; what the reference rounded to float32 within that."""
    detector = fixture.detector.double()
    detector.normaliser.float()  # as OpenTAD's stays
    actions = PaddedActions(actions.segments.double(), actions.labels, actions.mask)
    start = base["loss_normalizer_by_step"][0]
    with torch.no_grad():
        parts, _ = take_steps(detector, features.detach().double(), mask, actions, start=start)
    detector.float()
    wanted = base["losses_float64_network"][0]
    for name, got in (("cls_loss", parts["class"]), ("reg_loss", parts["distance"])):
        want = wanted[name] * (weight if name == "reg_loss" else 1)
        rounded = float(np.float32(wanted[name])) == wanted[name]
        yield compare(f"float64 {name}", got, want, tolerance=2e-7 if rounded else FLOAT64)
