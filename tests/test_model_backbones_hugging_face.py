"""Backbones of Hugging Face, from folders as save_pretrained writes them: images, clips; no code runs."""

from __future__ import annotations

import json

import pytest
import torch

from model.backbones import build_backbone
from model.rewire_backbone import rewire_backbone

CLIPS = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def save_pretrained(folder, config: dict) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY, **config}))
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}"


@pytest.mark.slow
def test_a_folder_of_hugging_face_is_a_backbone_and_its_code_never_runs(tmp_path):
    own_code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    name = save_pretrained(tmp_path / "vit", {"model_type": "vit", **own_code})
    (tmp_path / "vit" / "evil.py").write_text("raise SystemExit('was run')\n")
    backbone = build_backbone(name).eval()
    y = backbone(CLIPS)
    assert y.shape == (2, 16, 4, 4, 1) and backbone.std == (0.25, 0.25, 0.25)
    assert "those of its preprocessor_config.json" in backbone.describe()
    rewire_backbone(backbone, beta=0.0)
    assert torch.equal(backbone(CLIPS), y)


@pytest.mark.slow
def test_a_video_network_of_hugging_face_keeps_its_steps_in_time(tmp_path):
    video = {"model_type": "videomae", "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
    backbone = build_backbone(save_pretrained(tmp_path / "videomae", video)).eval()
    before = backbone(CLIPS)
    assert before.shape == (2, 16, 2, 4, 1)
    tokens = backbone.network(pixel_values=CLIPS.transpose(1, 2)).last_hidden_state
    assert torch.allclose(backbone.pool(before)[:, :, 1], tokens[:, 4:].mean(1), atol=1e-6)
    rewire_backbone(backbone, beta=0.0)
    assert torch.equal(backbone(CLIPS), before)
    with pytest.raises(ValueError, match="does not take clips like these .* 4 frames of 16x16 pixels"):
        backbone(torch.zeros(1, 3, 6, 16, 16))


def changed_steps(backbone, frames: int) -> list[float]:
    """By how much the features of each step change if the second half of a clip does."""
    before = torch.zeros(1, 3, frames, 16, 16)
    after = before.clone()
    after[:, :, frames // 2 :] = 1
    with torch.no_grad():
        difference = backbone.pool(backbone(after)) - backbone.pool(backbone(before))
    return difference[0].norm(dim=0).tolist()


def see_one_place_alone(backbone, *ends: str) -> None:
    """Let the layers hand nothing on: each token is then that of its own place and time."""
    for name, parameter in backbone.named_parameters():
        if name.endswith(ends):
            torch.nn.init.zeros_(parameter)


@pytest.mark.slow
def test_timesformer_takes_clips_of_the_frames_it_was_made_for_alone(tmp_path):
    name = save_pretrained(tmp_path / "timesformer", {"model_type": "timesformer", "num_frames": 4})
    backbone = build_backbone(name).eval()
    see_one_place_alone(backbone, "dense.weight", "dense.bias")
    first, second, third, fourth = changed_steps(backbone, 4)
    assert first == second == 0 and min(third, fourth) > 0.01
    for frames in (2, 8):
        message = f"^data.clip_frames: got {frames}, want 4: {name} was made for that many"
        with pytest.raises(ValueError, match=message):
            backbone(torch.zeros(1, 3, frames, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [4, 8, 16])
def test_v_jepa_2_has_a_step_every_two_frames_of_any_clip(tmp_path, frames):
    video = {"model_type": "vjepa2", "frames_per_clip": 8, "tubelet_size": 2, "crop_size": 16, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    backbone = build_backbone(save_pretrained(tmp_path / "vjepa2", {**video, **predictor})).eval()
    see_one_place_alone(backbone, "attention.proj.weight", "attention.proj.bias", "fc2.weight", "fc2.bias")
    steps = changed_steps(backbone, frames)
    assert len(steps) == frames // 2
    assert max(steps[: frames // 4]) == 0 and min(steps[frames // 4 :]) > 0.01
    with pytest.raises(ValueError, match="^data.crop: got 32x32, want 16x16: hf:.*mixes up the places"):
        backbone(torch.zeros(1, 3, frames, 32, 32))


@pytest.mark.slow
def test_a_name_whose_description_is_not_here_is_one_line():
    with pytest.raises(ValueError, match="its config.json is not .* hf download nobody/none") as error:
        build_backbone("hf:nobody/none")
    assert "\n" not in str(error.value)
