"""What the detector of proposals is trained towards: heads that know the actions have no loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.detector import ProposalDetector
from model.detector.heads import StageOutput
from model.detector.settings import DetectorSettings

T, SURE = 12, 40.0  # steps; a logit whose sigmoid is 1
ACTIONS = [[(2.0, 6.0, 1), (5.0, 11.0, 0)], []]  # of two videos: start, end, class
SETTINGS = DetectorSettings(
    num_steps=T, neck_dim=8, fc_dim=8, head_dim=8, roi_bins=4, proposal_ratio=1.0, boundary_tolerance=0.4
)


def logit(share: float) -> float:
    return max(-SURE, min(SURE, math.log(share / (1 - share)))) if 0 < share < 1 else SURE * (2 * share - 1)


def tiou(a: tuple[float, float], b: tuple[float, float]) -> float:
    inside = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inside / (a[1] - a[0] + b[1] - b[0] - inside)


def right_answer(anchor: tuple[float, float], actions: list, threshold: float) -> dict[str, list[float]]:
    """What a stage ought to say of an anchor, from the definitions of its losses; nonsense where it may."""
    start, end = anchor
    best, (gt_start, gt_end) = max(
        ((tiou(anchor, a[:2]), a[:2]) for a in actions), key=lambda pair: pair[0], default=(0.0, (0.0, 0.0))
    )
    of_class = [
        max([t for a in actions if a[2] == k and (t := tiou(anchor, a[:2])) > SETTINGS.class_tiou], default=0)
        for k in range(2)
    ]
    near = [
        best > 0 and abs(a - b) <= SETTINGS.boundary_tolerance * (end - start)
        for a, b in ((start, gt_start), (end, gt_end))
    ]
    of_ends, of_centre = [7.0, -3.0], [5.0, 2.0]
    if best > threshold:
        width, moved = end - start, (gt_start + gt_end - start - end) / 2
        of_ends = [(gt_start - start) / width, (gt_end - end) / width]
        of_centre = [moved / width, math.log((gt_end - gt_start) / width)]
    return {
        "tiou_logits": [logit(float(best > SETTINGS.confident_tiou)), logit(best)],
        "boundary_logits": [logit(float(side)) for side in near],
        "boundary_offsets": of_ends,
        "centre_offsets": of_centre,
        "class_logits": [logit(share) for share in of_class],
    }


class Oracle(nn.Module):
    """A stage that knows the actions; `spoil` changes its output."""

    def __init__(self, threshold: float, spoil: Callable[[dict[str, Tensor]], None]):
        super().__init__()
        self.threshold, self.spoil, self.anchors = threshold, spoil, torch.empty(0)

    def forward(self, features: Tensor, step_scores: Tensor, anchors: Tensor) -> StageOutput:
        self.anchors = anchors
        rows = [
            [right_answer(anchor, actions, self.threshold) for anchor in of_video]
            for of_video, actions in zip(anchors.tolist(), ACTIONS, strict=True)
        ]
        names = rows[0][0]
        said = {name: torch.tensor([[row[name] for row in video] for video in rows]) for name in names}
        self.spoil(said)
        return StageOutput(**said)


class Says(nn.Module):
    """A head of steps that says the same of any features."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, features: Tensor) -> Tensor:
        return self.logits


def trained(spoil: Callable[[dict[str, Tensor]], None]) -> tuple[ProposalDetector, dict[str, float]]:
    """A detector whose heads know the actions, but for what is spoiled, and the parts of its loss."""
    steps, edges = torch.full((2, 2, T), -SURE), torch.full((2, 2, T), -SURE)
    for start, end, label in ACTIONS[0]:
        steps[0, label, int(start) : int(end)] = SURE
        for side, edge in enumerate((int(start), int(end))):
            edges[0, side, edge - 1 : edge + 1] = SURE  # the steps within a step of it
    said = {"steps": steps, "edges": edges}
    spoil(said)
    torch.manual_seed(0)
    detector = ProposalDetector(SETTINGS, num_features=4, num_classes=2)
    detector.stages = nn.ModuleList(Oracle(threshold, spoil) for threshold in SETTINGS.regression_tiou)
    detector.boundary, detector.step_class = Says(said["edges"]), Says(said["steps"])
    nn.init.zeros_(detector.step_shortcut.weight)
    _, parts = detector.loss(
        torch.randn(2, 4, T),
        [torch.tensor([a[:2] for a in actions]).reshape(-1, 2) for actions in ACTIONS],
        [torch.tensor([a[2] for a in actions], dtype=torch.int64) for actions in ACTIONS],
        generator=torch.Generator().manual_seed(0),
    )
    return detector, {name: value.item() for name, value in parts.items()}


def test_heads_that_know_the_actions_have_no_loss():
    # 1e-6: float32 sums of some 500 anchors, most of them exactly 0
    _, parts = trained(lambda said: None)
    assert max(parts.values()) < 1e-6


def test_a_stage_is_trained_on_the_anchors_that_the_one_before_moved():
    detector, _ = trained(lambda said: None)
    first, second, _ = (stage.anchors[0].tolist() for stage in detector.stages)
    moved = [(a, b) for a, b in zip(first, second, strict=True) if tiou(a, ACTIONS[0][0][:2]) > 0.7]
    assert len(moved) > 1 and all(b == pytest.approx(ACTIONS[0][0][:2], abs=1e-5) for _, b in moved)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("steps", "step_class"),
        ("edges", "boundary"),
        ("boundary_logits", "proposal_boundary"),
        ("boundary_offsets", "boundary_offset"),
        ("centre_offsets", "centre_offset"),
        ("class_logits", "proposal_class"),
    ],
)
def test_a_head_that_is_wrong_costs_its_own_part(name, part):
    def spoil(said: dict[str, Tensor]) -> None:
        if name in said:
            said[name] = -said[name] if "logits" in name or name in ("steps", "edges") else said[name] + 1

    _, parts = trained(spoil)
    assert parts[part] > 0.5
    # where offsets are wrong, the next stage has other anchors, of which the oracle is right all the same
    assert max(value for other, value in parts.items() if other != part) < 1e-6


@pytest.mark.parametrize(("column", "part"), [(0, "tiou_class"), (1, "tiou_regression")])
def test_a_wrong_tiou_costs_its_own_part(column, part):
    def spoil(said: dict[str, Tensor]) -> None:
        if "tiou_logits" in said:
            said["tiou_logits"][..., column] *= -1

    _, parts = trained(spoil)
    assert parts[part] > 0.1
    assert max(value for other, value in parts.items() if other != part) < 1e-6
