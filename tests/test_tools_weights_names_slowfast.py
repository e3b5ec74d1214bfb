"""SlowFast checkpoints of four sources: PySlowFast's published keys, the others' derived from their code."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from weight_cases import own_tensors, published, shapes

from tools.weights.names import slowfast

PUBLISHED = {
    "pyslowfast_SLOWFAST_8x8_R50.json": "slowfast_50",
    "pyslowfast_SLOWFAST_8x8_R50_c2.json": "slowfast_50",
    "pyslowfast_SLOWFAST_8x8_R101_101_101_c2.json": "slowfast_101",
    "pyslowfast_SLOWFAST_8x8_R101_ptvcfg.json": "slowfast_101",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", list(PUBLISHED))
def test_every_published_key_of_pyslowfast_but_the_head_finds_its_place(file, shared_real):
    weights = published(shared_real, file)
    converted = slowfast.from_pyslowfast(weights)
    assert shapes(converted) == shapes(own_tensors(PUBLISHED[file]))
    assert len(weights) - len(converted) == 2  # head.projection.weight and .bias


@pytest.mark.parametrize(
    ("blob", "name"),
    [  # a log of PySlowFast loading a Caffe2 checkpoint (SLOWFAST_32x2_R101_50_50_v2.1.pkl) prints these
        ("t_res4_22_branch2c_bn_subsample_w", "s4_fuse.conv_f2s.weight"),
        ("res4_19_branch2c_bn_riv", "s4.pathway0_res19.branch2.c_bn.running_var"),
        ("t_res2_0_branch2a_w", "s2.pathway1_res0.branch2.a.weight"),
        ("res3_0_branch1_w", "s3.pathway0_res0.branch1.weight"),
        ("t_res2_0_branch1_bn_rm", "s2.pathway1_res0.branch1_bn.running_mean"),
        ("res4_16_branch2b_bn_s", "s4.pathway0_res16.branch2.b_bn.weight"),
        ("t_res5_1_branch2c_bn_b", "s5.pathway1_res1.branch2.c_bn.bias"),
        # and these follow from the rules in its slowfast/utils/c2_model_loading.py
        ("t_pool1_subsample_w", "s1_fuse.conv_f2s.weight"),
        ("t_pool1_subsample_bn_s", "s1_fuse.bn.weight"),
        ("t_res3_3_branch2c_bn_subsample_bn_riv", "s3_fuse.bn.running_var"),
        ("conv1_w", "s1.pathway0_stem.conv.weight"),
        ("t_res_conv1_bn_b", "s1.pathway1_stem.bn.bias"),
    ],
)
def test_a_blob_of_caffe2_goes_where_its_native_name_goes(blob, name):
    tensor = torch.ones(1)
    assert list(slowfast.from_caffe2({blob: tensor}))[0] == list(slowfast.from_pyslowfast({name: tensor}))[0]


def blob_name(name: str, blocks: tuple[int, ...]) -> str:
    """The Caffe2 name of a tensor with this native name: PySlowFast's rules, backwards."""
    name = re.sub(r"^head\.projection\.", "pred_", name)
    name = re.sub(r"^s1\.pathway(\d)_stem\.conv\.", r"p\1_conv1_", name)
    name = re.sub(r"^s1\.pathway(\d)_stem\.bn\.", r"p\1_res_conv1_bn.", name)
    name = re.sub(r"^s1_fuse\.", "t_pool1_subsample_", name)
    name = re.sub(
        r"^s(\d)_fuse\.", lambda m: f"t_res{m[1]}_{blocks[int(m[1]) - 2] - 1}_branch2c_bn_subsample_", name
    )
    name = name.replace("conv_f2s.", "")
    name = re.sub(r"^s(\d)\.pathway(\d)_res(\d+)\.branch", r"p\2_res\1_\3_branch", name)
    name = re.sub(r"^p0_", "", re.sub(r"^p1_", "t_", name)).replace("branch2.", "branch2")
    ends = {"running_mean": "rm", "running_var": "riv", "weight": "s", "bias": "b"}
    name = re.sub(r"bn\.(\w+)$", lambda m: f"bn_{ends[m[1]]}", name)
    return re.sub(r"[._](weight|bias)$", lambda m: f"_{m[1][0]}", name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "blocks"),
    [
        ("pyslowfast_SLOWFAST_8x8_R50_c2.json", (3, 4, 6, 3)),
        ("pyslowfast_SLOWFAST_8x8_R101_101_101_c2.json", (3, 4, 23, 3)),
    ],
)
def test_every_blob_of_a_caffe2_checkpoint_finds_its_place(file, blocks, shared_real):
    weights = published(shared_real, file)
    blobs = {blob_name(name, blocks): w for name, w in weights.items() if "num_batches" not in name}
    momenta = {f"{name}_momentum": weight for name, weight in blobs.items()}
    solver = {"lr": torch.ones(1), "model_iter": torch.ones(1)}
    converted = slowfast.from_caffe2({**blobs, **momenta, **solver})
    assert shapes(converted) == shapes(own_tensors(PUBLISHED[file]))


def test_arrays_of_caffe2_become_tensors_and_no_batch_is_counted():
    blobs = {"conv1_w": np.full((2, 3, 1, 7, 7), 3.0, np.float32), "res_conv1_bn_rm": np.ones(2, np.float32)}
    weights = slowfast.from_caffe2({**blobs, "lr": np.float32(0.1)})
    counts = [
        f"slow.stem.{name}" for name in ("conv.weight", "norm.running_mean", "norm.num_batches_tracked")
    ]
    assert list(weights) == counts
    assert weights[counts[0]].unique().item() == 3 and weights[counts[2]] == 0


def mmaction2_name(name: str, *, rewired: bool) -> str:
    """The name of our tensor in mmaction2, or in OpenTAD's Re2TAL if `rewired`.

    Derived from resnet3d_slowfast.py and re2tal_slowfast.py: two pathways, a ConvModule (`conv`, `bn`) per
    convolution, the laterals in the slow pathway, named after the layer they read.
    """
    if m := re.match(r"lateral(\d)\.([01])\.(\w+)", name):
        read = "conv1" if m[1] == "1" else f"layer{int(m[1]) - 1}"
        return f"backbone.slow_path.{read}_lateral.{'bn' if m[2] == '1' else 'conv'}.{m[3]}"
    name = re.sub(r"^(slow|fast)\.", r"backbone.\1_path.", name)
    name = name.replace("stem.conv.", "conv1.conv.").replace("stem.norm.", "conv1.bn.")
    name = re.sub(r"\.(conv\d|downsample)\.0\.", r".\1.conv.", name)
    name = re.sub(r"\.(conv\d|downsample)\.1\.", r".\1.bn.", name)
    if rewired:
        name = re.sub(r"(blocks\.0)\.conv", r"\1.Fm.conv", name)
        return re.sub(r"(blocks\.[1-9]\d*)\.conv", r"\1.inv_block.Fm.conv", name)
    return name.replace("blocks.", "")


def test_mmaction2s_names_have_the_documented_form():
    name = "slow.layer3.blocks.12.conv2.1.running_var"
    assert mmaction2_name(name, rewired=False) == "backbone.slow_path.layer3.12.conv2.bn.running_var"
    rewired = "backbone.slow_path.layer3.blocks.12.inv_block.Fm.conv2.bn.running_var"
    assert mmaction2_name(name, rewired=True) == rewired
    assert (
        mmaction2_name("lateral2.0.weight", rewired=True) == "backbone.slow_path.layer1_lateral.conv.weight"
    )


@pytest.mark.slow
@pytest.mark.parametrize("rewired", [False, True])
@pytest.mark.parametrize(
    "backbone", ["slowfast_50_mmaction2", "slowfast_50_mmaction2_lateral_norm", "slowfast_101_mmaction2"]
)
def test_every_tensor_of_mmaction2_and_re2tal_finds_its_place(backbone, rewired):
    own = shapes(own_tensors(backbone))
    theirs = {mmaction2_name(name, rewired=rewired): torch.empty(s, device="meta") for name, s in own.items()}
    theirs["cls_head.fc_cls.weight"] = torch.empty(400, 2304, device="meta")
    convert = slowfast.from_opentad_re2tal if rewired else slowfast.from_mmaction2
    assert len(theirs) == len(own) + 1
    assert shapes(convert(theirs)) == own


def test_a_detector_trained_with_opentad_gives_its_encoder():
    prefix = "module.backbone.model.backbone.fast_path.layer1.blocks"
    weights = {
        f"{prefix}.0.downsample.bn.bias": torch.ones(1),
        f"{prefix}.2.inv_block.Fm.conv3.conv.weight": torch.ones(1),
        "module.projection.norm.weight": torch.ones(1),
        "module.rpn_head.cls_head.conv.weight": torch.ones(1),
    }
    names = ["fast.layer1.blocks.0.downsample.1.bias", "fast.layer1.blocks.2.conv3.0.weight"]
    assert list(slowfast.from_opentad_re2tal(weights)) == names


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (slowfast.from_pyslowfast, "s4.pathway0_nonlocal6.conv_phi.weight"),
        (slowfast.from_caffe2, "nonlocal_conv4_6_phi_w"),
        (slowfast.from_mmaction2, "slow_path.layer4.0.non_local_block.g.weight"),
    ],
)
def test_what_we_do_not_know_keeps_its_name(convert, name):
    assert list(convert({name: torch.ones(1)})) == [name]
