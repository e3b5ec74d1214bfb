"""ActionFormer's detector against OpenTAD's, from a fixture's files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from golden_actionformer import (
    Fixture,
    build,
    distances_of,
    drawn,
    kept_rows,
    nms_settings,
    outputs_of,
    padded,
    padded_actions,
    require,
    take_steps,
    windows_of,
)
from golden_check import Check, compare, same_rows
from golden_outputs import float64_checks, gradient_checks, loss_checks, output_checks, target_checks
from safetensors.torch import load_file
from torch import Tensor

from model.detector.actionformer.points import make_points
from model.detector.ground_truth import PaddedActions
from tools.weights.names.actionformer import from_opentad

OPENTAD_PRE_NMS = {"score": 0.001, "topk": 2000}  # its detector's, not in its configurations
ROUNDED = (0.01, 0.01, 0.0001)  # seconds and scores in its results


def check_opentad(folder: Path) -> Iterator[Check]:
    """A fixture of OpenTAD's ActionFormer: projection, neck and head."""
    fixture = opentad_fixture(folder)
    yield from opentad_training(fixture)
    yield from opentad_evaluation(fixture)
    yield from opentad_epsilon(fixture)


def opentad_fixture(folder: Path) -> Fixture:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    projection, neck, head = (meta["config"][part] for part in ("projection", "neck", "rpn_head"))
    require({"type": projection["type"]}, type="Conv1DTransformerProj")
    require(
        neck,
        type="FPNIdentity",
        in_channels=projection["out_channels"],
        out_channels=projection["out_channels"],
    )
    require(
        projection, conv_cfg={"kernel_size": 3, "proj_pdrop": 0.0}, norm_cfg={"type": "LN"}, input_pdrop=0.0
    )
    require(head, type="ActionFormerHead", in_channels=projection["out_channels"])
    ranges = head["prior_generator"]["regression_range"]
    require(
        head["prior_generator"], type="PointGenerator", strides=[2**level for level in range(len(ranges))]
    )
    require(
        {"loss": head["loss"]}, loss={"cls_loss": {"type": "FocalLoss"}, "reg_loss": {"type": "DIOULoss"}}
    )
    settings = {
        "embed_dim": projection["out_channels"],
        "head_dim": head["feat_channels"],
        "num_heads": projection["attn_cfg"]["n_head"],
        "embed_layers": projection["arch"][0],
        "stem_layers": projection["arch"][1],
        "head_layers": head["num_convs"],
        "max_distances": distances_of(ranges),
        "attention_windows": windows_of(projection["attn_cfg"]["n_mha_win_size"]),
        "position_embedding": projection["use_abs_pe"],
        "drop_path": projection["path_pdrop"],
        "centre_radius": head["center_sample_radius"] if head["center_sample"] == "radius" else None,
        "label_smoothing": head["label_smoothing"],
        "class_prior": head["cls_prior_prob"],
        "distance_weight": head.get("loss_weight", 1.0),
        "normaliser_start": head["loss_normalizer"],
        "normaliser_momentum": head["loss_normalizer_momentum"],
        "origin": "opentad",
    }
    detector = build(
        settings,
        num_steps=projection["max_seq_len"],
        inputs=projection["in_channels"],
        classes=head["num_classes"],
        weights=from_opentad(load_file(folder / "weights.safetensors")),
    )
    return Fixture(meta, load_file(folder / "data.safetensors"), detector)


def opentad_training(fixture: Fixture) -> Iterator[Check]:
    detector, data, case = fixture.detector.train(), fixture.data, fixture.meta["train"]
    features, mask = data["train.inputs"].clone().requires_grad_(), data["train.padded_mask"].bool()
    segments, labels = fixture.rows("train.segments"), fixture.rows("train.labels")
    actions = padded_actions(segments, labels)
    starts = case["loss_normalizer_by_step"]
    with drawn(detector, None):
        parts, outputs = take_steps(detector, features, mask, actions, start=starts[0])
        (parts["class"] + parts["distance"]).backward()
        yield from output_checks("train", fixture, outputs)
        yield from target_checks(fixture, actions, outputs)
        yield from gradient_checks("train", detector, fixture, from_opentad, case["grad_norm"])
        yield compare("train gradient of inputs", features.grad, data["train.grad.inputs"])
        yield from loss_checks("train step 0", parts, case["losses_by_step"][0], weighted=1)
        for number, wanted in enumerate(case["losses_by_step"][1:], 1):
            yield compare(f"normaliser {number}", detector.normaliser.value, starts[number])
            parts, _ = take_steps(detector, features, mask, actions, start=None)
            yield from loss_checks(f"train step {number}", parts, wanted, weighted=1)
        yield from float64_checks(fixture, features, mask, actions, case, weight=1)
        none = padded_actions([each[:0] for each in segments], [each[:0] for each in labels])
        yield from opentad_case("no truth", fixture, features, mask, none, case["no_truth"])
    with drawn(detector, data["train.droppath.draws"]):
        yield from opentad_case("drop path", fixture, features, mask, actions, case["droppath_0.1"])
    detector.eval()
    yield from opentad_case(
        "evaluation mode", fixture, features, mask, actions, fixture.meta["loss_in_eval_mode"]
    )


def opentad_case(
    name: str, fixture: Fixture, features: Tensor, mask: Tensor, actions: PaddedActions, case: dict[str, Any]
) -> Iterator[Check]:
    """The losses of a further case, its normaliser and gradient."""
    detector, start = fixture.detector, fixture.meta["train"]["loss_normalizer_by_step"][0]
    features = features.detach().clone().requires_grad_()
    parts, _ = take_steps(detector, features, mask, actions, start=start)
    (parts["class"] + parts["distance"]).backward()
    yield from loss_checks(name, parts, case["losses"], weighted=1)
    if "loss_normalizer" in case:
        yield compare(f"{name} normaliser", detector.normaliser.value, case["loss_normalizer"][1])
    if "grad_norm_inputs" in case:
        yield compare(f"{name} gradient of inputs", features.grad.norm(), case["grad_norm_inputs"])


def opentad_evaluation(fixture: Fixture) -> Iterator[Check]:
    """A video's windows: proposals and scores, what enters the suppression, and detections after it."""
    case, data, detector = fixture.meta["eval"], fixture.data, fixture.detector.eval()
    features, mask = opentad_windows(fixture)
    with torch.no_grad():
        outputs = outputs_of(detector, features, mask)
    valid = torch.stack([level[:, 0].sum(1) for level in outputs.masks])
    yield compare("eval valid", valid, torch.tensor(case["valid_per_level"]))
    points = make_points(features.shape[2], detector.settings, device=torch.device("cpu"))
    segments, scores = points.segments(outputs.distances), outputs.logits.sigmoid()
    for number, there in enumerate(outputs.mask):
        yield compare(f"eval.proposals.{number}", segments[number][there], data[f"eval.proposals.{number}"])
        yield compare(f"eval.scores.{number}", scores[number][there], data[f"eval.scores.{number}"])
    yield from opentad_candidate_checks(fixture)
    yield from opentad_detection_checks(fixture)


def opentad_windows(fixture: Fixture) -> tuple[Tensor, Tensor]:
    """The inputs of the evaluation and their mask."""
    case, data = fixture.meta["eval"], fixture.data
    if case["rows_taken"].startswith("train row"):
        rows = [
            int(number) for number in case["rows_taken"].replace("rows", "row").split("row ")[1].split(",")
        ]
        return data["train.inputs"][rows], data["train.padded_mask"][rows].bool()
    return padded(list(data[case["rows_taken"]]), case["padded_length"])


def opentad_candidates(fixture: Fixture, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of the reference's proposals of a window: segments in steps, labels, scores."""
    segments, scores = (fixture.data[f"eval.{name}.{number}"] for name in ("proposals", "scores"))
    best, order = scores.flatten().sort(descending=True, stable=True)
    count = min(int((best > OPENTAD_PRE_NMS["score"]).sum()), OPENTAD_PRE_NMS["topk"])
    order = order[:count]
    return segments[order // scores.shape[1]], order % scores.shape[1], best[:count]


def opentad_seconds(segments: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """Steps of a window -> seconds of its video, inside it."""
    if meta["fps"] <= 0:
        seconds = segments / meta["resize_length"] * meta["duration"]
    else:
        first = meta.get("window_start_frame", 0) + meta["offset_frames"]
        seconds = (segments * meta["snippet_stride"] + first) / meta["fps"]
    return seconds.clamp(0, meta["duration"])


def with_classes(fixture: Fixture, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of start, end, score and their labels; times the best classes of the video if it has such."""
    given = fixture.meta["eval"]["class_scores"]
    if given is None:
        return rows, labels
    scores = torch.tensor(
        given["results"][fixture.meta["eval"]["metas"][0]["video_name"]], dtype=torch.float64
    )
    best, classes = scores.topk(fixture.meta["post_processing"]["external_cls"]["topk"])
    repeated = rows.repeat_interleave(len(best), 0)
    repeated[:, 2] *= best.repeat(len(rows))
    return repeated, classes.repeat(len(rows))


def opentad_candidate_checks(fixture: Fixture) -> Iterator[Check]:
    """What the reference has without a suppression; it rounds seconds to 0.01 and scores to 0.0001."""
    rows, labels = [], []
    for number, meta in enumerate(fixture.meta["eval"]["metas"]):
        segments, label, scores = opentad_candidates(fixture, number)
        row = torch.cat([opentad_seconds(segments.double(), meta), scores[:, None].double()], 1)
        row, label = with_classes(fixture, row, label)
        rows.append(row)
        labels.append(label)
    both = (torch.cat(labels), fixture.data["eval.pre_nms_label"].long())
    yield same_rows("eval.pre_nms", torch.cat(rows), fixture.data["eval.pre_nms"], both, rounded=ROUNDED)


def opentad_detection_checks(fixture: Fixture) -> Iterator[Check]:
    """Suppression and voting: in steps for a whole video, for windows in their rounded seconds."""
    case, nms = fixture.meta["eval"], fixture.meta["post_processing"]["nms"]
    require(nms, use_soft_nms=True)
    settings = nms_settings(
        sigma=nms["sigma"],
        min_score=nms["min_score"],
        max_detections=nms["max_seg_num"],
        voting_tiou=0.0 if nms["multiclass"] else nms["voting_thresh"],
    )
    if case["sliding_window"]:
        given = fixture.data["eval.pre_nms"].double()
        rows, labels = kept_rows(given[:, :2], fixture.data["eval.pre_nms_label"], given[:, 2], settings)
    else:
        rows, labels = kept_rows(*opentad_candidates(fixture, 0), settings)
        rows[:, :2] = opentad_seconds(rows[:, :2], case["metas"][0])
        rows, labels = with_classes(fixture, rows, labels)
    wanted = torch.tensor([[row[0], row[1], row[3]] for row in case["after_nms"]], dtype=torch.float64)
    names = torch.tensor([int(row[2].removeprefix("class")) for row in case["after_nms"]])
    yield same_rows("eval.after_nms", rows, wanted, (labels, names), rounded=ROUNDED)


def opentad_epsilon(fixture: Fixture) -> Iterator[Check]:
    """Features so small that the norms' epsilon shows."""
    features, mask = fixture.data["train.inputs"][:1] * 0.001, fixture.data["train.padded_mask"][:1].bool()
    with torch.no_grad():
        outputs = outputs_of(fixture.detector.eval(), features, mask)
    yield from output_checks("eps", fixture, outputs)
