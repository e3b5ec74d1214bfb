"""Networks of any source, rewired: Hugging Face's VideoMAE, users' own blocks, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.rewire import describe, reconstruction_error, rewire, rewired_stages, set_beta
from tools.benchmarks.trackers import SavedBytes

D = 6


class Block(nn.Module):
    """Pre-norm, two branches, layer scale and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(D), nn.Linear(D, D), nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D), nn.Dropout(0.2))
        self.scale = nn.Parameter(torch.full((D,), 0.5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stubborn(Block):
    """The same, but with control flow on values: tracing stops."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.sum() > 1e9:
            return x
        return super().forward(x)


def stubborn_branches(module: nn.Module):
    if not isinstance(module, Stubborn):
        return None
    return (
        lambda x: module.scale * module.attention(module.norm1(x)),
        lambda x: module.mlp(module.norm2(x)),
    )


class Network(nn.Module):
    def __init__(self, block: type[nn.Module] = Block, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(3, D)
        self.layers = nn.ModuleList(block() for _ in range(depth))
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, mask=None)
        return self.norm(x)


class Untraceable(Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 4, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    network.zero_grad()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad.clone() for name, p in network.named_parameters()}


def two_streams(network: Network, x: Tensor) -> Tensor:
    """Re2TAL's equations: y1 = x1 + F(x2), y2 = x2 + G(y1), the mean of both at the end."""
    one = other = network.stem(x)
    for layer in network.layers:
        one = one + layer.scale * layer.attention(layer.norm1(other))
        other = other + layer.mlp(layer.norm2(one))
    return network.norm((one + other) / 2)


VARIANTS = [(Network, Block, None), (Untraceable, Block, None), (Network, Stubborn, stubborn_branches)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block", "branches"), VARIANTS)
def test_a_users_network_gets_the_two_streams_and_their_gradients(kind, block, branches):
    network, plain = kind(block).double(), kind(block).double()
    names = list(network.state_dict())
    table = rewire(network, fixed_point_states=False, branches=branches, example={"x": inputs()})
    assert [(row.name, row.kind, row.num_branches) for row in table] == [
        (f"layers.{i}", "reversible", 2) for i in range(4)
    ]
    assert list(network.state_dict()) == names
    y, found = step(network, inputs())
    torch.manual_seed(2)
    y2 = two_streams(plain, inputs())
    (y2 * torch.linspace(-1, 1, y2.numel(), dtype=y2.dtype).view_as(y2)).sum().backward()
    assert torch.allclose(y, y2, rtol=1e-12)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-12), name
    assert 0 < reconstruction_error(network) < 1e-12


@pytest.mark.parametrize(("kind", "block", "branches"), VARIANTS)
def test_beta_zero_is_the_users_network_bit_for_bit(kind, block, branches):
    network = kind(block)
    y, gradients = step(network, inputs(torch.float32))
    rewire(network, beta=0.0, branches=branches, example={"x": inputs(torch.float32)})
    y2, gradients2 = step(network, inputs(torch.float32))
    assert torch.equal(y, y2)
    assert all(torch.equal(gradients[name], tensor) for name, tensor in gradients2.items())


@pytest.mark.slow
def test_memory_does_not_grow_with_depth_and_beta_can_change():
    saved = []
    for depth in (4, 8):
        network, x = Network(depth=depth), inputs(torch.float32)
        rewire(network)
        ignored = {tensor.untyped_storage().data_ptr() for tensor in (x, *network.parameters())}
        with SavedBytes(ignored) as held:
            y = network(x)
        saved.append(held.now)
        assert y.requires_grad
    assert saved[0] == saved[1]
    (stage,) = rewired_stages(network)
    set_beta(network, 0.5)
    assert stage.beta == 0.5


@pytest.mark.slow
def test_a_copy_has_its_own_blocks():
    network = Network()
    rewire(network)
    other = copy.deepcopy(network)
    step(other, inputs(torch.float32))
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in other.parameters())


class PostActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x))
        out += x
        return self.relu(out)


def test_blocks_that_activate_after_the_addition_are_reversible_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(PostActivation(), PostActivation()))
    plain = copy.deepcopy(network)
    x = torch.randn(2, 3, 5, 5)
    table = rewire(network, beta=0.0)
    assert [row.name for row in table if row.kind == "reversible"] == ["1.0", "1.1"]
    assert torch.equal(network(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), plain.buffers(), strict=True))
    set_beta(network, 1.0)
    previous = current = network[0](x)
    for block in plain[1]:  # Re2TAL: the ReLU moves into the branch
        previous, current = current, previous + torch.relu(block.bn1(block.conv1(current)))
    assert torch.allclose(network.train()(x), (previous + current) / 2, atol=1e-5)  # float32


@pytest.fixture(scope="module")
def hugging_face() -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=12, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=24, use_mean_pooling=False, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    return VideoMAEModel(config).train()


@pytest.mark.slow
def test_hugging_faces_videomae_is_rewired_as_it_comes(hugging_face):
    network, x = copy.deepcopy(hugging_face), torch.randn(2, 4, 3, 16, 16)
    expected = hugging_face(pixel_values=x).last_hidden_state
    table = rewire(network, beta=0.0, example={"pixel_values": x})
    assert [row.num_branches for row in table if row.kind == "reversible"] == [2, 2, 2]
    assert "encoder.layer.0" in describe(table)
    assert torch.allclose(network(pixel_values=x).last_hidden_state, expected, atol=1e-6)  # float32
    set_beta(network, 1.0)
    gradients = []
    for invert in (True, False):
        for stage in rewired_stages(network):
            stage.invert = invert
        network.zero_grad()
        y = network(pixel_values=x).last_hidden_state
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert reconstruction_error(network) == 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not torch.allclose(y, expected, atol=1e-3)


class Scaled(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return 2 * x + self.attention(x)


class Skipping(Network):
    """Its last layer also sees the stem: no chain."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        y = self.layers[0](first)
        return self.norm(self.layers[1](y) + first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Network(Scaled), "no block is known to be residual .layers.0: .*branches="),
        (Network(Stubborn), "layers.0: .*branches="),
        (nn.Linear(2, 2), "it holds no module but torch's layers"),
    ],
)
def test_what_cannot_be_proven_is_refused_and_left_alone(network, reason):
    with pytest.raises(ValueError, match=f"rewire: {type(network).__name__}: .*{reason}"):
        rewire(network)
    assert not any("forward" in vars(module) for module in network.modules())


def test_blocks_in_no_chain_are_named_and_left_alone():
    network = Skipping(depth=3)
    plain = copy.deepcopy(network)
    table = {row.name: row for row in rewire(network, beta=0.0)}
    assert table["layers.2"].kind == "untouched" and "never called" in table["layers.2"].reason
    assert torch.equal(step_eval(network), step_eval(plain))


def step_eval(network: nn.Module) -> Tensor:
    torch.manual_seed(2)
    return network(inputs(torch.float32))


def test_a_wrong_branch_of_the_caller_is_found_at_the_first_run():
    network = Network(Stubborn)
    rewire(
        network,
        branches=lambda m: (m.attention,) if isinstance(m, Stubborn) else None,
        example={"x": inputs(torch.float32)},
    )
    with pytest.raises(ValueError, match="layers.0: what branches= gave differs from its output"):
        network(inputs(torch.float32))


@pytest.mark.slow
def test_a_rewired_block_takes_no_argument_that_carries_a_gradient():
    network = Network()
    rewire(network)
    with pytest.raises(ValueError, match="layers.0: it is called with mask, which carries a gradient"):
        network.layers[0](torch.zeros(1, D), mask=torch.ones(1, requires_grad=True))


@pytest.mark.slow
def test_rewiring_twice_and_storing_are_refused():
    network = Network()
    rewire(network)
    with pytest.raises(ValueError, match="layers.0 is rewired already"):
        rewire(network)
    with pytest.raises(ValueError, match="stored: want a prepared network"):
        rewire(Network(), stored=("layers.0",))


@pytest.mark.parametrize("argument", [{"branches": stubborn_branches}, {"example": {"x": inputs()}}])
def test_arguments_for_other_networks_are_refused_for_a_prepared_one(argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"rewire: {name}: got one for a prepared network"):
        rewire(build_backbone("r2plus1d_tiny"), **argument)
