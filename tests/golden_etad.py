"""ETAD's detector against its authors' code, from a fixture's files alone."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_actionformer import kept_rows, nms_settings, padded_actions, require
from golden_check import FLOAT32, FLOAT64, Check, compare, same_count, same_rows
from safetensors.torch import load_file
from torch import Tensor

from model.detector.align import pool_bins
from model.detector.cascade import score_all
from model.detector.etad.bins import sampled_weights
from model.detector.etad.detector import Etad
from model.detector.etad.losses import boundary_loss
from model.detector.etad.targets import (
    boundary_targets,
    matched_segments,
    offset_targets,
    targets_at_ends,
    tiou_with,
)
from model.detector.ground_truth import PaddedActions
from model.detector.heads import StageOutput
from model.detector.proposals import candidate_proposals
from model.detector.settings import DetectorSettings, LossWeights
from tools.weights.names.etad import from_authors
from train.postprocess import RawWindow, at_peaks, is_peak

FEW = 3  # times the reference's own error, within which a right value stays
DRAWS = ("iou_cls", "iou_reg.mid", "iou_reg.low", "cls_start", "cls_end")  # in the order of stage_losses
TERMS = {
    "tiou_class": ("iou_cls",),
    "tiou_regression": ("iou_reg",),
    "boundary_offset": ("reg_start", "reg_end"),
    "centre_offset": ("reg_center", "reg_width"),
    "proposal_boundary": ("cls_start", "cls_end"),
}


@dataclass(frozen=True)
class Fixture:
    """The files of a fixture, and our detector with its weights."""

    meta: dict[str, Any]
    data: dict[str, Tensor]
    detector: Etad

    @property
    def num_steps(self) -> int:
        return self.detector.num_steps

    def limit(self, case: str, name: str, want: Tensor) -> float:
        """Relative error of an output of three networks in a row: the reference's own from float64, in the
        last stages up to 5e-5, comes in twice, and once more for another order of sums."""
        own = self.meta["cases"][case]["float32_vs_float64"]["outputs_max_abs"].get(name, 0.0)
        return max(FLOAT32, FEW * own / float(want.abs().max()))

    def features(self) -> Tensor:
        config, (num_videos, _, _) = self.meta["config"], self.data["input.anchors"].shape
        shape = (num_videos, config["in_channels"], config["tscale"])
        return self.data.get("input.features", remade(self.meta["seed"], "input.features", shape))

    def anchors(self) -> Tensor:
        return self.data["input.anchors"] * self.num_steps


@dataclass(frozen=True)
class Outputs:
    """What the detector computes on the way to its loss; anchors in steps."""

    neck: Tensor
    boundary: Tensor  # (B, 2, T) scores
    stages: list[tuple[Tensor, StageOutput, Tensor]]  # anchors, outputs, refined anchors
    leaves: dict[str, Tensor]  # features and parameters


def check_etad(folder: Path) -> Iterator[Check]:
    fixture = read(folder)
    outputs = {dtype: outputs_of(fixture, dtype) for dtype in (torch.float32, torch.float64)}
    yield from output_checks(fixture, outputs[torch.float32])
    yield from bin_checks(fixture.data)
    for name in fixture.meta["cases"]:
        yield from truth_checks(fixture, name)
        yield from target_checks(fixture, name, outputs[torch.float32])
        costs = []
        for each in outputs.values():
            cost, checks = losses_of(fixture, name, each)
            costs.append(cost)
            yield from checks
        gradients = [gradients_of(cost, each) for cost, each in zip(costs, outputs.values(), strict=True)]
        yield from gradient_checks(fixture, name, gradients)
    if "post" in fixture.meta:
        yield from prediction_checks(fixture)
        yield from detection_checks(fixture)


def read(folder: Path) -> Fixture:
    """ValueError for a configuration that the detector has no setting for, and for weights not as sampled."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    config, path = meta["config"], folder / "weights.safetensors"
    weights = from_authors(load_file(path) if path.is_file() else remade_weights(folder, meta["seed"]))
    hidden = sum(name.startswith("stages.0.tiou.") and name.endswith("weight") for name in weights) - 1
    require(config, dscale=config["tscale"])
    settings = DetectorSettings(
        kind="etad",
        num_steps=config["tscale"],
        neck_dim=config["width"],
        fc_dim=config["pem_mid"],
        head_dim=config["pem_fc"],
        roi_bins=config["roi_size"],
        roi_context=config["extend_ratio"],
        regression_tiou=config["stage_iou"],
        etad={"head_layers": hidden},
    )
    detector = Etad(settings, num_features=config["in_channels"], num_classes=1)
    detector.load_state_dict(weights)
    return Fixture(meta, load_file(folder / "data.safetensors"), detector)


def remade(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """What the fixtures' generator draws under a name."""
    draw = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))


def remade_weights(folder: Path, seed: int) -> dict[str, Tensor]:
    """The weights of weights_recipe.json, as its first values and sums prove."""
    recipe = json.loads((folder / "weights_recipe.json").read_text(encoding="utf-8"))
    weights = {}
    for name, each in recipe.items():
        weights[name] = remade(seed, name, tuple(each["shape"])) * each["scale"] + each["shift"]
        first = weights[name].flatten()[: len(each["first"])].double()
        off = (first - torch.tensor(each["first"], dtype=torch.float64)).abs().max()
        off_sum = abs(weights[name].double().sum().item() - each["sum_float64"])
        if off > 1e-6 or off_sum > 1e-6 * weights[name].numel():  # float32 products in another order
            raise ValueError(f"weights_recipe.json: {name} cannot be made again, off by {off:.1e}")
    return weights


def outputs_of(fixture: Fixture, dtype: torch.dtype) -> Outputs:
    """In a precision; anchors in steps."""
    detector = copy.deepcopy(fixture.detector).to(dtype)
    features = fixture.features().to(dtype).requires_grad_()
    anchors = fixture.anchors().to(dtype)
    neck = detector.neck(features)
    stages = []
    for stage in detector.stages:
        output = stage(neck, None, anchors)
        refined = detector.refine(output, anchors)
        stages.append((anchors, output, refined))
        anchors = refined
    leaves = {"features": features, **dict(detector.named_parameters())}
    return Outputs(neck, detector.boundary(neck).sigmoid(), stages, leaves)


def output_checks(fixture: Fixture, outputs: Outputs) -> Iterator[Check]:
    num_steps = fixture.num_steps
    ours = {"neck": outputs.neck, "tem": outputs.boundary}
    for number, (anchors, output, refined) in enumerate(outputs.stages, 1):
        scores = output.boundary_logits.sigmoid()
        ours[f"stage{number}.anchors_in"] = anchors / num_steps
        ours[f"stage{number}.iou"] = output.tiou_logits.sigmoid()
        ours[f"stage{number}.reg"] = torch.cat([output.boundary_offsets, output.centre_offsets, scores], -1)
        ours[f"stage{number}.anchors_out"] = refined / num_steps
    for name, got in ours.items():
        want = fixture.data[f"out.{name}"]
        limit = fixture.limit("train", name, want)
        yield compare(f"out.{name}", got.reshape(want.shape), want, tolerance=limit)


def bin_checks(data: Mapping[str, Tensor]) -> Iterator[Check]:
    """RoI align alone; rows whose number of points hangs on the last bit of their length are left out."""
    if "roi.rois" not in data:
        return
    rois, kept = data["roi.rois"], ~data["roi.borderline"]
    for name, want in data.items():
        if name.startswith("roi.out.size"):
            features = data["roi.feature"][rois[:, 0].long()]
            aligned = name.endswith(".aligned1")
            weights = sampled_weights(rois[:, None, 1:], features.shape[2], want.shape[2], aligned=aligned)
            yield compare(name, pool_bins(features, weights)[kept, 0], want[kept])


def actions_of(case: Mapping[str, Any], num_steps: int) -> PaddedActions:
    segments = [
        torch.tensor(
            [[min(1.0, max(0.0, second / video["duration"])) for second in each["segment"]]
             for each in video["annotations"]],
            dtype=torch.float64,
        )
        for video in case["annotations"]
    ]  # fmt: skip
    labels = [torch.zeros(len(each)) for each in segments]
    padded = padded_actions([each * num_steps for each in segments], labels)
    return PaddedActions(padded.segments.float(), padded.labels, padded.mask)


def truth_of(fixture: Fixture, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The action of each anchor (B, P, 2) in steps, and the boundary targets (B, 2, T)."""
    data = fixture.data
    matched = data[f"{name}.gt_bbox"].to(dtype) * fixture.num_steps
    return matched, torch.stack([data[f"{name}.gt_start"], data[f"{name}.gt_end"]], 1).to(dtype)


def truth_checks(fixture: Fixture, name: str) -> Iterator[Check]:
    """What the annotations become; a case whose actions are not its annotations has none of this."""
    actions = actions_of(fixture.meta["cases"][name], fixture.num_steps)
    matched, targets = truth_of(fixture, name, torch.float32)
    annotated = (matched[:, :, None] - actions.segments[:, None]).abs().amax(3).amin(2).max()
    if annotated > 1e-3:
        return
    yield compare(f"{name}.gt_bbox", matched_segments(fixture.anchors(), actions), matched)
    radius = fixture.detector.settings.etad.boundary_radius
    yield compare(
        f"{name}.gt_start and gt_end", boundary_targets(actions, fixture.num_steps, radius=radius), targets
    )


def target_checks(fixture: Fixture, name: str, outputs: Outputs) -> Iterator[Check]:
    data = fixture.data
    matched, targets = truth_of(fixture, name, torch.float32)
    prefix = "out" if f"{name}.stage1.target_iou" not in data else name
    for number, (anchors, _, _) in enumerate(outputs.stages, 1):
        ours = {
            "target_iou": tiou_with(matched, anchors),
            "target_delta": torch.cat(offset_targets(anchors, matched, fixture.num_steps), -1),
            "target_cls": targets_at_ends(targets, anchors),
        }
        for key, got in ours.items():
            want = data.get(f"{prefix}.stage{number}.{key}")
            if want is not None:
                limit = fixture.limit(name, f"stage{number}.{key}", want)
                yield compare(f"{name}.stage{number}.{key}", got.reshape(want.shape), want, tolerance=limit)


def losses_of(fixture: Fixture, name: str, outputs: Outputs) -> tuple[Tensor, list[Check]]:
    """The whole loss of a case in the outputs' precision, and its parts against the reference's."""
    data, case, weights = fixture.data, fixture.meta["cases"][name], LossWeights()
    double = outputs.neck.dtype == torch.float64
    bits, tolerance = ("_float64", FLOAT64) if double else ("", FLOAT32)
    sums, terms = (case[f"{key}{bits}"] for key in ("losses", "terms"))
    matched, targets = truth_of(fixture, name, outputs.neck.dtype)
    cost = weights.boundary * boundary_loss(outputs.boundary, targets)
    found = {"tem": (cost, sums["tem"])}
    shape = data["input.anchors"].shape[:2]
    for number, (anchors, output, _) in enumerate(outputs.stages, 1):
        rows = [data.get(f"{name}.rand.stage{number}.{key}", torch.zeros(shape)) for key in DRAWS]
        draws = torch.stack([row.reshape(shape) for row in rows])
        threshold = fixture.detector.settings.regression_tiou[number - 1]
        parts = fixture.detector.stage_losses(output, anchors, matched, targets, threshold, draws)
        for key, value in parts.items():
            found[f"stage{number}.{key}"] = (
                value,
                sum(terms[f"stage{number}.{term}"] for term in TERMS[key]),
            )
        stage = torch.stack([getattr(weights, key) * value for key, value in parts.items()]).sum()
        found[f"stage{number}"] = (stage, sums[f"stage{number}"])
        cost = cost + stage
    found["cost"] = (cost, sums["cost"])
    checks = [compare(f"{name}.{key}{bits}", *pair, tolerance=tolerance) for key, pair in found.items()]
    return cost, checks


def gradients_of(cost: Tensor, outputs: Outputs) -> dict[str, Tensor]:
    """Of features and parameters; 0 for what the loss of a case does not see."""
    found = torch.autograd.grad(
        cost, list(outputs.leaves.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(outputs.leaves, found, strict=True))


def gradient_checks(fixture: Fixture, name: str, gradients: list[dict[str, Tensor]]) -> Iterator[Check]:
    """Norms of every parameter's gradient, and those gradients that the fixture has whole.

    Of ours in float32 and float64 the nearer counts: where a ReLU is at 0, each precision may fall on another
    side. In float64 we may be off by what the reference is itself, which it says of features and of the worst
    parameter. An error counts relative to at least 1e-3 of the largest norm.
    """
    case = fixture.meta["cases"][name]
    norms, largest = case["grad_norm"], max(case["grad_norm"].values())
    own = case["float32_vs_float64"]
    of_features = max(FLOAT32, FEW * own["grad_features_rel"])
    of_parameters = max(of_features, 2 * own["grad_rel_worst"][0])
    for key, norm in norms.items():
        limit = of_features if key == "features" else of_parameters
        ours = key if key == "features" else next(iter(from_authors({key: torch.zeros(1)})))
        pairs = {f"{name} gradient norm of {key}": (torch.Tensor.norm, norm)}
        whole = fixture.data.get(f"{'' if name == 'train' else f'{name}.'}grad.{key}")
        if whole is not None:
            pairs[f"{name} gradient of {key}"] = (torch.Tensor.detach, whole)
        for what, (of, want) in pairs.items():
            found = [
                compare(what, of(each[ours].double()), want, scale=1e-3 * largest, tolerance=limit)
                for each in gradients
            ]
            yield min(found, key=lambda check: check.error)


def prediction_checks(fixture: Fixture) -> Iterator[Check]:
    """All candidates of one video; the reference's are by length, then start."""
    features, detector = fixture.data["post.net.features"], fixture.detector
    with torch.no_grad():
        neck = detector.neck(features)
        segments, quality, _ = score_all(
            detector.stages,
            detector.refine,
            neck,
            None,
            num_steps=fixture.num_steps,
            at_once=detector.settings.predict_proposals,
        )
    start, end = candidate_proposals(fixture.num_steps).unbind(-1)
    order = ((end - start) * fixture.num_steps + start).argsort()
    scores = fixture.data["post.net.iou"].prod(1)
    limits = [fixture.limit("train", f"stage{len(detector.stages)}.{name}", scores.new_ones(1))
              for name in ("anchors_out", "iou")]  # fmt: skip
    found = segments[0, order] / fixture.num_steps
    yield compare("post.net.anchors", found, fixture.data["post.net.anchors"], tolerance=limits[0])
    yield compare("post.net quality", quality[0, order], scores, tolerance=limits[1])
    boundary = detector.boundary(neck).sigmoid()[0]
    for number, name in enumerate(("start", "end")):
        yield compare(f"post.net.{name}", boundary[number], fixture.data[f"post.net.{name}"])


def detection_checks(fixture: Fixture) -> Iterator[Check]:
    """From raw outputs to detections: peaks, suppression, the labels of an external classifier.

    As the reference does it: proposals are cut to the video after the suppression, and one that is left alone
    is not reported.
    """
    post, data = fixture.meta["post"], fixture.data
    require(post["settings"], iou_threshold=0)
    settings = nms_settings(
        sigma=post["settings"]["sigma"], min_score=0, max_detections=post["num_prop"], boundary_peaks=True
    )
    for name, duration in post["durations"].items():
        raw = raw_window(fixture, name, duration)
        for number, end in enumerate(("start", "end")):
            peaks = is_peak(raw.boundary[number])
            peaks[-number] = True
            yield compare(f"post.{name}.{end}_mask", torch.from_numpy(peaks), data[f"post.{name}.{end}_mask"])
        kept = at_peaks(raw)
        passed = post["proposals_after_peak_filter"][name]
        yield same_count(f"post.{name} proposals at peaks", int(kept.sum()), passed)
        segments = torch.from_numpy(raw.segments[kept]).double() / fixture.num_steps
        scores = torch.from_numpy(raw.quality[kept])
        rows, _ = kept_rows(segments, torch.zeros(len(segments)), scores, settings)
        rows = rows[: min(post["num_prop"], passed - 1)]
        rows[:, 0], rows[:, 1] = rows[:, 0].clamp(min=0) * duration, rows[:, 1].clamp(max=1) * duration
        given = torch.tensor(post["cuhk"]["results"][name], dtype=torch.float64)
        best, classes = given.topk(post["topk"])
        rows = rows.repeat_interleave(len(best), 0)
        labels = classes.repeat(len(rows) // len(best))
        rows[:, 2] *= given[labels]
        want = post["detections"][name]
        names = torch.tensor([post["cuhk"]["class"].index(row[2]) for row in want])
        wanted = torch.tensor([[row[0], row[1], row[3]] for row in want], dtype=torch.float64)
        yield same_rows(f"post.{name} detections", rows, wanted, (labels, names))


def raw_window(fixture: Fixture, name: str, duration: float) -> RawWindow:
    data = {key: fixture.data[f"post.{name}.{key}"].numpy() for key in ("anchors", "iou", "start", "end")}
    return RawWindow(
        key=name,
        window=(0.0, duration),
        duration=duration,
        num_steps=fixture.num_steps,
        segments=data["anchors"] * fixture.num_steps,
        quality=data["iou"].prod(1),
        class_scores=np.ones((len(data["anchors"]), 1), dtype=np.float32),
        boundary=np.stack([data["start"], data["end"]]),
    )
