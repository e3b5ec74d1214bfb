"""What `proposals` does otherwise than ETAD, on equal inputs: `python tests/etad_departures.py FIXTURE`.

FIXTURE is a folder as tests/golden.py has them, with ETAD's weights, features, anchors and annotated actions.
Each line is one departure alone: what it does to the value of the part of the loss that it changes, and to
that part's gradient by what the network puts out. See docs/etad.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden_etad import Fixture, Outputs, actions_of, outputs_of, read

from model.detector import losses
from model.detector.align import align_weights, expand_segments, pool_bins
from model.detector.build import build_detector
from model.detector.etad.bins import sampled_weights
from model.detector.etad.losses import boundary_loss, drawn_class_loss, drawn_tiou_loss
from model.detector.etad.targets import (
    boundary_targets,
    matched_segments,
    offset_targets,
    targets_at_ends,
    tiou_with,
)
from model.detector.ground_truth import PaddedActions
from model.detector.proposals import refine
from model.detector.settings import DetectorSettings
from model.segments import to_centre_width

DRAWS = 200


def ratio(ours: Tensor, theirs: Tensor, by: Tensor) -> str:
    """Value and gradient norm of ours, in theirs."""
    gradients = [torch.autograd.grad(x, by, retain_graph=True)[0].norm() for x in (ours, theirs)]
    return (
        f"value x {float((ours / theirs).detach()):.2f}, gradient x {float(gradients[0] / gradients[1]):.2f}"
    )


def of_boundaries(fixture: Fixture, actions: PaddedActions, outputs: Outputs) -> Iterator[tuple[str, str]]:
    steps = fixture.num_steps
    scores = outputs.boundary.detach()
    logits = torch.logit(scores).requires_grad_()
    released = boundary_targets(actions, steps, radius=1.5)
    theirs = boundary_loss(logits.sigmoid(), released)
    hard = losses.balanced_bce(logits, (released > 0.5).float())
    yield "boundary: mean of start and end, not the sum", ratio(hard, theirs, logits)
    soft = losses.boundary_targets(actions.segments, actions.mask, steps, radius=1.0)
    yield (
        "boundary: radius 1, soft targets, not radius 1.5, above half",
        ratio(losses.balanced_bce(logits, soft), hard, logits),
    )


def of_stages(fixture: Fixture, actions: PaddedActions, outputs: Outputs) -> Iterator[tuple[str, str]]:
    """Departures in the losses of the stages, summed over all."""
    steps, thresholds = fixture.num_steps, fixture.detector.settings.regression_tiou
    targets = boundary_targets(actions, steps, radius=1.5)
    once = matched_segments(outputs.stages[0][0], actions)
    names = ("beta", "once", "near", "hits")
    ours, theirs, leaves = ({name: [] for name in names} for _ in range(3))
    changed = []
    for (anchors, output, _), threshold in zip(outputs.stages, thresholds, strict=True):
        again = matched_segments(anchors, actions)
        changed.append(float((again != once).any(-1).float().mean()))
        offsets = torch.cat([output.boundary_offsets, output.centre_offsets], -1).detach().requires_grad_()
        logits = torch.cat([output.boundary_logits, output.tiou_logits], -1).detach().requires_grad_()

        def of_offsets(matched: Tensor, beta: float, offsets=offsets, anchors=anchors, threshold=threshold):
            wanted = torch.cat(offset_targets(anchors, matched, steps), -1)
            positive = (tiou_with(matched, anchors) > threshold).float()
            return losses.offset_loss(offsets, wanted, positive, beta=beta)

        tiou = tiou_with(once, anchors)
        width = (anchors[..., 1:] - anchors[..., :1]).clamp(min=0)
        near = ((anchors - once).abs() <= 0.1 * width).float() * (tiou > 0)[..., None]
        ends = targets_at_ends(targets, anchors)
        found = {
            "beta": (of_offsets(once, 0.1), of_offsets(once, 1.0), offsets),
            "once": (of_offsets(again, 1.0), of_offsets(once, 1.0), offsets),
            "near": (
                losses.balanced_bce(logits[..., :2], near),
                sum(losses.tiou_class_loss(logits[..., i], ends[..., i], threshold=0.5) for i in (0, 1)),
                logits,
            ),
        }
        for name, (x, y, leaf) in found.items():
            ours[name].append(x), theirs[name].append(y), leaves[name].append(leaf)
    for name, what in {
        "beta": "offsets: smooth L1 with beta 0.1, not 1",
        "once": "offsets: matched in each stage, not once",
        "near": "ends of proposals: within 0.1 lengths of the action, mean of start and end",
    }.items():
        gradients = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(sum(x[name]), leaves[name], retain_graph=True)]
            )
            for x in (ours, theirs)
        ]
        value = float((sum(ours[name]) / sum(theirs[name])).detach())
        yield what, f"value x {value:.2f}, gradient x {float(gradients[0].norm() / gradients[1].norm()):.2f}"
    yield "proposals whose action changes, by stage", ", ".join(f"{share:.1%}" for share in changed)


def of_draws(actions: PaddedActions, outputs: Outputs) -> Iterator[tuple[str, str]]:
    """Weights in place of draws: the same value on average, without the noise."""
    anchors, output, _ = outputs.stages[0]
    tiou = tiou_with(matched_segments(anchors, actions), anchors)
    logits = output.tiou_logits.detach().requires_grad_()
    draws = torch.rand(DRAWS, 3, *tiou.shape, generator=torch.Generator().manual_seed(0))

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits)[0].flatten()

    hits, value = logits.unbind(-1)
    pairs = {
        "tIoU class": (
            lambda each: drawn_class_loss(hits.sigmoid(), tiou, each[0], threshold=0.9),
            losses.tiou_class_loss(hits, tiou, threshold=0.9),
        ),
        "tIoU": (
            lambda each: drawn_tiou_loss(value.sigmoid(), tiou, (each[1], each[2])),
            losses.tiou_regression_loss(value, tiou),
        ),
    }
    for name, (of, weighted) in pairs.items():
        values = torch.stack([of(each).detach() for each in draws])
        gradients = torch.stack([gradient(of(each)) for each in draws])
        noise = ((gradients - gradients.mean(0)) ** 2).sum(1).mean().sqrt() / gradients.mean(0).norm()
        same = float(gradient(weighted).norm() / gradients.mean(0).norm())
        text = f"value x {float((weighted / values.mean()).detach()):.2f}, gradient x {same:.2f}"
        yield (
            f"{name}: weighted, not drawn",
            f"{text}; noise of a draw {noise:.0%} of the gradient, of weights 0",
        )


def of_bins(fixture: Fixture, outputs: Outputs) -> Iterator[tuple[str, str]]:
    anchors, settings = outputs.stages[0][0], fixture.detector.settings
    lengthened, bins = expand_segments(anchors, settings.roi_context), settings.roi_bins
    theirs = pool_bins(outputs.neck, sampled_weights(lengthened, fixture.num_steps, bins))
    for name, segments in {
        "exact bins, half a step earlier, not points": lengthened,
        "exact bins at the place of the points": lengthened + 0.5,
    }.items():
        ours = pool_bins(outputs.neck, align_weights(segments, fixture.num_steps, bins))
        off = ((ours - theirs).norm() / theirs.norm()).detach()
        yield name, f"pooled features differ by {float(off):.0%}"


def of_refining(fixture: Fixture, outputs: Outputs) -> Iterator[tuple[str, str]]:
    off = []
    for anchors, output, refined in outputs.stages:
        ours = refine(anchors, output.boundary_offsets, output.centre_offsets, num_steps=fixture.num_steps)
        off.append(float(((ours - refined).abs() > 1e-3).any(-1).float().mean()))
    turned = (to_centre_width(outputs.stages[-1][2])[..., 1] <= 0).float().mean()
    text = f"moves {', '.join(f'{share:.0%}' for share in off)} of them by stage"
    yield "anchors kept inside the window", f"{text}; {float(turned):.1%} of the last end before they start"


def of_size() -> Iterator[tuple[str, str]]:
    """Parameters and time of a step at full size, 4 videos; without class heads."""
    features = torch.randn(4, 512, 128)
    actions = [torch.tensor([[10.0, 70.0], [60.0, 90.0]])] * 4, [torch.tensor([0, 0])] * 4
    for kind in ("etad", "proposals"):
        torch.manual_seed(0)
        detector = build_detector(DetectorSettings(kind=kind), num_features=512, num_classes=1)
        seconds = []
        for _ in range(4):
            begin = time.perf_counter()
            loss, _ = detector.loss(features, *actions, generator=torch.Generator().manual_seed(0))
            loss.backward()
            seconds.append(time.perf_counter() - begin)
        count = sum(p.numel() for p in detector.parameters()) / 1e6
        yield (
            f"detector.kind {kind}",
            f"{count:.1f} million parameters, {min(seconds):.2f} s a step of 4 videos",
        )


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "meta.json").is_file():
        print("usage: python tests/etad_departures.py FIXTURE, a folder with a meta.json", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    fixture = read(Path(arguments[0]))
    actions = actions_of(fixture.meta["cases"]["train"], fixture.num_steps)
    outputs = outputs_of(fixture, torch.float32)
    for lines in (
        of_boundaries(fixture, actions, outputs),
        of_stages(fixture, actions, outputs),
        of_draws(actions, outputs),
        of_bins(fixture, outputs),
        of_refining(fixture, outputs),
        of_size(),
    ):
        for what, effect in lines:
            print(f"{what}: {effect}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
