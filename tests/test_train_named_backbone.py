"""A run whose backbone is another library's (a stand-in): trains, resumes exactly, evaluates, is exported."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import fake_libraries
import pytest
import torch
from commands import call
from safetensors.torch import load_file, save_file
from tiny_run import make_shards_of, run

from tools.bench_memory import main as bench_memory
from tools.bench_rewire import main as bench_rewire
from tools.convert_weights import main as convert_weights
from tools.export import main as export
from train.inference import load_trained
from train.run import Run

NAME = "timm:small"
BETA = {"encoder__beta__schedule": "linear", "encoder__beta__start": 0.0}


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    fake_libraries.install(monkeypatch)


def offline(name: str, *, pretrained: bool, **options: object):
    """timm where nothing can be downloaded."""
    assert not pretrained, "downloads again"
    return fake_libraries.create_model(name, pretrained=False, **options)


def interrupted(method, *, at: int):
    """The method, which is as if somebody pressed Ctrl-C when it is called with this step."""

    def called(self: Run, step: int) -> None:
        method(self, step)
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    return called


@pytest.mark.ci
@pytest.mark.slow
def test_it_trains_with_a_schedule_of_beta_resumes_exactly_and_is_exported(tmp_path, monkeypatch):
    shards = make_shards_of(tmp_path)
    chosen = {"encoder__backbone": NAME, "encoder__weights": "pretrained", "run__eval_every": 1, **BETA}
    whole = run(shards, tmp_path / "whole", quiet=False, **chosen)
    assert whole.exit_code == 0, whole.output
    assert f"{NAME}: D = 8, sees frame by frame, 3 blocks with a shift" in whole.stderr
    assert "here 4 frames of 16x16" in whole.stderr
    with monkeypatch.context() as patch:  # Ctrl-C in the third step
        patch.setattr(Run, "set_beta", interrupted(Run.set_beta, at=2))
        run(shards, tmp_path / "halves", **chosen)
    monkeypatch.setattr(sys.modules["timm"], "create_model", offline)
    resumed = run(shards, tmp_path / "halves", "--resume", **chosen)
    assert resumed.exit_code == 0, resumed.output
    folders = [(tmp_path / name / "checkpoints" / "last").resolve() for name in ("whole", "halves")]
    weights, again = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    assert f"backbone: {NAME}" in (folders[0] / "settings.yaml").read_text()
    loaded = load_trained(tmp_path / "whole")
    assert any(name.startswith("encoder.backbone.network.blocks.0.conv1.") for name in weights)
    model = tmp_path / "mine.leantad"
    assert call(export, tmp_path / "whole", model).exit_code == 0
    clips = torch.randint(0, 256, (1, 8, 3, 4, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        a, b = (n.network.eval().encode(clips, kept=None) for n in (loaded, load_trained(model)))
    assert torch.equal(a, b)


@pytest.mark.slow
def test_the_tools_take_its_name(tmp_path):
    save_file(fake_libraries.Images().state_dict(), tmp_path / "theirs.safetensors")
    converted = call(
        convert_weights,
        tmp_path / "theirs.safetensors",
        "--backbone",
        NAME,
        "--out",
        tmp_path / "w.safetensors",
    )
    assert converted.exit_code == 0, converted.output
    assert (
        "timm:small from library: " in converted.output
        and "2 unexpected, left out: fc.bias" in converted.output
    )
    assert "fc.weight" not in load_file(tmp_path / "w.safetensors")
    small = ["--backbone", NAME, "--clip", "3x4x16x16"]
    memory = call(bench_memory, *small, "--ratio", "0.5", "--clips", "4")
    assert memory.exit_code == 0 and memory.output.count("reversible") == 1, memory.output
    rewire = call(bench_rewire, *small, "--repeats", "1", "--what", "time")
    assert rewire.exit_code == 0 and rewire.output.count(NAME) == 1, rewire.output
    for wrong in ("resnet50", "timm:"):
        refused = call(bench_memory, "--backbone", wrong)
        assert refused.exit_code == 2 and "timm:NAME" in refused.stderr


@pytest.mark.slow
def test_a_folder_of_one_machine_is_not_exported(tmp_path):
    from train.model_file import _check_backbone
    from train.settings import settings_from

    settings = settings_from({"data": {"shards": "x"}, "encoder": {"backbone": f"hf:{Path(tmp_path)}"}})
    with pytest.raises(ValueError, match="encoder.backbone: .* is a folder of one machine"):
        _check_backbone(settings)
