"""OpenTAD's form of ETAD, its equations written out after its code, on weights under its names: a reference.

Float64, one proposal at a time, points of bins one by one. Nothing of model/ is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPS, NORM_GROUPS, STAGES, EXTEND = 4, 16, 3, 0.5


def conv(w: Mapping[str, Tensor], name: str, x: Tensor, *, groups: int = GROUPS) -> Tensor:
    """A convolution, a group norm if it has one, a ReLU: (C, T)."""
    kernel = w[f"{name}.conv.weight"]
    y = F.conv1d(x[None], kernel, w.get(f"{name}.conv.bias"), padding=kernel.shape[2] // 2, groups=groups)
    if f"{name}.norm.weight" in w:
        weight, bias = w[f"{name}.norm.weight"], w[f"{name}.norm.bias"]
        y = F.group_norm(y, math.gcd(NORM_GROUPS, y.shape[1]), weight, bias)
    return y[0]


def lstm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """(C, T) from the first step to the last."""
    size = x.shape[0]
    h = c = x.new_zeros(size)
    steps = []
    for t in range(x.shape[1]):
        gates = w[f"{name}.weight_ih_l0"] @ x[:, t] + w[f"{name}.bias_ih_l0"]
        gates = gates + w[f"{name}.weight_hh_l0"] @ h + w[f"{name}.bias_hh_l0"]
        i, f, g, o = gates.split(size)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(h)
    return torch.stack(steps, 1)


def neck(w: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """(D, T) -> (C, T)."""
    x = conv(w, "projection.convs.0", features).relu()
    forward = lstm(w, "neck.mem_f", x)
    backward = lstm(w, "neck.mem_b", x.flip(1)).flip(1)
    parts = [
        conv(w, "neck.layer2_f", forward).relu(),
        conv(w, "neck.layer2_d", x).relu(),
        conv(w, "neck.layer2_b", backward).relu(),
    ]
    return conv(w, "neck.layer3", torch.cat(parts)).relu()


def boundaries(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(2, T) scores of start and end."""
    return conv(w, "rpn_head.tem.1", conv(w, "rpn_head.tem.0", x).relu(), groups=1).sigmoid()


def bins_of(x: Tensor, start: float, end: float, count: int) -> Tensor:
    """(C, bins): means of points at most a step apart; the value of step s stands at s + 0.5."""
    width, last = (end - start) / count, x.shape[1] - 1
    columns = []
    for number in range(count):
        points = max(0, math.ceil(width))
        total = x.new_zeros(x.shape[0])
        for point in range(points):
            place = start - 0.5 + number * width + (point + 0.5) * width / points
            if not -1 <= place <= last + 1:
                continue
            place = min(max(place, 0.0), float(last))
            low = min(int(place), last)
            high = min(low + 1, last)
            total = total + x[:, low] * (1 - place + low) + x[:, high] * (place - low)
        columns.append(total / max(1, points))
    return torch.stack(columns, 1)


def head(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    number = 0
    while f"{name}.fcs.{number}.0.weight" in w:
        x = (w[f"{name}.fcs.{number}.0.weight"] @ x + w[f"{name}.fcs.{number}.0.bias"]).relu()
        number += 1
    return w[f"{name}.head.weight"] @ x + w[f"{name}.head.bias"]


def cascade(
    w: Mapping[str, Tensor], x: Tensor, start: float, end: float, bins: int
) -> tuple[list[float], float]:
    """The segment of a proposal and its quality, both means over the stages; steps."""
    segments, scores = [], []
    for stage in range(STAGES):
        name, length = f"roi_head.proposal_heads.{stage}", end - start
        pooled = bins_of(x, start - EXTEND * length, end + EXTEND * length, bins)
        shared = w[f"{name}.shared_conv_fc.fcs.0.0.weight"] @ pooled.flatten()
        shared = (shared + w[f"{name}.shared_conv_fc.fcs.0.0.bias"]).relu()
        ds, de, dc, dw = head(w, f"{name}.reg_head", shared).tolist()
        scores.append(head(w, f"{name}.iou_head", shared).sigmoid())
        centre, scaled = (start + end) / 2 + dc * length, length * math.exp(dw)
        by_ends = (start + ds * length, end + de * length)
        start, end = (
            (a + b) / 2 for a, b in zip(by_ends, (centre - scaled / 2, centre + scaled / 2), strict=True)
        )
        segments.append((start, end))
    mean = torch.tensor(segments, dtype=torch.float64).mean(0).tolist()
    return mean, float(torch.stack(scores).mean(0).prod())
