"""extract-features: what a frozen run would see, resumed where it was stopped; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import fake_libraries
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_run import SMALL, make_shards_of
from untrained_run import checkpoint, write_videos

from pipeline.dataset import Dataset
from pipeline.features.dataset import FeatureDataset
from pipeline.loader import Loader
from pipeline.settings import DataSettings
from tools.cli import main
from tools.features.extraction import ClipGrid, FeatureEncoder, clip_grid
from tools.features.parts import Parts
from train.build_network import build_network
from train.inference import load_trained
from train.settings import load_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards_of(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("run"))


def extract(run_folder, shards, out, *options):
    arguments = ["--checkpoint", str(run_folder), "--shards", str(shards), "--out", str(out), *options]
    return CliRunner().invoke(main, ["extract-features", *arguments])


@pytest.fixture(scope="module")
def features(run_folder, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "f.h5"
    done = extract(run_folder, shards, out, "--precision", "float32", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["videos"] == 6 and document["steps_per_window"] == 8
    assert [path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")] == ["f.h5"]
    return out


def windows_of(source, data):
    """{(key, window): inputs} of the training subset, in evaluation mode."""
    options = {"batch_size": 1, "seed": 0, "rank": 0, "world_size": 1, "device": "cpu", "training": False}
    loader = Loader(source, data, subset="training", remark=print, **options)
    return {(batch.keys[0], tuple(batch.windows[0].tolist())): batch.inputs for batch in loader}


@pytest.mark.slow
def test_features_are_what_the_encoder_of_the_run_makes_of_each_window(features, shards, run_folder):
    trained = load_trained(run_folder)
    trained.network.eval()
    dataset = FeatureDataset.open(features)
    data = trained.settings.data
    clips = windows_of(Dataset.open(shards), data)
    stored = windows_of(dataset, data.model_copy(update={"num_features": dataset.num_features}))
    assert clips.keys() == stored.keys() and len(clips) > 4
    on_grid = [place for place in clips if abs(place[1][0] / 0.75 - round(place[1][0] / 0.75)) < 1e-6]
    assert len(on_grid) >= 4
    for place in on_grid:
        with torch.no_grad():
            want = trained.network.encode(clips[place], kept=None)
        torch.testing.assert_close(stored[place], want, atol=1e-5, rtol=1e-5)  # chunks of other sizes


@pytest.mark.slow
def test_a_stopped_extraction_goes_on_and_gives_the_same_file(
    features, shards, run_folder, tmp_path, monkeypatch
):
    out, add, done = tmp_path / "f.h5", Parts.add, []

    def failing(self, video, array):
        if len(done) == 2:
            raise ValueError("the disk is full")
        done.append(video.key)
        add(self, video, array)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "add", failing)
        assert extract(run_folder, shards, out, "--precision", "float32").exit_code == 2
    assert not out.exists() and (tmp_path / "f.h5.parts").is_dir()
    other = extract(run_folder, shards, out, "--precision", "float16")
    assert other.exit_code == 2 and "begun with other settings or weights" in other.stderr
    again = extract(run_folder, shards, out, "--precision", "float32")
    assert again.exit_code == 0 and "2 of 6 videos are encoded already" in again.stderr
    first, second = FeatureDataset.open(features), FeatureDataset.open(out)
    assert first.videos == second.videos and first.packing == second.packing
    for key, video in first.videos.items():
        both = [each.features(key, 0, video.num_steps) for each in (first, second)]
        assert np.array_equal(*both)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "want --checkpoint"),
        (["--recipe", "demo", "--checkpoint", "x"], "and not both"),
        (["--recipe", "demo"], "encoder.weights: missing, features of random weights say nothing"),
        (["--recipe", "demo", "--set", "data.num_features=3"], "trains on features and has no encoder"),
    ],
)
def test_no_encoder_is_a_line_that_says_how_to_name_one(tmp_path, arguments, message):
    result = CliRunner().invoke(main, ["extract-features", *arguments, "--out", str(tmp_path / "f.h5")])
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize(
    ("duration", "count", "windows"), [(12.0, 4, 1), (30.0, 4, 1), (75.0, 10, 3), (61.0, 8, 2)]
)
def test_a_long_video_has_a_clip_every_step_and_a_short_one_as_many_as_a_window(duration, count, windows):
    grid = clip_grid(duration, DataSettings(shards="", num_clips=4, window_seconds=30), 1)
    assert (grid.count, len(grid.windows)) == (count, windows)
    assert grid.step == (7.5 if duration > 30 else duration / 4)
    assert abs(grid.step * grid.count - duration) <= grid.step / 2


@pytest.mark.parametrize("steps", [1, 2, 8, None])
@pytest.mark.parametrize("num_clips", [1, 4])
@pytest.mark.parametrize("duration", [30.5, 37.0, 44.0, 60.0, 61.0, 75.0])
def test_every_feature_whose_middle_lies_in_a_long_video_is_there(duration, num_clips, steps):
    data = DataSettings(shards="", num_clips=num_clips, clip_frames=8, window_seconds=30)
    grid = clip_grid(duration, data, steps)
    step = grid.step / (steps or 8)
    middles = [(number + 0.5) * step for number in range(1000)]
    of_clips = [middles[first : first + (steps or 8)] for first in range(0, 1000, steps or 8)]
    assert grid.count == sum(any(middle <= duration for middle in clip) for clip in of_clips)


@pytest.mark.slow
def test_video_files_are_encoded_as_the_data_set_of_the_run_was(run_folder, tmp_path):
    videos = write_videos(tmp_path)
    (videos / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "new.h5"
    arguments = ["--checkpoint", str(run_folder), "--out", str(out)]
    done = CliRunner().invoke(main, ["extract-features", str(videos), *arguments])
    assert done.exit_code == 1 and "broken.mp4: " in done.stderr, done.output
    dataset = FeatureDataset.open(out)
    assert {key for key, video in dataset.videos.items() if video.num_steps} == {"first", "second"}
    assert dataset.packing["codec"] == "vp9" and dataset.packing["fps"] == 10.0
    first = dataset.videos["first"]
    assert first.duration == pytest.approx(3.2, abs=0.1)
    assert dataset.features("first", 0, first.num_steps).shape == (first.num_steps, dataset.num_features)
    wrong = CliRunner().invoke(main, ["extract-features", str(videos), "--recipe", "demo", "--out", "x.h5"])
    assert wrong.exit_code == 2 and "VIDEO: want --checkpoint with it" in wrong.stderr


def encoder_of(*overrides: str) -> FeatureEncoder:
    sets = [f"{name}={value}" for name, value in SMALL.items()]
    settings = load_settings(Path("demo"), [*sets, "data.shards=unused", *overrides])
    return FeatureEncoder(settings, build_network(settings, 1).eval(), torch.device("cpu"))


@pytest.mark.slow
def test_encoders_that_give_other_features_of_the_same_weights_state_what_differs():
    clips = torch.randint(0, 256, (1, 2, 3, 4, 16, 16), dtype=torch.uint8)
    ways = {
        (0.0, False): [
            ["encoder.reversible=false", "encoder.leapfrog=true"],
            ["encoder.beta.end=0", "encoder.leapfrog=true"],
            ["encoder.frozen=true", "encoder.beta.schedule=linear"],
        ],
        (1.0, False): [[], ["encoder.fixed_point_states=false"], ["encoder.beta.schedule=linear"]],
        (1.0, True): [["encoder.leapfrog=true"]],
        (0.5, True): [["encoder.leapfrog=true", "encoder.beta.end=0.5"]],
    }
    seen: list[torch.Tensor] = []
    for (beta, leapfrog), alike in ways.items():
        encoders = [encoder_of(*overrides) for overrides in alike]
        records = [encoder.made_with({}, "float32") for encoder in encoders]
        assert all(record == records[0] for record in records)
        assert (records[0]["beta"], records[0]["leapfrog"]) == (beta, leapfrog)
        features = [encoder.network.encode(clips, kept=None) for encoder in encoders]
        for same in features[1:]:  # but for the rounding of the states
            torch.testing.assert_close(same, features[0], rtol=1e-4, atol=1e-5)
        assert all((features[0] - other).norm() > 0.1 * other.norm() for other in seen)
        seen.append(features[0])


@pytest.mark.slow
def test_only_networks_for_images_state_how_they_see_motion(monkeypatch):
    fake_libraries.install(monkeypatch)
    for name, temporal, stated in (
        ("timm:small", "shift", "shift"),
        ("timm:small", "mean", "mean"),
        ("torchvision:r3d_tiny", "mean", None),
        ("r2plus1d_tiny", "mean", None),
    ):
        encoder = encoder_of(f"encoder.backbone={name}", f"encoder.temporal={temporal}")
        assert encoder.made_with({}, "float32").get("temporal") == stated


def test_a_short_video_of_a_padded_run_has_the_clips_of_its_own_seconds():
    padded = DataSettings(shards="", num_clips=4, window_seconds=30, pad_short_videos=True)
    assert clip_grid(12.0, padded, 1) == ClipGrid(((0.0, 30.0),), 7.5, 2)
