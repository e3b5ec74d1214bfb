"""Backbones of other libraries by name: features, motion, normalisation, rewiring, weights, refusals."""

from __future__ import annotations

import copy
import sys

import fake_libraries
import pytest
import torch
from fake_libraries import MEAN, SIZE, STD
from safetensors.torch import load_file, save_file
from torch import nn

from model.backbones import build_backbone
from model.backbones.described import Described
from model.backbones.feature_maps import clip_maps, image_maps, number_of_features
from model.backbones.libraries import is_foreign_name, named_folder
from model.backbones.temporal import shift_frames
from model.network import ClipEncoder
from model.rewire import rewired_stages, set_beta
from model.rewire_backbone import rewire_backbone
from model.settings import EncoderSettings
from train.build_network import build_network
from train.settings import settings_from

CLIPS = torch.randn(2, 3, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    fake_libraries.install(monkeypatch)
    torch.manual_seed(0)


def settings_of(**encoder: object):
    return settings_from({"data": {"shards": "x"}, "encoder": {"clips_per_forward": 2, **encoder}})


def test_a_network_of_images_sees_each_frame_with_the_librarys_normalisation():
    backbone = build_backbone("timm:small", "mean").eval()
    y = backbone(CLIPS)
    assert y.shape == (2, 8, 4, 8, 8) and backbone.num_features == 8
    assert torch.allclose(y[1, :, 2], backbone.network(CLIPS[1:, :, 2])[0], atol=1e-6)
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    assert "16x16 pixels; mean 0.5 0.4 0.3, std 0.2 0.25 0.5 (timm's)" in backbone.describe()


def test_the_shift_brings_an_eighth_of_the_channels_from_either_neighbour():
    x = torch.randn(6, 16, 3, 2)  # two clips of three frames
    for channel_dim, layout in ((1, x), (-1, x.movedim(1, -1))):
        y = shift_frames(layout.contiguous(), 3, channel_dim).movedim(channel_dim, 1)
        for frame in range(6):
            following = x[frame + 1, :2] if frame % 3 < 2 else torch.zeros(2, 3, 2)
            previous = x[frame - 1, 2:4] if frame % 3 else torch.zeros(2, 3, 2)
            assert torch.equal(y[frame], torch.cat([following, previous, x[frame, 4:]]))
    assert shift_frames(torch.ones(4, 8), 2, -1).shape == (4, 8)


def test_with_the_shift_frames_see_their_neighbours_and_names_stay(monkeypatch):
    monkeypatch.setattr("model.backbones.temporal.DIVISOR", 2)  # its blocks have four channels
    plain, shifted = build_backbone("timm:small", "mean").eval(), build_backbone("timm:small").eval()
    assert shifted.shifted == ["blocks.0.conv1", "blocks.2.conv1", "blocks.3.conv1"]
    assert shifted.state_dict().keys() == plain.state_dict().keys()
    assert [str(m) for m in shifted.modules()] == [str(m) for m in plain.modules()]
    later = CLIPS.clone()
    later[:, :, 3] += 1
    for backbone, sees in ((plain, False), (shifted, True)):
        before, after = backbone(CLIPS), backbone(later)
        assert torch.equal(before[:, :, 2], after[:, :, 2]) != sees
        assert torch.equal(before[:1], backbone(CLIPS[:1])) or torch.allclose(
            before[:1], backbone(CLIPS[:1]), atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:small", "timm:tokens", "torchvision:r3d_tiny"])
def test_rewired_it_is_itself_at_beta_0_and_saves_at_beta_1(name):
    backbone = build_backbone(name).eval()
    before = backbone(CLIPS)
    table = rewire_backbone(backbone, beta=0.0)
    assert sum(row.num_branches for row in table if row.kind == "reversible") >= 2
    assert torch.equal(backbone(CLIPS), before)
    set_beta(backbone, 1.0)
    assert not torch.allclose(backbone(CLIPS), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:small", "timm:tokens", "torchvision:r3d_tiny"])
def test_gradients_of_the_rewired_network_are_those_of_its_recurrence_in_plain_autograd(name):
    backbone = build_backbone(name)
    rewire_backbone(backbone, beta=1.0)
    found = []
    for invert in (False, True):
        for stage in rewired_stages(backbone):
            stage.invert = invert
        backbone.zero_grad()
        torch.manual_seed(3)
        backbone(CLIPS).square().mean().backward()
        found.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-7  # another order of sums


@pytest.mark.slow
def test_a_clip_of_another_length_is_shifted_by_its_own_frames_after_rewiring():
    backbone = build_backbone("timm:small").eval()
    longer = torch.randn(1, 3, 6, SIZE, SIZE)
    want = backbone(longer)
    rewire_backbone(backbone, beta=0.0)
    backbone(CLIPS)
    assert torch.allclose(backbone(longer), want, atol=1e-6)
    twin = copy.deepcopy(backbone)
    assert torch.allclose(twin(longer), want, atol=1e-6)
    assert twin.frame_count is not backbone.frame_count and twin.frame_count.frames == 6


def test_tokens_come_without_the_class_token_and_a_clips_means_over_space_keep_time():
    images = build_backbone("timm:tokens", "mean").eval()
    y = images(CLIPS)
    assert y.shape == (2, 8, 4, 4, 1)
    assert torch.allclose(images.pool(y)[0, :, 1], images.network(CLIPS[:1, :, 1])[0, 1:].mean(0), atol=1e-6)
    clips = build_backbone("torchvision:r3d_tiny").eval()
    maps = clips.network.layer1(clips.network.stem(CLIPS))
    assert torch.allclose(clips.pool(clips(CLIPS)), maps.mean((3, 4)), atol=1e-6)
    assert clips.made_for == "16 frames of 16x16 pixels" and clips.head == ("fc",)


def test_layouts_of_features():
    described = Described(nn.Identity(), None, (8, 8), prefix_tokens=1)
    maps = torch.randn(2, 5, 3, 4)
    assert torch.equal(image_maps(maps.movedim(1, 3), 5, described), maps)
    assert image_maps(maps[:, :, 0, 0], 5, described).shape == (2, 5, 1, 1)
    assert number_of_features(maps, (7, 5)) == 5 and number_of_features(torch.zeros(2, 9, 5), ()) == 5
    clip = torch.randn(2, 5, 4, 3, 1)  # (n, D, t, places, 1)
    slow = torch.cat([torch.zeros(2, 1, 5), clip[..., 0].flatten(2).transpose(1, 2)], 1)
    fast = torch.cat([torch.zeros(2, 1, 5), clip[..., 0].transpose(2, 3).flatten(2).transpose(1, 2)], 1)
    for order, tokens in (("slow", slow), ("fast", fast)):
        of_clips = Described(nn.Identity(), 4, (8, 8), prefix_tokens=1, step_frames=2, steps_order=order)
        assert torch.equal(clip_maps(tokens, 5, of_clips, frames=8), clip)
    assert clip_maps(slow, 5, Described(nn.Identity(), 4, (8, 8)), frames=4).shape == (2, 5, 1, 13, 1)
    for wrong in (maps.movedim(1, 2), torch.zeros(2, 6)):
        with pytest.raises(ValueError, match="want maps, tokens or vectors of features"):
            image_maps(wrong, 5, described)


@pytest.mark.slow
def test_bf16_weights_beside_float32_statistics_train():
    encoder = ClipEncoder(EncoderSettings(backbone="timm:small", train_batch_norm=True)).train()
    for parameter in encoder.parameters():
        parameter.data = parameter.data.bfloat16()
    y = encoder((CLIPS * 50 + 128).clamp(0, 255).byte())
    y.float().square().mean().backward()
    norm = encoder.backbone.network.stem[1]
    assert norm.running_mean.dtype == torch.float32 and norm.running_mean.abs().max() > 0
    assert y.dtype == torch.bfloat16 and isinstance(norm, nn.BatchNorm2d)
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in encoder.parameters())
    assert isinstance(norm.weight, nn.Parameter)


@pytest.mark.slow
def test_on_the_meta_device_it_has_the_same_names_and_shapes():
    own = build_backbone("timm:small").state_dict()
    with torch.device("meta"):
        encoder = ClipEncoder(EncoderSettings(backbone="timm:small"))
    there = encoder.backbone.state_dict()
    assert {n: t.shape for n, t in there.items()} == {n: t.shape for n, t in own.items()}
    assert all(tensor.is_meta for tensor in there.values())


@pytest.mark.slow
def test_a_file_of_weights_fits_by_the_librarys_names_and_the_classifier_is_left_out(tmp_path, capsys):
    weights = {name: torch.full_like(t, 2) for name, t in fake_libraries.Images().state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    chosen = settings_of(backbone="timm:small", weights=str(tmp_path / "w.safetensors"))
    network = build_network(chosen, 3)
    assert all((p == 2).all() for p in network.encoder.backbone.parameters())
    assert "left out the classifier's fc.bias, fc.weight" in capsys.readouterr().err
    for change, message in (
        ({"blocks.9.w": torch.ones(1)}, "no place"),
        ({"fc2.w": torch.ones(1)}, "no place"),
    ):
        save_file({**weights, **change}, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=message):
            build_network(chosen, 3)
    save_file({n: t for n, t in weights.items() if n != "stem.0.weight"}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="stem.0.weight .* is missing"):
        build_network(chosen, 3)
    assert load_file(tmp_path / "w.safetensors").keys() == weights.keys() - {"stem.0.weight"}


@pytest.mark.slow
def test_pretrained_weights_are_the_librarys_and_said_aloud(capsys):
    network = build_network(settings_of(backbone="timm:small", weights="pretrained"), 3)
    assert all((p == 0.25).all() for p in network.encoder.backbone.parameters())
    assert "pretrained tensors of timm:small, from its library" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"weights: pretrained is for timm:.* r2plus1d_18 is ours"):
        settings_of(backbone="r2plus1d_18", weights="pretrained")


def test_without_a_network_to_download_by_pretrained_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(sys.modules["timm"], "create_model", offline)
    with pytest.raises(
        ValueError, match="no network to download them by .no route to host.; give a file"
    ) as error:
        build_network(settings_of(backbone="timm:small", weights="pretrained"), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nosuch", r"timm:nosuch: timm has no such network \(Unknown model"),
        ("timm:plain", "timm:plain: no residual block is found .* encoder.temporal to mean"),
        ("entry:nosuch", "no installed package has it"),
    ],
)
def test_what_is_not_there_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(name)
    assert "\n" not in str(error.value)


def test_a_network_without_residual_blocks_wants_reversible_false():
    with pytest.raises(
        ValueError, match="encoder.reversible: timm:plain cannot be reversed .*set it to false"
    ):
        ClipEncoder(EncoderSettings(backbone="timm:plain", temporal="mean"))
    plain = {"backbone": "timm:plain", "temporal": "mean", "reversible": False}
    ClipEncoder(EncoderSettings(**plain))
    with pytest.raises(
        ValueError, match="encoder.frozen_stages: timm:plain does not name its stages; set it to -1"
    ):
        ClipEncoder(EncoderSettings(**plain, frozen_stages=0))


def test_a_library_that_cannot_be_imported_is_named_with_its_error(monkeypatch):
    def broken(name):
        raise RuntimeError("built for another\ntorch")

    monkeypatch.setattr("model.backbones.libraries.importlib.import_module", broken)
    with pytest.raises(ValueError, match="timm cannot be imported .*built for another torch") as error:
        build_backbone("timm:small")
    assert "\n" not in str(error.value)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("timm:a", "timm"), ("torchvision:a", "torchvision"), ("hf:a", "transformers")):
        command = rf'pip install -c constraints.txt "leantad\[{package}\]"'
        with pytest.raises(
            ValueError, match=rf"{name}: {package} is not installed \(in the check.*: {command}\)"
        ):
            build_backbone(name)


@pytest.mark.slow
def test_a_clip_of_a_size_that_the_network_refuses_is_one_line():
    backbone = build_backbone("timm:tokens")
    with pytest.raises(
        ValueError, match="timm:tokens: does not take clips like these .* made for 16x16 pixels"
    ):
        backbone(torch.zeros(1, 3, 2, 24, 24))
    backbone(CLIPS)


def test_names_are_checked_by_their_form_alone(monkeypatch):
    for name in (
        "timm:resnet50.a1_in1k",
        "torchvision:r3d_18",
        "hf:MCG-NJU/videomae-base",
        "hf:/a/b",
        "entry:x",
    ):
        assert is_foreign_name(name) and EncoderSettings(backbone=name).backbone == name
    for name in (
        "timm:hf-hub:a/b",
        "timm:local-dir:x",
        "timm:",
        "pip:x",
        "entry:a/b.py",
        "file:x.py",
        "hf:http://x",
    ):
        with pytest.raises(ValueError, match="backbone"):
            EncoderSettings(backbone=name)
    assert named_folder("hf:/etc") == "/etc" and named_folder("hf:../x") == "../x"
    assert named_folder("hf:MCG-NJU/videomae-base") is None and named_folder("timm:resnet50") is None


# ----------------------------------------------------------------------------------- entries

PACKAGE = """
import torch
class Mine(torch.nn.Module):
    mean, std, input_shape = (0.1, 0.2, 0.3), (1, 1, 1), (4, 8, 8)
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 6, 3, padding=1)
    def forward(self, x):
        return x.new_zeros(()) + self.conv(x)
"""


def package(folder, code: str = PACKAGE) -> None:
    """A distribution with an entry point, as pip would unpack it; its name is the folder's."""
    info = folder / f"{folder.name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[leantad.backbones]\nmine = its_code:Mine\n")
    (folder / "its_code.py").write_text(code)


@pytest.fixture
def _forget_the_package():
    yield
    sys.modules.pop("its_code", None)


@pytest.mark.usefixtures("_forget_the_package")
def test_an_installed_package_offers_its_network_by_an_entry_point(tmp_path, monkeypatch):
    package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    backbone = build_backbone("entry:mine")
    assert backbone(torch.zeros(1, 3, 4, 8, 8)).shape == (1, 6, 4, 8, 8)
    assert backbone.mean == (0.1, 0.2, 0.3) and "its own" in backbone.describe()
    package(tmp_path / "other")
    monkeypatch.syspath_prepend(tmp_path / "other")
    with pytest.raises(ValueError, match="entry:mine: .* are both of this name"):
        build_backbone("entry:mine")


@pytest.mark.usefixtures("_forget_the_package")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def Mine():\n    raise OSError('no weights')", "its_code:Mine cannot be built .*no weights"),
        ("Mine = dict", "its_code:Mine returned a dict, want a torch.nn.Module"),
    ],
)
def test_an_entry_point_that_gives_no_network_is_one_line(tmp_path, monkeypatch, code, message):
    package(tmp_path / "site", code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ValueError, match=f"entry:mine: {message}") as error:
        build_backbone("entry:mine")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_forget_the_package")
def test_a_package_in_the_working_folder_is_never_imported(tmp_path, monkeypatch):
    package(tmp_path, "raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend("")  # as python -m has it
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no installed package has it"):
        build_backbone("entry:mine")


@pytest.mark.slow
def test_plan_counts_a_step_of_it_on_fake_tensors():
    from tools.planning.step import fake_step

    small = {"num_steps": 8, "neck_dim": 8, "fc_dim": 8, "head_dim": 8, "roi_bins": 4}
    data = {"shards": "x", "num_clips": 4, "clip_frames": 4, "crop": SIZE, "resize": SIZE}
    peaks = []
    for reversible in (True, False):
        encoder = {
            "backbone": "timm:small",
            "reversible": reversible,
            "clips_per_forward": 4,
            "clip_ratio": 1.0,
        }
        values = {"data": data, "encoder": encoder, "detector": small, "optimizer": {"batch_size": 1}}
        peaks.append(fake_step(settings_from(values), 3))
    assert peaks[0].trainable == peaks[1].trainable > 0
    assert peaks[0].total < peaks[1].total
