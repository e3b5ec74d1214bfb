"""Blocks that nobody prepared: proven residual by tracing and equal to themselves, or refused by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.reversible import run_stage
from model.trace import Refusal, Residual, residual_block

D = 8


class Basic(nn.Module):
    """A ResNet block as torchvision writes it."""

    def __init__(self, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.shortcut = nn.ReLU(inplace=True), shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            identity = self.shortcut(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 1)]
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convolutions)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y))
            if i < 2:
                y = F.relu(y, inplace=True)
        return F.relu(x + y)


class Inverted(nn.Module):
    """MobileNet: the branch is one Sequential with in-place activations inside."""

    def __init__(self, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.conv = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Conv2d(8, 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class DropPath(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if self.probability == 0.0 or not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.probability)
        mask.div_(1 - self.probability)  # in place, result unused: must not get lost
        return x * mask


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(n, length, d))


class PreNorm(nn.Module):
    """A ViT block as timm writes it; the drop-path module is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(D), Attention(), LayerScale()
        self.norm2, self.ls2, self.drop_path = nn.LayerNorm(D), LayerScale(), DropPath(0.4)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, D))

    def forward(self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Parallel(nn.Module):
    """GPT-J: attention and MLP read the same norm, one sum."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp, self.first = nn.LayerNorm(D), Attention(), nn.Linear(D, D), first

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attn(y) + self.mlp(y) if self.first else self.attn(y) + self.mlp(y) + x


class OwnParameters(nn.Module):
    """Layer scale, a position buffer and functional dropout in the block's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gamma = nn.Linear(D, D), nn.Parameter(torch.rand(D))
        self.register_buffer("position", torch.rand(6, D))

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.fc(x + self.position[None]), 0.3, self.training)
        return torch.add(self.gamma.view(1, 1, -1) * y, x)


class Opaque(nn.Module):
    """Control flow on values: cannot be traced, stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.mean() > 100 else self.fc(-x)


class RandomSkip(nn.Module):
    """torch's random numbers decide: not traced either, but replayed like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 2 if self.training and torch.rand(1) < 0.5 else self.fc(x)


class Wrapped(nn.Module):
    """The additions lie in the children."""

    class Residual(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.identity = inner, nn.Identity()

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.identity(x) + scale * self.inner(x)

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Sequential(self.Residual(Opaque()), self.Residual(RandomSkip()))

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


def image() -> Tensor:
    return torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.randn(3, 6, D, generator=torch.Generator().manual_seed(1))


GOOD = [
    pytest.param(Basic, image, 1, True, id="basic"),
    pytest.param(lambda: Basic(nn.Identity()), image, 1, True, id="identity-shortcut"),
    pytest.param(Bottleneck, image, 1, True, id="bottleneck"),
    pytest.param(Inverted, image, 1, False, id="mobilenet"),
    pytest.param(PreNorm, tokens, 2, False, id="pre-norm"),
    pytest.param(lambda: Parallel(False), tokens, 1, False, id="gpt-j"),
    pytest.param(lambda: Parallel(True), tokens, 1, False, id="parallel"),
    pytest.param(OwnParameters, tokens, 1, False, id="own-parameters"),
    pytest.param(Wrapped, tokens, 2, False, id="wrapped"),
]


def proven(block: nn.Module) -> Residual:
    found = residual_block(block)
    assert isinstance(found, Residual), found
    return found


def added_up(residual: Residual, x: Tensor) -> Tensor:
    for branch in residual.branches:
        x = x + branch(x)
    return F.relu(x) if residual.post_activation else x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "example", "num_branches", "post_activation"), GOOD)
def test_branches_add_up_to_the_block_itself(build, example, num_branches, post_activation, training):
    torch.manual_seed(0)
    block, x = build().train(training), example()
    plain = copy.deepcopy(block)
    names = list(block.state_dict())
    residual = proven(block)
    assert (len(residual.branches), residual.post_activation) == (num_branches, post_activation)
    torch.manual_seed(3)
    expected = plain(x.clone())
    torch.manual_seed(3)
    found = added_up(residual, x)
    if isinstance(block, Parallel) and block.first:  # (x + f) + g became x + (f + g): roundings
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)
    assert list(block.state_dict()) == names
    for buffer, other in zip(block.buffers(), plain.buffers(), strict=True):  # batch norm counted once
        assert torch.equal(buffer, other)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize(("build", "example", "num_branches", "post_activation"), GOOD)
def test_gradients_through_the_recurrence_equal_plain_autograd(
    build, example, num_branches, post_activation, beta
):
    torch.manual_seed(0)
    block, x = build().double(), example().double().requires_grad_()
    plain, x2 = copy.deepcopy(block), example().double().requires_grad_()
    residual = proven(block)
    torch.manual_seed(3)
    y = run_stage(residual.branches, x, beta=beta, post_activation=post_activation)
    y.square().sum().backward()
    torch.manual_seed(3)
    y2 = plain(x2 + 0) if beta == 0 else slow_stage(proven(plain), x2)
    y2.square().sum().backward()
    assert torch.allclose(y, y2, rtol=1e-12, atol=1e-12)  # roundings of float64, a few dozen operations
    assert torch.allclose(x.grad, x2.grad, rtol=1e-9, atol=1e-10)
    for p, p2 in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, p2.grad, rtol=1e-9, atol=1e-10)


def slow_stage(residual: Residual, x: Tensor) -> Tensor:
    """Beta 1 written out: x_{i+1} = x_{i-1} + F_i(x_i), the ReLU inside the branch being none at slope 0."""
    before = now = x
    for branch in residual.branches:
        y = branch(now)
        before, now = now, before + (F.relu(y) if residual.post_activation else y)
    return (now + before) / 2


def test_a_branch_holds_no_copy_of_a_parameter():
    block = OwnParameters().eval()
    residual, x = proven(block), tokens()
    first = residual.branches[0](x)
    with torch.no_grad():
        block.gamma.zero_()
    assert first.any() and not residual.branches[0](x).any()
    aliases = {name: torch.ones_like(p) for name, p in block.named_parameters()}

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return residual.branches[0](x)

    found = torch.func.functional_call(Owner(), {f"block.{k}": v for k, v in aliases.items()}, (x,))
    assert torch.equal(found, F.linear(x + block.position, aliases["fc.weight"], aliases["fc.bias"]))


def test_modules_within_a_branch_are_called_whole_so_that_their_hooks_fire():
    block, seen = PreNorm(), []
    residual = proven(block)
    for name in ("attn", "ls1", "mlp", "drop_path"):
        block.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.append(name))
    block.eval()
    for branch in residual.branches:
        branch(tokens())
    assert {"attn", "ls1", "mlp"} <= set(seen)
    block.train().drop_path.probability = 0.0  # read at run time
    residual.branches[0](tokens())
    assert "drop_path" in seen


def test_a_copied_residual_runs_the_copied_block():
    block = PreNorm().eval()
    residual = proven(block)
    other = copy.deepcopy(residual)
    assert other.branches[0].module is other.branches[1].module is not block
    with torch.no_grad():
        other.branches[0].module.ls1.gamma.zero_()
    x = tokens()
    assert not other.branches[0](x).any() and residual.branches[0](x).any()


def test_mixed_training_flags_are_traced_when_they_are_met():
    block = PreNorm()
    residual, x = proven(block), tokens()
    block.train()
    block.drop_path.eval()
    block.mlp.eval()
    torch.manual_seed(3)
    expected = block(x)
    torch.manual_seed(3)
    assert torch.equal(added_up(residual, x), expected)


def test_tracing_leaves_generators_flags_and_modules_as_they_were():
    block = nn.Sequential(PreNorm(), RandomSkip())
    block[0].mlp.eval()
    flags = [module.training for module in block.modules()]
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    residual_block(block[0])
    residual_block(block[1])
    assert [module.training for module in block.modules()] == flags
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert state[2] == np.random.get_state()[1].tobytes()


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
    (aliased, "works in place on the state"),
    (lambda m, x: x + m.f(F.relu(x, inplace=True)), r"relu\(\) works in place on the state"),
    (lambda m, x: x + m.f(F.relu(x, True)), r"relu\(\) works in place on the state"),
    (lambda m, x: x + m.f(m.relu(x)), r"relu \(ReLU\) works in place on the state"),
    (lambda m, x: x + m.f(m.relu(x.view(-1, D)).view_as(x)), r"relu \(ReLU\) works in place on the state"),
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
    found = residual_block(block)
    assert isinstance(found, Refusal)
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
    assert isinstance(found, Refusal)
    pytest.raises(ValueError, _raise, found.reason).match(reason)


@pytest.mark.parametrize(
    "shortcut", [nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))]
)
def test_a_shortcut_that_computes_makes_a_transition(shortcut):
    found = residual_block(Basic(shortcut))
    assert isinstance(found, Refusal) and found.transition
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


def test_the_first_run_changes_neither_statistics_nor_random_numbers():
    block = PreNorm()
    residual, x = proven(block), tokens()
    torch.manual_seed(3)
    first = residual.branches[0](x)
    torch.manual_seed(3)
    assert torch.equal(residual.branches[0](x), first)
    block, seen = Basic(), []
    residual = proven(block)
    block.bn1.register_forward_hook(lambda *_: seen.append(block.bn1.track_running_stats))
    residual.branches[0](image())
    residual.branches[0](image())
    assert seen == [False, False, True, True]  # itself, its branches, then two runs that count
    assert block.bn1.num_batches_tracked == 2


def test_autocast_keeps_its_gradients_after_the_first_run():
    block, plain = PreNorm().eval(), None
    plain = copy.deepcopy(block)
    residual, x = proven(block), tokens()
    for own, run in ((block, lambda: run_stage(residual.branches, x, beta=0.0)), (plain, lambda: plain(x))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run().float().square().sum().backward()
        assert all(p.grad is not None for p in own.parameters())
    for p, p2 in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, p2.grad, rtol=0.05, atol=0.05 * p2.grad.abs().max())  # bfloat16 twice


def test_meta_tensors_run_without_the_comparison():
    block = PreNorm().to("meta")
    assert proven(block).branches[0](torch.empty(3, 6, D, device="meta")).shape == (3, 6, D)


@pytest.fixture(scope="module")
def video_mae():
    import transformers  # takes 3 s: for these tests only

    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return transformers.VideoMAEModel(config)


def test_layers_of_hugging_faces_video_mae_have_two_branches(video_mae):
    from model.trace_chain import chains, observe

    layers, x = video_mae.encoder.layer, torch.randn(2, 4, 16)
    for training in (True, False):
        video_mae.train(training)
        for layer in layers:
            residual = proven(layer)
            assert len(residual.branches) == 2 and not residual.post_activation
            torch.manual_seed(3)
            expected = layer(x)
            torch.manual_seed(3)
            assert torch.equal(added_up(residual, x), expected)
    names = tuple(f"encoder.layer.{i}" for i in range(3))
    for found in (chains(video_mae, names), observe(video_mae, names, torch.randn(1, 4, 3, 16, 16))):
        (chain,) = found
        assert chain.blocks == names and chain.reason is None
