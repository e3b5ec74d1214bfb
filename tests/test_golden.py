"""tests/golden.py over the real fixtures; it notices what is wrong, missing, or of no kind that it knows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import etad_departures
import golden
import pytest
from golden_efficientnet import WEIGHTS
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = ("actionformer_thumos_i3d", "actionformer_anet_tsp")
OPENTAD = ("opentad_actionformer_thumos_i3d", "opentad_actionformer_anet_tsp")
RE2TAL = ("opentad_re2tal_thumos", "opentad_re2tal_anet")
ETAD = ("etad_quarter", pytest.param("etad_full", marks=[pytest.mark.ci, pytest.mark.slow]))
SMALLEST = "opentad_re2tal_anet"


@pytest.mark.slow
@pytest.mark.parametrize("name", (*AUTHORS, *OPENTAD, *RE2TAL, *ETAD))
def test_a_detector_computes_what_the_references_do(name, shared_real: Path):
    folder = shared_real / "golden" / name
    result = golden.run(name, folder, golden.runner_of(folder))
    assert result.passed, result.text


@pytest.mark.ci
@pytest.mark.slow
def test_departures_from_etad_are_measured_on_equal_inputs(shared_real, capsys, monkeypatch):
    monkeypatch.setattr(etad_departures, "DRAWS", 20)
    monkeypatch.setattr(etad_departures, "of_size", lambda: iter(()))
    assert etad_departures.main([str(shared_real / "golden" / "etad_quarter")]) == 0
    printed = dict(
        line.split(": value x ") for line in capsys.readouterr().out.splitlines() if "value" in line
    )
    beta = printed["offsets: smooth L1 with beta 0.1, not 1"]
    assert 5 < float(beta.split(",")[0]) < 9  # as docs/etad.md says


@pytest.mark.ci
@pytest.mark.slow
def test_an_image_network_of_timm_computes_what_its_publisher_did(shared_real, with_timm, tmp_path):
    for name in (golden.EFFICIENTNET, WEIGHTS):
        (tmp_path / name).symlink_to(shared_real / "weights" / name)
    command = [sys.executable, str(ROOT / "tests" / "golden.py"), str(tmp_path)]
    done = subprocess.run(command, env=with_timm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("OK      efficientnet_lite0: 3 values")


def copied(source: Path, folder: Path) -> Path:
    """A copy of a fixture that can be changed."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def lines(root: Path, capsys) -> tuple[int, list[str]]:
    code = golden.main([str(root)])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_a_changed_weight_or_output_fails_and_is_named(shared_real, tmp_path, capsys):
    weights = copied(shared_real / "golden" / SMALLEST, tmp_path / "all" / "weight") / "weights.safetensors"
    tensors = load_file(weights)
    tensors["projection.stem.0.mlp.0.weight"] *= 1.001
    save_file(tensors, weights)
    outputs = copied(shared_real / "golden" / SMALLEST, tmp_path / "all" / "output") / "data.safetensors"
    tensors = load_file(outputs)
    tensors["train.cls_logits.3"][0, 0] += 1e-3
    save_file(tensors, outputs)
    code, printed = lines(tmp_path / "all", capsys)
    assert code == 1 and [line.split()[:2] for line in printed] == [
        ["FAILED", "output:"],
        ["FAILED", "weight:"],
    ]
    assert "train.cls_logits.3" in printed[0] and "1 too large" in printed[0]


def test_what_cannot_be_run_is_a_line_and_the_others_go_on(shared_real, tmp_path, capsys):
    other = copied(shared_real / "golden" / SMALLEST, tmp_path / "other")
    (other / "meta.json").write_text(json.dumps({"config": {"type": "TriDet"}}))
    setting = copied(shared_real / "golden" / SMALLEST, tmp_path / "setting")
    meta = json.loads((setting / "meta.json").read_text())
    meta["config"]["neck"]["type"] = "FPN"
    (setting / "meta.json").write_text(json.dumps(meta))
    broken = copied(shared_real / "golden" / SMALLEST, tmp_path / "broken")
    (broken / "meta.json").write_text("{")
    code, printed = lines(tmp_path, capsys)
    assert code == 1 and len(printed) == 3 and all(line.startswith("FAILED") for line in printed)
    assert "cannot be read" in printed[0] and "no such detector yet: TriDet" in printed[1]
    assert "'FPN', ours is always 'FPNIdentity'" in printed[2]


def test_a_folder_without_fixtures_fails(tmp_path, capsys):
    assert golden.main([str(tmp_path)]) == 1 and "no fixture" in capsys.readouterr().err
    assert golden.main([]) == 2
