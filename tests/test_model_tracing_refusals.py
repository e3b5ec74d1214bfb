"""What is not residual, or cannot be shown to be: refused with the reason, or an error at the first run."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from foreign_blocks import Basic, D, Inverted, Opaque, PreNorm, Wrapped, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from model.reversible import run_stage
from model.tracing.residual import NotResidual, Residual, residual_block


class From(nn.Module):
    """A block from a function of itself and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.f, self.g = nn.Linear(D, D), nn.Linear(D, D)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(D))
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("var", torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def early_skip(m: nn.Module, x: Tensor) -> Tensor:
    y = x + m.f(x)
    return y + m.g(y + x)


def stale_name(m: nn.Module, x: Tensor) -> Tensor:
    y = h = m.f(x)
    y += x
    return y + m.g(h)  # h is y by now


def shared_norm(m: nn.Module, x: Tensor) -> Tensor:
    h = F.layer_norm(x, (D,))
    y = x + m.f(h)
    return y + m.g(h) * y


def unused_write(m: nn.Module, x: Tensor) -> Tensor:
    x.mul_(2)
    return x + m.f(x)


def write_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x.view(-1)[0] = 0
    return x + m.f(x)


def late_write(m: nn.Module, x: Tensor) -> Tensor:
    y = x + m.f(x)
    y.clamp_(min=0)
    return y


def memory(m: nn.Module, x: Tensor) -> Tensor:
    m.last = x
    return x + m.f(x)


def cache(m: nn.Module, x: Tensor) -> Tensor:
    m.__dict__.setdefault("list", []).append(x)
    return x + m.f(x)


def aliased(m: nn.Module, x: Tensor) -> Tensor:
    y = x
    x += m.f(x)  # y is this very tensor
    return y + m.g(x)


def shared_mask(m: nn.Module, x: Tensor) -> Tensor:
    mask = m.drop(m.scale)
    x = x + mask * m.f(x)
    return x + mask * m.g(x)


def two_and_relu(m: nn.Module, x: Tensor) -> Tensor:
    x = x + m.f(x)
    return F.relu(x + m.g(x))


def other_in_training(m: nn.Module, x: Tensor) -> Tensor:
    y = x + m.f(x)
    return y + m.g(y) if m.training else y


def choose_by_value(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.f(x) if x.sum() > 0 else x


def choose_by_chance(m: nn.Module, x: Tensor) -> Tensor:
    return x if torch.rand(1) < 0.5 else x + m.f(x)


def choose_by_python(m: nn.Module, x: Tensor) -> Tensor:
    return x if random.random() < 0.5 else x + m.f(x)


def choose_by_numpy(m: nn.Module, x: Tensor) -> Tensor:
    return x if np.random.rand() < 0.5 else x + m.f(x)


class Hooked(Inverted):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, args, output: None)


class Masked(PreNorm):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x)


class PythonDropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if random.random() < 0.5 else x


REFUSED = [
    (lambda m, x: x, "returns its input: no branch"),
    (lambda m, x: m.f(x), r"output comes from f \(Linear\), not from adding"),
    (lambda m, x: F.layer_norm(x + m.f(x), (D,)), r"output comes from layer_norm\(\), not from adding"),
    (lambda m, x: 2 * x + m.f(x), r"adds to the result of mul\(\), not to its input"),
    (lambda m, x: x + x, "adds the state to itself"),
    (lambda m, x: torch.add(x, m.f(x), alpha=2), r"adds with a factor or a number in add\(\)"),
    (lambda m, x: x + 1, "adds with a factor or a number"),
    (lambda m, x: x + m.scale, "adds what does not depend on its input"),
    (lambda m, x: torch.cat([x, m.f(x)], -1), r"output comes from cat\(\)"),
    (lambda m, x: (x + m.f(x),), "returns a tuple, not one tensor"),
    (lambda m, x: {"y": x + m.f(x)}, "returns a dict, not one tensor"),
    (early_skip, "uses an earlier state"),
    (shared_norm, "uses an earlier state"),
    (stale_name, "uses an earlier state"),
    (aliased, "works in place on the state"),
    (lambda m, x: x + m.f(F.relu(x, inplace=True)), r"relu\(\) works in place on the state"),
    (lambda m, x: x + m.f(F.relu(x, True)), r"relu\(\) works in place on the state"),
    (lambda m, x: x + m.f(m.relu(x)), r"relu \(ReLU\) works in place on the state"),
    (lambda m, x: x + m.f(m.relu(x.view(-1, D)).view_as(x)), r"relu \(ReLU\) works in place on the state"),
    (lambda m, x: x + m.f(m.relu(m.drop(x))), r"relu \(ReLU\) works in place on the state"),
    (unused_write, r"\.mul_\(\) works in place on the state"),
    (write_through_a_view, r"setitem\(\) works in place on the state"),
    (late_write, r"\.clamp_\(\) works in place on the state"),
    (lambda m, x: x + m.f(x) * m.mean.add_(1), r"\.add_\(\) writes to mean in forward"),
    (
        lambda m, x: x + F.batch_norm(x.mT, m.mean, m.var, training=m.training).mT,
        r"batch_norm\(\) writes to mean",
    ),
    (memory, "forward assigns last"),
    (cache, "forward assigns list"),
    (shared_mask, r"share the random numbers of drop \(Dropout\)"),
    (two_and_relu, "ReLU after 2 branches, want one"),
    (choose_by_value, "cannot be traced .*control flow"),
    (choose_by_chance, "draws random numbers to choose what to compute"),
    (choose_by_python, "it draws from Python's or NumPy's random numbers"),
    (choose_by_numpy, "it draws from Python's or NumPy's random numbers"),
    (other_in_training, "other branches in training than in evaluation"),
]


@pytest.mark.parametrize(("function", "reason"), REFUSED)
def test_what_is_not_plainly_residual_is_refused_with_the_reason(function, reason):
    block = From(function)
    attributes = {name: dict(vars(module)) for name, module in block.named_modules()}
    generators = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()
    found = residual_block(block)
    assert isinstance(found, NotResidual)
    assert generators == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().tolist(),
    )
    pytest.raises(ValueError, _raise, found.reason).match(reason)
    assert "\n" not in found.reason and "branches=" in found.reason and not found.transition
    assert {name: dict(vars(module)) for name, module in block.named_modules()} == attributes


def _raise(reason: str) -> None:
    raise ValueError(reason)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Inverted(skip=False), "output comes from conv.3"),
        (Hooked(), "it has hooks, which its branches would not call"),
        (Masked(), "its forward wants x, mask; want one tensor"),
        (Opaque(), "cannot be traced"),
        (Wrapped.Residual(PythonDropPath()), "inner draws from Python's"),
        (nn.Module(), "cannot be traced"),
        (nn.Linear(2, 2), "its output comes from linear"),
    ],
)
def test_blocks_in_the_way_are_named(block, reason):
    found = residual_block(block)
    assert isinstance(found, NotResidual)
    pytest.raises(ValueError, _raise, found.reason).match(reason)


@pytest.mark.parametrize(
    "shortcut", [nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))]
)
def test_a_shortcut_that_computes_makes_a_transition(shortcut):
    found = residual_block(Basic(shortcut))
    assert isinstance(found, NotResidual) and found.transition
    assert found.reason.startswith("its shortcut is shortcut")
    assert found.reason.endswith("changes the shape: transition")


class Narrow(nn.Module):
    """One channel, broadcast by the addition: no trace can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Liar(nn.Module):
    """What is traced is no Tensor, and gets something else."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) if isinstance(x, Tensor) else x + self.g(x)


class InPlaceInside(Opaque):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mul_(0.5)) if x.mean() < 100 else x


class CountsInside(Opaque):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class ChanceInside(Opaque):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 100 or random.random() < 0.5 else super().forward(2 * x)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Narrow(), r"layer 3: branch 0 got \(3, 6, 8\) and returned \(3, 6, 1\), want the same shape"),
        (Liar(), r"layer 3: its branches differ from its own output by .* branches="),
        (Wrapped.Residual(InPlaceInside()), "layer 3: .*(in place|differ)"),
        (Wrapped.Residual(CountsInside()), "layer 3: its forward writes to inner.calls"),
        (Wrapped.Residual(ChanceInside()), "layer 3: draws from Python's"),
    ],
)
def test_what_no_trace_can_see_is_an_error_at_the_first_run(block, reason):
    residual = residual_block(block, name="layer 3")
    assert isinstance(residual, Residual)
    with pytest.raises(ValueError, match=reason):
        run_stage(residual.branches, tokens(), beta=1.0)
