"""`leantad classify`: labels of real clips by real weights, clips in order, files that cannot be used."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from commands import call
from painted_video import painted_video
from safetensors.torch import save_file

from model.backbones import build_backbone
from pipeline.packing.encoder import encode_video
from tools.classify import main
from tools.prediction.classification import load_classifier

# Clips of J-HMDB, each with what an independent implementation of I3D calls it
CLIPS = {
    "pullup/": "pull ups",
    "golf/Golfswing_golf_f_cm_np1_fr_goo_0.avi": "golf driving",
    "brush_hair/": "brushing hair",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """I3D with fresh weights and a classifier of three classes, in the PyTorch form."""
    torch.manual_seed(0)
    classifier = {
        "logits.conv3d.weight": torch.randn(3, 1024, 1, 1, 1),
        "logits.conv3d.bias": torch.randn(3),
    }
    path = tmp_path_factory.mktemp("weights") / "i3d.safetensors"
    save_file(build_backbone("i3d").state_dict() | classifier, path)
    return path


invoke = partial(call, main)


def cut(shared_real: Path, beginning: str, out: Path) -> Path:
    """The first such clip of the stitched videos, by itself, nearly without loss."""
    folder = shared_real / "footage" / "jhmdb_stitched"
    with (folder / "spec.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["clip"].startswith(beginning))
    (path,) = (folder / "videos").glob(f"{row['video']}.*")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)]
    out.write_bytes(encode_video(iter(frames[int(row["first_frame"]) : int(row["end_frame"])]), fps=30))
    return out


@pytest.mark.ci
@pytest.mark.slow
def test_real_weights_name_what_real_clips_show(shared_real, tmp_path):
    folder = shared_real / "weights"
    files = {label: cut(shared_real, begin, tmp_path / f"{label}.mp4") for begin, label in CLIPS.items()}
    labels = ("--labels", folder / "i3d_kinetics400_labels.txt")
    result = invoke(
        *files.values(), "--weights", folder / "i3d_kinetics400_rgb.safetensors", *labels, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["videos"]
    assert {name: video["overall"][0]["label"] for name, video in found.items()} == {
        n: n for n in CLIPS.values()
    }


@pytest.mark.ci
@pytest.mark.slow
def test_clips_cover_the_video_in_order_and_their_scores_are_probabilities(weights, tmp_path):
    (tmp_path / "a.mp4").write_bytes(
        painted_video(40, size=(64, 48), codec="libx264", container="mp4", fps=25)
    )
    result = invoke(tmp_path / "a.mp4", "--weights", weights, "--frames", 16, "--json")
    assert result.exit_code == 0, result.output
    (video,) = json.loads(result.stdout)["videos"].values()
    spans = [(clip["start"], clip["end"]) for clip in video["clips"]]
    assert spans == [
        (0, 0.64),
        (0.64, 1.28),
        (0.96, 1.6),
    ]  # 40 frames at 25 fps; the last ends with the video
    for clip in [*video["clips"], {"labels": video["overall"]}]:
        scores = [item["score"] for item in clip["labels"]]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-5)
    assert "does not name its classes" in result.stderr and "class " in video["overall"][0]["label"]


@pytest.mark.slow
def test_scores_are_those_of_the_frames_themselves(weights):
    """Pixels into the network by hand: -1..1, pooled over space, neighbours in time, then the linear map."""
    classifier = load_classifier(weights, None, torch.device("cpu"))
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 24, 64, 64), dtype=np.uint8))
    with torch.no_grad():
        features = classifier.backbone(clips.float() / 127.5 - 1).mean((3, 4))[0]  # (D, 3)
        pairs = [(features[:, i] + features[:, i + 1]) / 2 for i in range(2)]
        scores = torch.stack([classifier.weight @ pair + classifier.bias for pair in pairs]).mean(0)
    # the same numbers in another order of sums
    assert torch.allclose(classifier.probabilities(clips)[0], scores.softmax(0), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("converted", "no classifier in it, want the file as it was published"),
        ("another", "not I3D's weights"),
        ("labels", "got 2 names, want 3"),
        ("no labels", "no such file"),
        ("no video", "no such file or folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(what, message, weights, tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(painted_video(10, size=(48, 48), codec="libx264", container="mp4", fps=25))
    path, options = weights, []
    if what == "converted":
        path = tmp_path / "converted.safetensors"
        save_file(build_backbone("i3d").state_dict(), path)
    elif what == "another":
        path = tmp_path / "another.safetensors"
        save_file(build_backbone("r2plus1d_tiny").state_dict(), path)
    elif what == "labels":
        (tmp_path / "labels.txt").write_text("run\njump\n\n")
    elif what == "no video":
        video = tmp_path / "b.mp4"
    if "labels" in what:
        options = ["--labels", tmp_path / ("labels.txt" if what == "labels" else "none.txt")]
    result = invoke(video, "--weights", path, *options)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_file_that_cannot_be_used_is_named_and_the_others_go_on(weights, tmp_path):
    (tmp_path / "good.mp4").write_bytes(
        painted_video(8, size=(48, 48), codec="libx264", container="mp4", fps=25)
    )
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    result = invoke(tmp_path, "--weights", weights)
    assert result.exit_code == 1 and "bad.mp4: " in result.stderr and "good: class " in result.stdout
    assert invoke(tmp_path / "bad.mp4", "--weights", weights).exit_code == 2
