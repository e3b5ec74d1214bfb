"""Video Swin checkpoints of three sources: names find their place, and numbers mean the same there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from weight_cases import own_tensors, published, shapes

from model.backbones.video_swin import Layout, VideoSwin
from tools.weights.names import video_swin

PUBLISHED = [
    ("torchvision", "video_swin_t", "torchvision_swin3d_t.json"),
    ("torchvision", "video_swin_s", "torchvision_swin3d_s.json"),
    ("mmaction2", "video_swin_t", "mmaction2_swin_tiny_p244_w877_backbone.json"),
]


@pytest.mark.parametrize(("source", "backbone", "file"), PUBLISHED)
def test_every_published_tensor_finds_its_place(source, backbone, file, shared_real):
    weights = published(shared_real, file)
    converted = getattr(video_swin, f"from_{source}")(weights)
    assert shapes(converted) == shapes(own_tensors(backbone))
    left = [name for name in weights if not any(weights[name] is tensor for tensor in converted.values())]
    assert all(name.startswith("head.") or name.endswith("relative_position_index") for name in left)


def opentad(name: str) -> str:
    """mmaction2's name of a tensor -> its name in pretrained weights of OpenTAD's SwinTransformer3D_inv.

    No key list of it is at hand, so this is from its module tree: patch embedding, mergings and `norm3` are
    mmaction2's; block B of layer N, `layers.N.blocks.B`, has one child `inv_block`, of which `Fm` holds norm1
    and attn (with relative_position_bias_table, relative_position_index, qkv, proj) and `Gm` norm2 and mlp
    (fc1, fc2); the drop-path in both has no tensors. The encoder is the `backbone` of a recognizer.
    """
    for part, half in {"norm1": "Fm", "attn": "Fm", "norm2": "Gm", "mlp": "Gm"}.items():
        name = name.replace(f".{part}.", f".inv_block.{half}.{part}.")
    return f"backbone.{name}"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.model."])
def test_every_tensor_of_the_rewired_swin_finds_its_place(prefix, shared_real):
    weights = published(shared_real, "mmaction2_swin_tiny_p244_w877_backbone.json")
    rewired = {f"{prefix}{opentad(name)}": tensor for name, tensor in weights.items()}
    assert f"{prefix}backbone.layers.2.blocks.5.inv_block.Gm.mlp.fc1.weight" in rewired
    rewired["cls_head.fc_cls.weight"] = torch.empty(400, 768)
    assert shapes(video_swin.from_opentad_re2tal(rewired)) == shapes(own_tensors("video_swin_t"))


def test_mmaction2_files_carry_a_prefix_and_a_head(shared_real):
    weights = published(shared_real, "mmaction2_swin_tiny_p244_w877_backbone.json")
    weights = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    weights["cls_head.fc_cls.weight"] = torch.empty(400, 768)
    assert shapes(video_swin.from_mmaction2(weights)) == shapes(own_tensors("video_swin_t"))


def test_two_tensors_with_one_place_are_refused():
    weights = {"backbone.norm3.bias": torch.zeros(1), "norm.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="'backbone.norm3.bias' and 'norm.bias' are both 'norm.bias'"):
        video_swin.from_mmaction2(weights)


# A network that sees one window in each stage, so that its equations are few: 2x2x2 tokens, then 2x1x1.
LAYOUT = Layout(4, depths=(1, 2), heads=(1, 2), window=(2, 2, 2), patch=(2, 4, 4))
SHAPES = {
    "norm1.weight": (1,),
    "norm1.bias": (1,),
    "attn.relative_position_bias_table": (27, 0),
    "attn.qkv.weight": (3, 1),
    "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1),
    "attn.proj.bias": (1,),
    "norm2.weight": (1,),
    "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1),
    "mlp.fc1.bias": (4,),
    "mlp.fc2.weight": (1, 4),
    "mlp.fc2.bias": (1,),
}  # in units of the channels; 0 stands for the heads, 27 for itself
MERGING = {"reduction.weight": (8, 16), "norm.weight": (16,), "norm.bias": (16,)}
ENDS = {
    "patch_embed.proj.weight": (4, 3, 2, 4, 4),
    "patch_embed.proj.bias": (4,),
    "patch_embed.norm.weight": (4,),
    "patch_embed.norm.bias": (4,),
}


def torchvision_name(where: str, part: str) -> str:
    part = part.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    prefixes = {"block 1 0": "features.0.0.", "merging": "features.1.", "norm": "norm."}
    return prefixes.get(where, f"features.2.{where[-1]}.") + part


def mmaction2_name(where: str, part: str) -> str:
    prefixes = {"block 1 0": "layers.0.blocks.0.", "merging": "layers.0.downsample.", "norm": "norm1."}
    return prefixes.get(where, f"layers.1.blocks.{where[-1]}.") + part


def opentad_name(where: str, part: str) -> str:
    return opentad(mmaction2_name(where, part))


NAMES = {"torchvision": torchvision_name, "mmaction2": mmaction2_name, "opentad_re2tal": opentad_name}
BLOCKS = (("block 1 0", 4, 1), ("block 2 0", 8, 2), ("block 2 1", 8, 2))


def source_weights(source: str) -> dict[str, Tensor]:
    """Random numbers under the names of the source, for LAYOUT."""
    name, shapes = NAMES[source], {f"{'backbone.' * (source[0] == 'o')}{k}": s for k, s in ENDS.items()}
    for where, channels, heads in BLOCKS:
        for part, units in SHAPES.items():
            shapes[name(where, part)] = tuple(
                heads if unit == 0 else unit if unit == 27 else unit * channels for unit in units
            )
    shapes |= {name("merging", part): shape for part, shape in MERGING.items()}
    shapes |= {name("norm", part): (8,) for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    return {
        key: 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in shapes.items()
    }


def offset_row(query: int, key: int) -> int:
    """Row of the bias table for two tokens of a 2x2x2 window, numbered t, h, w."""
    row = 0
    for axis in (4, 2, 1):
        row = 3 * row + (query // axis % 2) - (key // axis % 2) + 1
    return row


def written_out(weights: dict[str, Tensor], source: str, clip: Tensor) -> Tensor:
    """The network by its equations from the source's names; clip: (3, 4, 8, 8). Returns (2, 1, 1, 8)."""

    def part(where: str, end: str) -> Tensor:
        return weights[NAMES[source](where, end)]

    def norm(x: Tensor, where: str, end: str) -> Tensor:
        weight, bias = part(where, f"{end}weight"), part(where, f"{end}bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def block(x: Tensor, where: str, heads: int) -> Tensor:
        qkv = norm(x, where, "norm1.") @ part(where, "attn.qkv.weight").T + part(where, "attn.qkv.bias")
        table, width, mixed = part(where, "attn.relative_position_bias_table"), x.shape[1] // heads, []
        rows = torch.tensor([[offset_row(i, j) for j in range(len(x))] for i in range(len(x))])
        for head in range(heads):
            q, k, v = (third[:, head * width : (head + 1) * width] for third in qkv.chunk(3, dim=1))
            mixed.append(torch.softmax(q @ k.T / math.sqrt(width) + table[rows, head], dim=1) @ v)
        x = x + torch.cat(mixed, 1) @ part(where, "attn.proj.weight").T + part(where, "attn.proj.bias")
        hidden = norm(x, where, "norm2.") @ part(where, "mlp.fc1.weight").T + part(where, "mlp.fc1.bias")
        return x + F.gelu(hidden) @ part(where, "mlp.fc2.weight").T + part(where, "mlp.fc2.bias")

    ends = [weights[name] for name in weights if "patch_embed" in name]
    x = F.conv3d(clip[None], ends[0], ends[1], stride=(2, 4, 4))[0].flatten(1).T  # (8, 4)
    x = block(F.layer_norm(x, (4,), ends[2], ends[3]), "block 1 0", 1)
    corners = x.view(2, 2, 2, 4)  # t, h, w; side by side: the left column from above, then the right one
    x = torch.cat([corners[:, h, w] for w in (0, 1) for h in (0, 1)], dim=1)
    x = norm(x, "merging", "norm.") @ part("merging", "reduction.weight").T
    x = block(block(x, "block 2 0", 2), "block 2 1", 2)
    return norm(x, "norm", "").view(2, 1, 1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("source", list(NAMES))
def test_numbers_go_where_they_belong(source):
    weights = source_weights(source)
    network = VideoSwin(LAYOUT, drop_path=0.0).double()
    clip = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def output(weights: dict[str, Tensor]) -> Tensor:
        network.load_state_dict(getattr(video_swin, f"from_{source}")(weights))
        return network(clip[None])[0].detach().permute(1, 2, 3, 0)

    expected = written_out(weights, source, clip)
    assert torch.allclose(output(weights), expected, rtol=0, atol=1e-12)  # roundings of float64
    for one in weights:
        for other in weights:
            if one < other and weights[one].shape == weights[other].shape:
                swapped = weights | {one: weights[other], other: weights[one]}
                assert (output(swapped) - expected).abs().max() > 1e-6
