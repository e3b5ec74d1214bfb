"""model/encode.py: the gradient of the sampled clips is that of plain autograd; nothing else is touched."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from model.encode import sampled_encode
from model.encode_backward import Aliases, backward
from model.late_choice import LateChoice, late_choice
from model.network import ClipEncoder
from model.sampling import num_kept, sample_clips, sample_labelled_clips
from model.settings import EncoderSettings

B, N, SHAPE = 2, 7, (3, 4, 6, 6)  # videos, clips, one clip


class Encoder(nn.Module):
    """(n, 3, 4, 6, 6) uint8 -> (n, 5, 4), with dropout and, if asked, batch norm; counts what it is given."""

    def __init__(self, *, dropout: float = 0.3, batch_norm: bool = False, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv3d(4, 5, 1)
        self.seen: list[tuple[int, torch.dtype, bool]] = []
        self.to(dtype)

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append((len(clips), clips.dtype, torch.is_grad_enabled()))
        pixels = clips.to(self.first.weight.dtype) / 255
        return self.last(self.dropout(torch.tanh(self.norm(self.first(pixels))))).mean((3, 4))


def make_clips(num_clips: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (B, num_clips, *SHAPE), dtype=torch.uint8, generator=generator)


def draw(ratio: float, num_clips: int = N, strategy: str = "random") -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return sample_clips(B, num_clips, ratio, strategy=strategy, generator=generator)


def late(strategy: str, ratio: float = 0.4, num_clips: int = N, seed: int = 2) -> LateChoice:
    generator = torch.Generator().manual_seed(seed)
    return late_choice(strategy, num_kept(num_clips, ratio), generator=generator)


def gradients(encoder: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


def feature_gradient(num_clips: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, 5, num_clips * 4, dtype=dtype, generator=torch.Generator().manual_seed(3))


def chunks(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def reference(
    encoder: nn.Module, clips: Tensor, kept: Tensor, clips_per_forward: int
) -> tuple[Tensor, Tensor]:
    """The slow way: the kept clips in their chunks with a graph, then the others without, put in order."""
    num_clips = clips.shape[1]
    flat = clips.flatten(0, 1)
    chosen = [b * num_clips + i for b, row in enumerate(kept.tolist()) for i in row]
    others = [i for i in range(len(flat)) if i not in chosen]
    found: dict[int, Tensor] = {}
    for numbers in chunks(chosen, clips_per_forward):
        found |= dict(zip(numbers, encoder(flat[numbers]), strict=True))
    with torch.no_grad():
        for numbers in chunks(others, clips_per_forward):
            found |= dict(zip(numbers, encoder(flat[numbers]), strict=True))
    rows = [torch.cat([found[b * num_clips + i] for i in range(num_clips)], 1) for b in range(B)]
    return torch.stack(rows), kept


def compare(encoder: Encoder, clips: Tensor, kept: Tensor, clips_per_forward: int, **options) -> None:
    """Features and gradients of sampled_encode against the reference, from one and the same random state."""
    gradient = feature_gradient(clips.shape[1])
    torch.manual_seed(5)
    want, _ = reference(encoder, clips, kept, clips_per_forward)
    after = torch.get_rng_state()
    want.backward(gradient)
    want_gradients = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(5)
    got = sampled_encode(encoder, clips, kept, clips_per_forward=clips_per_forward, **options)
    assert torch.equal(torch.get_rng_state(), after)
    got.backward(gradient)
    assert torch.equal(torch.get_rng_state(), after), "the backward moved the global generator"
    assert torch.equal(got, want)
    assert gradients(encoder).keys() == want_gradients.keys()
    for name, value in gradients(encoder).items():
        # float64 sums of the chunks in another order
        torch.testing.assert_close(value, want_gradients[name], rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("clips_per_forward", [1, 4, 100])
@pytest.mark.parametrize("strategy", ["random", "uniform", "block"])
def test_gradients_are_those_of_plain_autograd_on_the_sampled_clips(strategy, clips_per_forward, keep_graphs):
    kept = draw(0.4, strategy=strategy)
    compare(Encoder(), make_clips(), kept, clips_per_forward, keep_graphs=keep_graphs)


def test_gradients_of_clips_near_actions_are_those_of_plain_autograd():
    actions = [torch.tensor([[2.0, 3.0]]), torch.zeros(0, 2)]
    generator = torch.Generator().manual_seed(2)
    kept = sample_labelled_clips(N, 0.4, actions, num_steps=N, generator=generator)
    compare(Encoder(), make_clips(), kept, 4)


def reference_in_chunks(encoder: nn.Module, clips: Tensor, clips_per_forward: int) -> Tensor:
    """Plain autograd over every clip, in the chunks of a late choice: (B*N, D, t)."""
    return torch.cat([encoder(chunk) for chunk in torch.split(clips.flatten(0, 1), clips_per_forward)])


def compare_late(encoder: Encoder, strategy: str, clips_per_forward: int, ratio: float = 0.4) -> None:
    """Against plain autograd: the choice is made on features and gradients that it computed itself."""
    clips, gradient = make_clips(), feature_gradient(N)
    of_clips = torch.unflatten(torch.unflatten(gradient, 2, (N, 4)).transpose(1, 2).flatten(0, 1), 0, (B, N))
    torch.manual_seed(5)
    features = reference_in_chunks(encoder, clips, clips_per_forward)
    after = torch.get_rng_state()
    values = of_clips if strategy in ("top_gradient", "importance") else features.unflatten(0, (B, N))
    chosen = late(strategy, ratio).choose(values.detach().flatten(2))
    weights = torch.zeros(B, N, dtype=torch.float64)
    weights.scatter_(1, chosen.clips, 1.0 if chosen.weights is None else chosen.weights)
    features.backward((of_clips * weights[..., None, None]).flatten(0, 1))
    want = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(5)
    got = sampled_encode(encoder, clips, late(strategy, ratio), clips_per_forward=clips_per_forward)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(got, features.unflatten(0, (B, N)).transpose(1, 2).flatten(2))
    got.backward(gradient)
    assert torch.equal(torch.get_rng_state(), after), "the backward moved the global generator"
    assert gradients(encoder).keys() == want.keys()
    for name, value in gradients(encoder).items():
        # float64 sums of the chunks in another order
        torch.testing.assert_close(value, want[name], rtol=1e-12, atol=1e-14, msg=name)


LATE = ("farthest", "dpp", "top_gradient", "importance")


@pytest.mark.parametrize("clips_per_forward", [1, 4, 100])
@pytest.mark.parametrize(
    "options", [{"dropout": 0.0}, {"dropout": 0.3}, {"dropout": 0.0, "batch_norm": True}]
)
@pytest.mark.parametrize("strategy", LATE)
def test_gradients_of_a_late_choice_are_those_of_plain_autograd(strategy, options, clips_per_forward):
    compare_late(Encoder(**options), strategy, clips_per_forward)


@pytest.mark.parametrize("ratio", [1e-6, 1.0])
@pytest.mark.parametrize("strategy", LATE)
def test_a_late_choice_of_one_clip_and_of_all_is_no_exception(strategy, ratio):
    compare_late(Encoder(), strategy, 3, ratio)


def test_a_late_choice_updates_the_statistics_of_batch_norm_once_a_chunk():
    one, two = Encoder(batch_norm=True), Encoder(batch_norm=True)
    reference_in_chunks(one, make_clips(), 4)
    features = sampled_encode(two, make_clips(), late("importance"), clips_per_forward=4)
    features.backward(feature_gradient(N))
    assert two.norm.num_batches_tracked == 4
    # dropout comes after the norm; the statistics do not see it
    assert torch.equal(one.norm.running_mean, two.norm.running_mean)


def test_a_late_choice_encodes_only_the_chosen_clips_again_unless_their_chunk_matters():
    encoder = Encoder(dropout=0)
    sampled_encode(encoder, make_clips(), late("top_gradient"), clips_per_forward=4).backward(
        feature_gradient(N)
    )
    every, again = [(4, False)] * 3 + [(2, False)], [(4, True), (2, True)]
    assert [(count, graph) for count, _, graph in encoder.seen] == every + again
    assert {dtype for _, dtype, _ in encoder.seen} == {torch.uint8}
    encoder = Encoder(dropout=0.3)
    sampled_encode(encoder, make_clips(), late("top_gradient", 0.1), clips_per_forward=4).backward(
        feature_gradient(N)
    )
    whole = [count for count, _, graph in encoder.seen if graph]
    assert len(whole) <= 2 and set(whole) <= {2, 4}, "a chosen clip of each video, in its chunk"


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("strategy", LATE)
def test_partitioned_ranks_encode_as_many_chunks_again_whatever_they_choose(strategy, dropout):
    """ZeRO-3 gathers parameters on all ranks at once: a rank with fewer chunks would be waited for."""
    counts = set()
    for seed in range(20):
        encoder = Encoder(dropout=dropout)
        for number, parameter in enumerate(encoder.parameters()):
            parameter.ds_id = number
        features = sampled_encode(encoder, make_clips(), late(strategy, 0.3, seed=seed), clips_per_forward=2)
        gradient = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
        features.backward(gradient.double())
        counts.add(sum(graph for _, _, graph in encoder.seen))
    assert counts == {3 if dropout == 0 else 6}  # 3 of 7 clips, twice: in chunks of 2, or each in another one


def test_the_inverse_scale_of_a_late_choice_counts_the_kept_clips_for_all():
    found = []
    for scale in ("none", "inverse"):
        encoder = Encoder(dropout=0)
        features = sampled_encode(
            encoder, make_clips(), late("top_gradient"), clips_per_forward=4, gradient_scale=scale
        )
        features.backward(feature_gradient(N))
        found.append(encoder.first.weight.grad)
    torch.testing.assert_close(found[1], found[0] * N / 3, rtol=1e-12, atol=1e-14)  # one rounding


@pytest.mark.parametrize(("num_clips", "ratio"), [(1, 1.0), (1, 1e-6), (N, 1.0), (N, 1e-6)])
def test_one_clip_and_all_clips_are_no_exception(num_clips, ratio):
    compare(Encoder(), make_clips(num_clips), draw(ratio, num_clips), clips_per_forward=3)


def test_gradients_add_to_those_already_there():
    encoder, clips, kept = Encoder(dropout=0), make_clips(), draw(0.4)
    for _ in range(2):
        sampled_encode(encoder, clips, kept, clips_per_forward=4).backward(feature_gradient(N))
    twice = gradients(encoder)
    encoder.zero_grad()
    sampled_encode(encoder, clips, kept, clips_per_forward=4).backward(feature_gradient(N))
    for name, value in gradients(encoder).items():
        assert torch.equal(twice[name], 2 * value)


def test_the_sum_over_all_single_clips_is_the_full_gradient():
    encoder, clips = Encoder(dropout=0), make_clips()
    for i in range(N):
        kept = torch.full((B, 1), i)
        sampled_encode(encoder, clips, kept, clips_per_forward=2).backward(feature_gradient(N))
    summed = gradients(encoder)
    encoder.zero_grad()
    sampled_encode(encoder, clips, draw(1.0), clips_per_forward=4).backward(feature_gradient(N))
    for name, value in gradients(encoder).items():
        torch.testing.assert_close(summed[name], value, rtol=1e-12, atol=1e-14)  # another order of sums


def test_inverse_scale_counts_the_kept_clips_for_all():
    encoder, clips, kept = Encoder(dropout=0), make_clips(), draw(0.4)  # 3 of 7
    features = sampled_encode(encoder, clips, kept, clips_per_forward=4)
    features.backward(feature_gradient(N))
    plain = gradients(encoder)
    encoder.zero_grad()
    scaled = sampled_encode(encoder, clips, kept, clips_per_forward=4, gradient_scale="inverse")
    scaled.backward(feature_gradient(N))
    assert torch.equal(scaled, features)
    for name, value in gradients(encoder).items():
        torch.testing.assert_close(value, plain[name] * N / 3, rtol=1e-12, atol=1e-14)  # one rounding


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "uniform"])
def test_inverse_scale_is_unbiased(strategy):
    encoder, clips = Encoder(dropout=0), make_clips()
    sampled_encode(encoder, clips, draw(1.0), clips_per_forward=14).backward(feature_gradient(N))
    full = encoder.first.weight.grad.clone()
    encoder.zero_grad()
    generator, rounds = torch.Generator().manual_seed(4), 400
    for _ in range(rounds):
        kept = sample_clips(B, N, 0.4, strategy=strategy, generator=generator)
        features = sampled_encode(encoder, clips, kept, clips_per_forward=14, gradient_scale="inverse")
        features.backward(feature_gradient(N) / rounds)
    mean = encoder.first.weight.grad
    # Relative deviation of one draw is about 1, so of the mean of 400 about 0.05; "none" is off by 0.57.
    assert (mean - full).norm() / full.norm() < 0.15


@pytest.mark.slow
def test_importance_is_unbiased_and_less_noisy_than_random_clips():
    """Float64, gradients of very different size, as those of clips with and without an action."""
    encoder, clips = Encoder(dropout=0), make_clips()
    sizes = torch.tensor([8.0, 0.1, 0.1, 0.5, 0.0, 4.0, 0.2], dtype=torch.float64).repeat_interleave(4)
    gradient, rounds = feature_gradient(N) * sizes, 400
    sampled_encode(encoder, clips, draw(1.0), clips_per_forward=14).backward(gradient)
    full = encoder.first.weight.grad.clone()

    def estimates(choose) -> Tensor:
        found = []
        for seed in range(rounds):
            encoder.zero_grad()
            kept = choose(seed)
            features = sampled_encode(encoder, clips, kept, clips_per_forward=14, gradient_scale="inverse")
            features.backward(gradient)
            found.append((encoder.first.weight.grad - full) / full.norm())
        return torch.stack(found).flatten(1)

    importance = estimates(lambda seed: late("importance", seed=seed))
    random = estimates(lambda seed: sample_clips(
        B, N, 0.4, strategy="random", generator=torch.Generator().manual_seed(seed)
    ))  # fmt: skip
    noise = importance.square().sum(1).mean().sqrt()
    # the mean of 400 draws has 1/20 of the noise of one; twice that is far beyond chance in this dimension
    assert importance.mean(0).norm() < 2 * noise / 20
    assert noise < random.square().sum(1).mean().sqrt() / 4


def test_clips_reach_the_encoder_unchanged_in_chunks_and_the_kept_ones_twice():
    encoder = Encoder()
    sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4).backward(feature_gradient(N))
    without, again = [(4, False), (2, False), (4, False), (4, False)], [(4, True), (2, True)]
    assert [(count, graph) for count, _, graph in encoder.seen] == without + again
    assert {dtype for _, dtype, _ in encoder.seen} == {torch.uint8}


def test_with_kept_graphs_every_clip_is_encoded_once_and_the_kept_ones_with_a_graph():
    encoder = Encoder()
    features = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4, keep_graphs=True)
    features.backward(feature_gradient(N))
    assert [(count, graph) for count, _, graph in encoder.seen] == [
        (4, True), (2, True), (4, False), (4, False)
    ]  # fmt: skip


def test_a_rewired_encoder_has_the_same_gradients_with_kept_graphs():
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (2, 5, 3, 8, 16, 16), dtype=torch.uint8, generator=generator)
    kept, found = torch.tensor([[0, 3], [1, 2]]), []
    for keep_graphs in (False, True):
        torch.manual_seed(0)
        encoder = ClipEncoder(EncoderSettings(backbone="r2plus1d_tiny")).double().train()
        features = sampled_encode(encoder, clips, kept, clips_per_forward=2, keep_graphs=keep_graphs)
        (features * features.detach().sin()).sum().backward()
        found.append([features.detach(), *gradients(encoder).values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_kept_graphs_are_gone_after_the_backward():
    encoder = Encoder()
    features = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=1, keep_graphs=True)
    node = features.grad_fn
    while not hasattr(node, "graphs"):
        node = node.next_functions[0][0]
    assert len(node.graphs.features) == 6
    features.backward(feature_gradient(N))
    assert not node.graphs.features


@pytest.mark.parametrize("frozen", ["everything", "by no_grad"])
def test_without_anything_to_train_clips_are_encoded_once_and_without_a_graph(frozen):
    encoder = Encoder(dropout=0).requires_grad_(frozen != "everything")
    with torch.set_grad_enabled(frozen == "everything"):
        features = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4)
    assert not features.requires_grad
    assert [(count, graph) for count, _, graph in encoder.seen] == [
        (4, False),
        (4, False),
        (4, False),
        (2, False),
    ]


def test_training_and_evaluation_give_the_same_features():
    encoder = Encoder(dropout=0)
    trained = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=3)
    with torch.no_grad():
        evaluated = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=5)
    # float64: other chunks, other order of the convolutions' sums
    torch.testing.assert_close(trained.detach(), evaluated, rtol=1e-12, atol=1e-14)


def test_frozen_parameters_get_no_gradient_and_the_others_theirs():
    encoder = Encoder()
    encoder.first.requires_grad_(False)
    compare(encoder, make_clips(), draw(0.4), clips_per_forward=4)
    assert encoder.first.weight.grad is None and encoder.last.weight.grad is not None


def test_a_parameter_that_takes_no_part_gets_zeros():
    encoder = Encoder()
    encoder.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4).backward(feature_gradient(N))
    assert torch.equal(encoder.spare.grad, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_batch_norm_counts_each_chunk_once(keep_graphs):
    clips, kept = make_clips(), draw(0.4)
    one, two = Encoder(batch_norm=True), Encoder(batch_norm=True)
    torch.manual_seed(5)
    want, _ = reference(one, clips, kept, 4)
    want.backward(feature_gradient(N))
    torch.manual_seed(5)
    got = sampled_encode(two, clips, kept, clips_per_forward=4, keep_graphs=keep_graphs)
    got.backward(feature_gradient(N))
    assert torch.equal(got, want)
    assert two.norm.num_batches_tracked == 4
    assert torch.equal(one.norm.running_mean, two.norm.running_mean)
    assert torch.equal(one.norm.running_var, two.norm.running_var)
    for name, value in gradients(two).items():
        torch.testing.assert_close(value, one.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_each_parameter_is_accumulated_once(keep_graphs):
    encoder, counts = Encoder(), []
    for name, p in encoder.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: counts.append(name))
    features = sampled_encode(encoder, make_clips(), draw(1.0), clips_per_forward=1, keep_graphs=keep_graphs)
    features.backward(feature_gradient(N))
    assert sorted(counts) == sorted(name for name, _ in encoder.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_many_chunks_in_bfloat16_are_summed_in_float32(keep_graphs):
    encoder = Encoder(dropout=0, dtype=torch.bfloat16)
    clips = make_clips(1).expand(
        B, 150, *SHAPE
    )  # the same clip 300 times: the sum is 150 x the gradient of two
    gradient = feature_gradient(1, torch.bfloat16)
    features = sampled_encode(encoder, clips, draw(1.0, 150), clips_per_forward=1, keep_graphs=keep_graphs)
    features.backward(gradient.repeat(1, 1, 150))
    got = encoder.last.bias.grad.float()
    encoder.zero_grad()
    sampled_encode(encoder, clips[:, :1], draw(1.0, 1), clips_per_forward=1).backward(gradient)
    # One rounding to bfloat16 is 2^-9; here and in the reference. Summed in bfloat16 it is off by up to 0.28.
    torch.testing.assert_close(got, 150 * encoder.last.bias.grad.float(), rtol=2**-7, atol=1e-3)


def test_no_bfloat16_gradient_lies_beside_its_sum_and_all_go_with_the_aliases():
    encoder = Encoder(dropout=0, dtype=torch.bfloat16)
    aliases, clips = Aliases(encoder, 2), make_clips()[0, :1]
    for number in (1, 2):
        features = aliases.call(encoder, clips)
        aliases.call(backward, features, torch.ones_like(features))
        assert all(tensor.grad is None for tensor in aliases.tensors.values())
        sums = [total.clone() for total in aliases.sums.float32_sums.values()]
        assert len(sums) == len(aliases.tensors) and {total.dtype for total in sums} == {torch.float32}
        if number == 1:
            once = sums
    assert all(torch.equal(total, 2 * first) for total, first in zip(sums, once, strict=True))
    kept = [weakref.ref(tensor) for tensor in aliases.tensors.values()]
    gc.disable()
    try:
        del aliases, features
        assert not any(reference() is not None for reference in kept), "a cycle would wait for the collector"
    finally:
        gc.enable()


def test_autocast_holds_for_kept_graphs_of_several_chunks():
    encoder = Encoder(dropout=0, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=2, keep_graphs=True)
    features.backward(feature_gradient(N, features.dtype))
    assert features.dtype == torch.bfloat16 and encoder.first.weight.grad.dtype == torch.float32


def test_autocast_of_the_forward_holds_in_the_backward():
    encoder = Encoder(dropout=0, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4)
    seen: list[torch.dtype] = []
    encoder.last.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    features.backward(feature_gradient(N, features.dtype))
    assert features.dtype == torch.bfloat16 and set(seen) == {torch.bfloat16}
    assert encoder.first.weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_the_graph_held_is_that_of_one_chunk(monkeypatch):
    """Weak references to what the first convolution puts out: never more than one chunk's alive."""
    encoder, alive, most = Encoder(), set(), 0

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.key = object()
            alive.add(id(ctx.key))
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            nonlocal most
            most = max(most, len(alive))
            alive.discard(id(ctx.key))
            return gradient

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return Probe.apply(output) if torch.is_grad_enabled() else None

    encoder.first.register_forward_hook(hook)
    features = sampled_encode(encoder, make_clips(), draw(1.0), clips_per_forward=2)
    gc.collect()
    assert not alive, "the forward kept a graph"
    features.backward(feature_gradient(N))
    assert most == 1


class Drawing(Encoder):
    """Drops its features by Python's or NumPy's generator."""

    def __init__(self, draw_number: Callable[[], float]):
        super().__init__()
        self.draw_number = draw_number

    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips) * self.draw_number()


class Tracking(nn.Sequential):
    """A layer, and instance norm with running statistics."""

    def __init__(self, layer: nn.Module):
        super().__init__(layer, nn.InstanceNorm3d(4, track_running_stats=True))
        self.weight = layer.weight


def normalised(norm: Callable[[nn.Module], nn.Module]) -> Encoder:
    encoder = Encoder(dtype=torch.float32)
    encoder.first = norm(encoder.first)
    return encoder


@pytest.mark.parametrize("kept", [draw(0.4), late("dpp")], ids=["early", "late"])
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: Drawing(random.random), "draws from Python's or NumPy's random numbers"),
        (lambda: Drawing(np.random.rand), "draws from Python's or NumPy's random numbers"),
        (lambda: normalised(spectral_norm), "writes to first.parametrizations.weight.0._u, first"),
        (lambda: normalised(Tracking), "writes to first.1.running_mean, first.1.running_var, which"),
    ],
)
def test_an_encoder_that_would_not_run_again_as_it_ran_is_refused(encoder, message, kept):
    with pytest.raises(ValueError, match=message + ".*keep_graphs=true"):
        sampled_encode(encoder(), make_clips(), kept, clips_per_forward=4)
    sampled_encode(encoder(), make_clips(), draw(0.4), clips_per_forward=4, keep_graphs=True)
    sampled_encode(encoder(), make_clips(), None, clips_per_forward=4)


def test_a_table_that_is_made_once_is_no_obstacle_nor_what_other_threads_draw_later():
    encoder = Encoder()
    encoder.register_buffer("table", torch.zeros(0))

    def make_table(*_: object) -> None:
        if len(encoder.table) != 4:
            encoder.table = torch.arange(4.0)

    encoder.register_forward_pre_hook(make_table)
    sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4)
    encoder.register_forward_pre_hook(lambda *_: random.random() and None)
    sampled_encode(encoder, make_clips(), draw(0.4), clips_per_forward=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": torch.zeros(B, 3, 4, 6, 6)}, "want \\(B, N, C, L, H, W\\)"),
        ({"kept": torch.tensor([[0, 0], [1, 2]])}, "more than once"),
        ({"kept": torch.tensor([[0, 7], [1, 2]])}, "want 0 to 6"),
        ({"kept": torch.tensor([[0, 1]])}, "want \\(2, M\\)"),
        ({"kept": LateChoice("dpp", 8, torch.Generator())}, "got 8 clips of each video, want 1 to 7"),
        ({"kept": LateChoice("importance", 0, torch.Generator())}, "got 0 clips"),
        ({"clips_per_forward": 0}, "at least 1"),
        ({"gradient_scale": "mean"}, "'none' or 'inverse'"),
        ({"encoder": nn.Sequential(Encoder(), nn.Flatten())}, "one row of features per clip"),
    ],
)
def test_wrong_input_is_named(change, message):
    good = {"encoder": Encoder(), "clips": make_clips(), "kept": draw(0.4), "clips_per_forward": 4}
    with pytest.raises(ValueError, match=message):
        sampled_encode(**(good | change))
