"""Foreign checkpoints to our weights: found by their names, refused if too little fits, never executed."""

from __future__ import annotations

import argparse
import datetime
import json
import pickle  # to make what must be refused
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_cases import own_tensors, published

from model.backbones import BACKBONES, build_backbone
from tools.convert_weights import main
from tools.weights.files import read_checkpoint, read_tensors
from tools.weights.matching import best_match, sources_of

PUBLISHED = {
    "etad_tsp_r2plus1d_34_backbone.json": ("r2plus1d_34", "tsp"),
    "mmaction2_swin_tiny_p244_w877_backbone.json": ("video_swin_t", "mmaction2"),
    "mmaction2_videomae_base_backbone.json": ("videomae_b", "mmaction2"),
    "pyslowfast_SLOWFAST_8x8_R101_101_101_c2.json": ("slowfast_101", "pyslowfast"),
    "pyslowfast_SLOWFAST_8x8_R101_ptvcfg.json": ("slowfast_101", "pyslowfast"),
    "pyslowfast_SLOWFAST_8x8_R50.json": ("slowfast_50", "pyslowfast"),
    "pyslowfast_SLOWFAST_8x8_R50_c2.json": ("slowfast_50", "pyslowfast"),
    "torchvision_r2plus1d_18.json": ("r2plus1d_18", "torchvision"),
    "torchvision_swin3d_s.json": ("video_swin_s", "torchvision"),
    "torchvision_swin3d_t.json": ("video_swin_t", "torchvision"),
    "videomae_vit_base_k400_finetune.json": ("videomae_b", "videomae"),
}

invoke = partial(call, main)


def tiny(seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(build_backbone("r2plus1d_tiny").state_dict())


def test_every_list_of_published_keys_is_known_here(shared_real):
    assert {path.name for path in (shared_real / "keys").glob("*.json")} == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("file", PUBLISHED)
def test_published_keys_convert_with_nothing_left_over(file, shared_real):
    backbone, source = PUBLISHED[file]
    found = best_match(published(shared_real, file), backbone=backbone, source=None)
    assert found.share == 1 and not found.unexpected
    same = {"tsp", "torchvision"}, {"mmaction2", "videomae"}  # rules that read the same names alike
    assert found.source == source or any({found.source, source} <= names for names in same)


@pytest.mark.slow
def test_the_backbone_of_a_checkpoint_is_found_by_its_tensors(shared_real):
    for file in ("torchvision_swin3d_s.json", "pyslowfast_SLOWFAST_8x8_R101_ptvcfg.json"):
        found = best_match(published(shared_real, file), backbone=None, source=None)
        assert (found.backbone, found.source) == PUBLISHED[file]


def test_a_checkpoint_without_a_last_norm_is_not_given_a_fresh_one():
    # transformers' VideoMAEModel with use_mean_pooling=True returns what its last block gives.
    for backbone in ("videomae_b", "videomae_b_mmaction2"):
        found = best_match(own_tensors(backbone), backbone=None, source="videomae")
        assert (found.backbone, found.share, found.unexpected) == (backbone, 1, [])


@pytest.mark.slow
def test_a_lateral_norm_of_mmaction2_is_neither_lost_nor_taken_for_pyslowfasts():
    for backbone in ("slowfast_50_mmaction2", "slowfast_50_mmaction2_lateral_norm"):
        weights: dict[str, Tensor] = {}
        for name, tensor in own_tensors(backbone).items():
            name = re.sub(r"^lateral1\.", "slow_path.conv1_lateral.", name)
            name = re.sub(r"^lateral(\d)\.", lambda m: f"slow_path.layer{int(m[1]) - 1}_lateral.", name)
            name = re.sub(r"^(slow|fast)\.", r"\1_path.", name).replace("blocks.", "")
            name = name.replace("stem.conv.", "conv1.conv.").replace("stem.norm.", "conv1.bn.")
            name = re.sub(r"(conv\d|downsample|lateral)\.0\.", r"\1.conv.", name)
            weights[re.sub(r"(conv\d|downsample|lateral)\.1\.", r"\1.bn.", name)] = tensor
        found = best_match(weights, backbone=None, source=None)
        assert (found.backbone, found.source) == (backbone, "mmaction2")
        assert found.share == 1 and not found.unexpected


def test_every_backbone_has_sources_and_may_come_from_a_run_of_ours():
    for name in BACKBONES:
        *others, ours = sources_of(name)
        assert others and ours == "leantad"


def test_the_encoder_of_a_finished_run_serves_another(tmp_path):
    weights, out = tiny(), tmp_path / "ours.safetensors"
    theirs = {f"encoder.backbone.{name}": tensor for name, tensor in weights.items()}
    save_file(theirs | {"detector.heads.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert invoke(tmp_path / "model.safetensors", "--backbone", "r2plus1d_tiny", "--out", out).exit_code == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(out).items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_a_checkpoint_of_each_kind_becomes_the_same_weights(suffix, tmp_path):
    weights, path, out = tiny(), tmp_path / f"theirs.{suffix}", tmp_path / "ours.safetensors"
    theirs = weights | {"fc.weight": torch.zeros(400, 64), "fc.bias": torch.zeros(400)}
    if suffix == "pth":
        torch.save({"epoch": 3, "state_dict": theirs}, path)
    elif suffix == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in theirs.items()})
    else:
        save_file(theirs, path)
    result = invoke(path, "--backbone", "r2plus1d_tiny", "--out", out)
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.output and "unexpected" not in result.output
    found = load_file(out)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    with safe_open(out, "pt") as file:
        assert file.metadata()["backbone"] == "r2plus1d_tiny" and len(file.metadata()["sha256"]) == 64


def test_a_few_missing_tensors_are_named_and_initialised_and_cost_exit_code_one(tmp_path):
    weights = tiny()
    torch.save(
        {name: tensor for name, tensor in weights.items() if name != "layer2.1.conv2.1.bias"},
        tmp_path / "a.pt",
    )
    result = invoke(
        tmp_path / "a.pt", "--backbone", "r2plus1d_tiny", "--out", tmp_path / "b.safetensors", "--json"
    )
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["missing"] == ["layer2.1.conv2.1.bias"] and report["matched"] == len(weights) - 1
    assert load_file(tmp_path / "b.safetensors").keys() == weights.keys()


def test_half_floats_are_written_in_float32(tmp_path):
    torch.save({name: tensor.half() for name, tensor in tiny().items()}, tmp_path / "a.pt")
    assert (
        invoke(
            tmp_path / "a.pt", "--backbone", "r2plus1d_tiny", "--out", tmp_path / "b.safetensors"
        ).exit_code
        == 0
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "b.safetensors").values()} == {torch.float32}


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": tiny(), "meta": Bomb(tmp_path / "executed")}, tmp_path / "bad.pth")
    result = invoke(tmp_path / "bad.pth", "--out", tmp_path / "out.safetensors")
    assert result.exit_code == 2 and "holds more than tensors" in result.stderr
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out.safetensors").exists()


def as_tsp(weights: dict[str, Tensor]) -> dict[str, object]:
    """A checkpoint with what TSP's and others' hold beside their tensors."""
    options = argparse.Namespace(lr=np.float32(0.1), out=Path("runs"), sizes=[np.int64(3)])
    best = {"mAP": np.float64(0.37), "curve": np.arange(3.0), "when": datetime.datetime(2021, 1, 2)}
    return {"model": weights, "args": options, "epoch": np.int64(5), "best": best}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_namespace_and_numpy_numbers_beside_the_tensors_do_no_harm(zipped, tmp_path):
    weights, path, out = tiny(), tmp_path / "tsp.pth", tmp_path / "ours.safetensors"
    torch.save(as_tsp(weights), path, _use_new_zipfile_serialization=zipped)
    result = invoke(path, "--backbone", "r2plus1d_tiny", "--out", out)
    assert result.exit_code == 0 and "5 objects beside the tensors left unread" in result.output
    found = load_file(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_averaged_weights_are_preferred_said_aloud_and_another_key_can_be_chosen(tmp_path):
    weights, averaged, path = tiny(3), tiny(4), tmp_path / "a.pth"
    torch.save({"state_dict": weights, "state_dict_ema": averaged, "epoch": 3}, path)
    for options, wanted in (((), averaged), (("--key", "state_dict"), weights)):
        out = tmp_path / f"{len(options)}.safetensors"
        result = invoke(path, "--backbone", "r2plus1d_tiny", *options, "--out", out)
        assert result.exit_code == 0 and (" 'state_dict'" in result.output) == (
            "state_dict_ema" in result.output
        )
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_file(out).items())
    with pytest.raises(ValueError, match="has no tensors there; did you mean 'state_dict'"):
        read_checkpoint(path, "state_dicts")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_message_for_what_would_run_code_names_the_key_of_the_tensors(zipped, tmp_path):
    path = tmp_path / "bad.pth"
    content = as_tsp(tiny()) | {"meta": Bomb(tmp_path / "executed")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"\(it has 'model'\): torch.save\(checkpoint\['model'\], ...\)"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_arrays_in_a_pickle_are_not_taken_for_tensors(tmp_path):
    torch.save({"state_dict": {"w": np.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"holds no tensors by name \(1 object in it, perhaps numpy arrays"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_checkpoint_that_holds_itself_is_read_to_its_end(tmp_path):
    content: dict[str, object] = {"a": torch.ones(2)}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").tensors.keys() == {"a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such file"),
        ("cut.pth", b"PK\x03\x04cut", "damaged, or no checkpoint"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "damaged, or no safetensors file"),
        ("cut.npz", b"PK\x03\x04cut", "damaged, or no checkpoint"),
        ("nothing.pth", b"", "is empty"),
        ("page.pth", b"<!DOCTYPE html>", "is no checkpoint, it begins with b'<!DOCTYPE ht'"),
        ("caffe2.pkl", pickle.dumps({"blobs": {"w": np.zeros(2)}}, protocol=2), "holds more than tensors"),
        ("empty.pth", {"epoch": 3}, "holds no tensors by name"),
        (
            "other.pth",
            {"a.weight": torch.zeros(3)},
            "0.0% of .* found .* is it a checkpoint of another network",
        ),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's remarks on pickles are not for the terminal
        result = invoke(path, "--backbone", "r2plus1d_tiny", "--out", tmp_path / "out.safetensors")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        best_match(read_tensors(path), backbone="r2plus1d_tiny", source=None)
    assert list(tmp_path.glob("*out*")) == []


def test_weights_of_another_size_are_refused(tmp_path):
    torch.save({name: tensor[..., :1] for name, tensor in tiny().items()}, tmp_path / "a.pt")
    result = invoke(tmp_path / "a.pt", "--backbone", "r2plus1d_tiny", "--out", tmp_path / "b.safetensors")
    assert result.exit_code == 2 and "first of another shape" in result.stderr


def test_weights_are_not_overwritten_without_force(tmp_path):
    torch.save(tiny(), tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_text("mine")
    arguments = (tmp_path / "a.pt", "--backbone", "r2plus1d_tiny", "--out", tmp_path / "b.safetensors")
    assert invoke(*arguments).exit_code == 2 and (tmp_path / "b.safetensors").read_text() == "mine"
    assert invoke(*arguments, "--force").exit_code == 0


def test_a_source_that_does_not_have_the_backbone_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "a.pt")
    result = invoke(
        tmp_path / "a.pt", "--backbone", "r2plus1d_tiny", "--source", "huggingface", "--out", tmp_path / "b"
    )
    assert (
        result.exit_code == 2
        and "want one that has r2plus1d_tiny: torchvision, tsp, leantad" in result.stderr
    )
