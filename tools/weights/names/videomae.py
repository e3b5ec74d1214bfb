"""VideoMAE checkpoints of its authors, Hugging Face and mmaction2 -> names of model/backbones/videomae.py.

The last norm is `norm` in ours, whether the source calls it `norm`, `fc_norm` or `layernorm`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from model.backbones.videomae import sine_table

from .renaming import rename, strip

CLASSIFIERS = ("head.", "classifier.", "cls_head.")
# What pretraining has besides the encoder. Fixed positions are no weights: ours are computed.
DECODERS = ("encoder_to_decoder.", "decoder.", "mask_token", "position_embeddings")
POSITIONS = "pos_embed"

HUGGING_FACE_BLOCK = {
    "layernorm_before.": "norm1.",
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "attention.attention.query.bias": "attn.q_bias",  # since transformers 5
    "attention.attention.value.bias": "attn.v_bias",
    "attention.output.dense.": "attn.proj.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
}


def from_videomae(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "module" or "model" of a checkpoint of VideoMAE's authors, pretrained or fine-tuned, in our names.

    Raises ValueError if it holds a position table that is not the fixed one (ours cannot be learnt).
    """

    def new_name(name: str) -> str | None:
        return _common(strip(name, "module.", "backbone.", "encoder."))

    return _without_positions(rename(weights, new_name))


def from_mmaction2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The "state_dict" of mmaction2's VisionTransformer, with or without `backbone.`, in our names.

    Raises ValueError if its position table is not the fixed one.
    """

    def new_name(name: str) -> str | None:
        name = strip(name, "module.", "backbone.")
        name = name.replace("patch_embed.projection.", "patch_embed.proj.")
        name = name.replace(".mlp.layers.0.0.", ".mlp.fc1.")
        return _common(name.replace(".mlp.layers.1.", ".mlp.fc2."))

    return _without_positions(rename(weights, new_name))


def from_huggingface(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of transformers' VideoMAEModel, ForPreTraining or ForVideoClassification in our names.

    Queries, keys and values become one matrix. A bias of the keys (in files of some versions) is left out:
    it adds the same number to every score of a query, and the softmax cancels it.
    Raises ValueError if a block lacks one of the three matrices.
    """
    joined = dict(weights)
    for name in weights:
        match = re.fullmatch(r"(.*\.attention\.attention)\.(query|key|value)\.weight", name)
        if match and f"{match[1]}.qkv.weight" not in joined:
            joined[f"{match[1]}.qkv.weight"] = _joined(weights, match[1])
    return rename(joined, _hugging_face_name)


def _joined(weights: dict[str, Tensor], where: str) -> Tensor:
    names = [f"{where}.{part}.weight" for part in ("query", "key", "value")]
    for name in names:
        if name not in weights:
            raise ValueError(f"weights: no {name!r}, want the query, key and value of every block")
    return torch.cat([weights[name] for name in names])


def _hugging_face_name(name: str) -> str | None:
    name = strip(name, "videomae.")
    block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", name)
    if block:
        rest = block[2]
        if re.fullmatch(r"attention\.attention\.((query|key|value)\.weight|key\.bias)", rest):
            return None  # in qkv, or without effect
        rest = rest.replace("attention.attention.qkv.", "attn.qkv.")
        old = next((old for old in HUGGING_FACE_BLOCK if rest.startswith(old)), "")
        return f"blocks.{block[1]}." + HUGGING_FACE_BLOCK.get(old, "") + rest.removeprefix(old)
    name = re.sub(r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj.", name)
    return _common(re.sub(r"^layernorm\.", "norm.", name))


def _common(name: str) -> str | None:
    if name.startswith(CLASSIFIERS + DECODERS):
        return None
    return re.sub(r"^fc_norm\.", "norm.", name)


def _without_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the position table, which is no weight, once it is known to be the fixed one."""
    table = weights.get(POSITIONS)
    if table is not None and not table.is_meta:  # a meta tensor has a shape only
        num_positions, features = table.shape[-2:]
        fixed = sine_table(num_positions, features, table.device)
        error = (table.float() - fixed).abs().max().item()
        if not error < 0.01:  # 0.002 is the rounding of bfloat16; tables of other rules differ by about 1
            raise ValueError(
                f"weights: {POSITIONS!r} differs from the fixed sine-cosine table by up to {error:.2g}, want "
                "less than 0.01; ours does not learn positions: take a checkpoint with fixed ones"
            )
    return {name: tensor for name, tensor in weights.items() if name != POSITIONS}
