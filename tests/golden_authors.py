"""ActionFormer's detector against its authors' code, from a fixture's files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from golden_actionformer import (
    Fixture,
    Outputs,
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

from model.detector.actionformer.detector import ActionFormer
from model.detector.actionformer.points import make_points
from model.detector.ground_truth import PaddedActions
from tools.weights.names.actionformer import from_authors


def check_authors(folder: Path) -> Iterator[Check]:
    """A fixture of actionformer_release."""
    fixture = authors_fixture(folder)
    yield from authors_training(fixture)
    for name in fixture.meta["eval"]:
        yield from authors_evaluation(fixture, name)
    yield from authors_epsilon(fixture)
    if "score_fusion" in fixture.meta:
        yield from authors_fusion(fixture)


def authors_fixture(folder: Path) -> Fixture:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    config, training = meta["config"], meta["config"]["train_cfg"]
    require(
        config,
        fpn_type="identity",
        embd_kernel_size=3,
        head_kernel_size=3,
        embd_with_ln=True,
        fpn_with_ln=True,
    )
    require(config, head_with_ln=True, use_rel_pe=False, fpn_start_level=0, scale_factor=2)
    require(training, head_empty_cls=[], dropout=0.0)
    require({"dims": config["fpn_dim"]}, dims=config["embd_dim"])
    centre = training["center_sample"] == "radius"
    settings = {
        "embed_dim": config["embd_dim"],
        "head_dim": config["head_dim"],
        "num_heads": config["n_head"],
        "embed_layers": config["backbone_arch"][0],
        "stem_layers": config["backbone_arch"][1],
        "head_layers": config["head_num_layers"] - 1,
        "max_distances": distances_of(config["regression_range"]),
        "attention_windows": windows_of(config["n_mha_win_size"]),
        "position_embedding": config["use_abs_pe"],
        "drop_path": training["droppath"],
        "centre_radius": training["center_sample_radius"] if centre else None,
        "label_smoothing": training["label_smoothing"],
        "class_prior": training["cls_prior_prob"],
        "distance_weight": training["loss_weight"],
        "normaliser_start": training["init_loss_norm"],
    }
    weights = from_authors(load_file(folder / "weights.safetensors"))
    detector = build(
        settings,
        num_steps=config["max_seq_len"],
        inputs=config["input_dim"],
        classes=config["num_classes"],
        weights=weights,
    )
    return Fixture(meta, load_file(folder / "data.safetensors"), detector)


def authors_training(fixture: Fixture) -> Iterator[Check]:
    detector, data, base = fixture.detector.train(), fixture.data, fixture.meta["train"]["base"]
    weight = detector.settings.distance_weight
    features, mask = padded(fixture.rows("train.feats"), data["train.mask"].shape[-1])
    features.requires_grad_()
    yield compare("train mask", mask[:, None].float(), data["train.mask"].float())
    segments, labels = fixture.rows("train.segments"), fixture.rows("train.labels")
    actions = padded_actions(segments, labels)
    starts = base["loss_normalizer_by_step"]
    with drawn(detector, None):
        parts, outputs = take_steps(detector, features, mask, actions, start=starts[0])
        (parts["class"] + parts["distance"]).backward()
        yield from output_checks("train", fixture, outputs)
        yield from target_checks(fixture, actions, outputs)
        yield from gradient_checks("train", detector, fixture, from_authors, base["grad_norm"])
        yield compare("train gradient of features", features.grad, data["train.grad.features"])
        yield from loss_checks("train step 0", parts, base["losses_by_step"][0], weighted=weight)
        for number, wanted in enumerate(base["losses_by_step"][1:], 1):
            yield compare(f"normaliser {number}", detector.normaliser.value, starts[number])
            parts, _ = take_steps(detector, features, mask, actions, start=None)
            yield from loss_checks(f"train step {number}", parts, wanted, weighted=weight)
        yield compare("last normaliser", detector.normaliser.value, starts[-1])
        yield from float64_checks(fixture, features, mask, actions, base, weight=weight)
    with drawn(detector, data["train.droppath.draws"]):
        case = fixture.meta["train"]["droppath_0.1"]
        yield from authors_case("drop path", fixture, features, mask, actions, case)
    with drawn(detector, None):
        none = padded_actions([each[:0] for each in segments], [each[:0] for each in labels])
        case = fixture.meta["train"]["no_truth"]
        yield from authors_case("no truth", fixture, features, mask, none, case)
        norms = [p.grad.norm() for n, p in detector.named_parameters() if n.startswith("distances.")]
        yield compare("no truth gradient of distances", max(norms), case["grad_norm_reg_head"])
        one = fixture.meta["train"]["only_video_1"]
        actions = padded_actions(segments[1:2], labels[1:2])
        yield from authors_case("only video 1", fixture, features[1:2], mask[1:2], actions, one)


def authors_case(
    name: str, fixture: Fixture, features: Tensor, mask: Tensor, actions: PaddedActions, case: dict[str, Any]
) -> Iterator[Check]:
    """The losses of a further training case, its normaliser and gradient."""
    detector, start = fixture.detector, fixture.meta["train"]["base"]["loss_normalizer_by_step"][0]
    detector.zero_grad()
    features = features.detach().clone().requires_grad_()
    parts, _ = take_steps(detector, features, mask, actions, start=start)
    (parts["class"] + parts["distance"]).backward()
    yield from loss_checks(name, parts, case["losses"], weighted=detector.settings.distance_weight)
    if "loss_normalizer" in case:
        yield compare(f"{name} normaliser", detector.normaliser.value, case["loss_normalizer"][1])
    if "grad_norm_features" in case:
        yield compare(f"{name} gradient of features", features.grad.norm(), case["grad_norm_features"])


def authors_evaluation(fixture: Fixture, name: str) -> Iterator[Check]:
    """One video: outputs, segments before suppression, and detections after it."""
    case, data, detector = fixture.meta["eval"][name], fixture.data, fixture.detector.eval()
    testing = {**fixture.meta["config"]["test_cfg"], **case["override"]}
    features, mask = padded([data[f"eval.{name}.feats"]], data[f"eval.{name}.mask"].shape[-1])
    yield compare(f"eval.{name}.mask", mask[:, None].float(), data[f"eval.{name}.mask"].float())
    with torch.no_grad():
        outputs = outputs_of(detector, features, mask)
    yield from output_checks(f"eval.{name}", fixture, outputs)
    valid = [int(level.sum()) for level in outputs.masks]
    yield compare(f"eval.{name} valid", torch.tensor(valid), torch.tensor(case["valid_per_level"]))
    segments, labels, scores = authors_candidates(detector, outputs, testing)
    wanted = torch.cat(
        [data[f"eval.{name}.pre_nms.segments"], data[f"eval.{name}.pre_nms.scores"][:, None]], 1
    )
    both = (labels, data[f"eval.{name}.pre_nms.labels"].long())
    yield same_rows(f"eval.{name}.pre_nms", torch.cat([segments, scores[:, None]], 1), wanted, both)
    yield from authors_detections(fixture, name, testing)


def authors_candidates(
    detector: ActionFormer, outputs: Outputs, testing: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the suppression, level by level: segments (n, 2) in steps, labels and scores (n,)."""
    points = make_points(outputs.masks[0].shape[2], detector.settings, device=torch.device("cpu"))
    segments = outputs.by_level(points.segments(outputs.distances))
    scores = outputs.by_level(outputs.logits.sigmoid() * outputs.mask[..., None])
    rows = []
    for of_level, score in zip(segments, scores, strict=True):
        best, order = score[0].flatten().sort(descending=True)
        count = min(int((best > testing["pre_nms_thresh"]).sum()), testing["pre_nms_topk"])
        best, order = best[:count], order[:count]
        chosen, label = of_level[0][order // score.shape[2]], order % score.shape[2]
        long = chosen[:, 1] - chosen[:, 0] > testing["duration_thresh"]
        rows.append((chosen[long], label[long], best[long]))
    segments, labels, scores = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return segments, labels, scores


def authors_detections(fixture: Fixture, name: str, testing: dict[str, Any]) -> Iterator[Check]:
    """Suppression and voting in steps, then seconds; from the reference's own candidates."""
    case, data = fixture.meta["eval"][name], fixture.data
    segments, labels, scores = (
        data[f"eval.{name}.pre_nms.{part}"] for part in ("segments", "labels", "scores")
    )
    settings = nms_settings(
        sigma=testing["nms_sigma"],
        min_score=testing["min_score"],
        max_detections=testing["max_seg_num"],
        # over several classes the authors' suppression has no vote, whatever the configuration says
        voting_tiou=0.0 if testing["multiclass_nms"] else testing["voting_thresh"],
    )
    require(testing, nms_method="soft")
    rows, kept = kept_rows(segments, labels, scores, settings)
    for part in (rows, torch.cat([segments.double(), scores[:, None].double()], 1)):
        part[:, :2] = (part[:, :2] * case["feat_stride"] + 0.5 * case["feat_num_frames"]) / case["fps"]
        part[:, :2] = part[:, :2].clamp(0, case["duration"])
        if part is not rows:
            yield compare(f"eval.{name}.pre_nms.seconds", part[:, :2], data[f"eval.{name}.pre_nms.seconds"])
    wanted = torch.tensor(case["after_nms"], dtype=torch.float64)
    both = (kept, wanted[:, 2].long())
    yield same_rows(f"eval.{name}.after_nms", rows, wanted[:, [0, 1, 3]], both)


def authors_epsilon(fixture: Fixture) -> Iterator[Check]:
    """Features so small that the norms' epsilon shows."""
    first = fixture.rows("train.feats")[0] * 0.001
    features, mask = padded([first], fixture.data["train.mask"].shape[-1])
    with torch.no_grad():
        outputs = outputs_of(fixture.detector.eval(), features, mask)
    yield from output_checks("eps", fixture, outputs)


def authors_fusion(fixture: Fixture) -> Iterator[Check]:
    """Detections without classes times the best classes of each video, under a root."""
    fusion, rows = fixture.meta["score_fusion"], []
    for video, scores in fusion["class_scores"].items():
        found = torch.tensor(
            fixture.meta["eval"][video]["after_nms"][: fusion["num_pred"]], dtype=torch.float64
        )
        best, labels = torch.tensor(scores, dtype=torch.float64).topk(fusion["topk"])
        fused = (found[:, 3:].pow(0.5) * best.pow(0.5)).flatten()
        wanted = [row for row in fusion["fused"] if row[0] == video]
        ends = found[:, :2].repeat_interleave(len(best), 0)
        rows = torch.cat([ends, fused[:, None]], 1)
        theirs = torch.tensor([[row[1], row[2], row[4]] for row in wanted], dtype=torch.float64)
        both = (labels.repeat(len(found)), torch.tensor([int(row[3]) for row in wanted]))
        yield same_rows(f"fused.{video}", rows, theirs, both)
