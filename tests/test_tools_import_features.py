"""import-features: every kind of file, times and layout as stated or guessed aloud, what is missing named."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.features.dataset import FeatureDataset
from tools.cli import main
from tools.features.foreign import ForeignFile, find_features
from tools.features.importing import Timing, guess_layout

WIDTH, STRIDE, FPS = 6, 4, 30
STEPS = {"a": 75, "b": 30, "c": 90}  # 10, 4, 12 s
TIMES = ["--stride", str(STRIDE), "--fps", str(FPS)]


def features_of(name: str) -> np.ndarray:
    return np.random.default_rng(len(name) + STEPS[name]).normal(size=(STEPS[name], WIDTH)).astype(np.float32)


def write_csv(path, array):
    header = ",".join(f"f{number}" for number in range(array.shape[1]))
    np.savetxt(path, array, delimiter=",", header=header, comments="")


WRITERS = {
    "npy": lambda path, array: np.save(path, array),
    "npz": lambda path, array: np.savez(path, feats=array, fps=np.array(30.0)),
    "pt": lambda path, array: torch.save(torch.from_numpy(array), path),
    "csv": write_csv,
}


def write_features(folder, kind, *, change=lambda array: array, names=STEPS):
    folder.mkdir()
    if kind == "h5":
        with h5py.File(folder / "all.h5", "w") as file:
            for number, name in enumerate(names):
                place = f"{name}/c3d_features" if number else name
                file[place] = change(features_of(name))
        return folder / "all.h5"
    for name in names:
        WRITERS[kind](folder / f"v_{name}.{kind}", change(features_of(name)))
    return folder


@pytest.fixture
def annotations(tmp_path):
    videos = {
        name: {
            "subset": "training",
            "duration": count * STRIDE / FPS,
            "annotations": [{"segment": [0.5, 2.0], "label": "jump"}],
        }
        for name, count in STEPS.items()
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"database": videos}))
    return path


def imported(features, annotations, out, *options):
    arguments = ["import-features", str(features), str(annotations), "--out", str(out), *options]
    return CliRunner().invoke(main, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "csv", "h5"])
def test_each_kind_of_file_gives_the_same_features(tmp_path, annotations, kind):
    folder = write_features(tmp_path / "features", kind)
    result = imported(folder, annotations, tmp_path / "f.h5", *TIMES, "--precision", "float32")
    assert result.exit_code == 0, result.output
    assert "layout, guessed: time x channels; a (75, 6) has 75 features of width 6" in result.stdout
    dataset = FeatureDataset.open(tmp_path / "f.h5")
    for name, count in STEPS.items():
        video = dataset.videos[name]
        assert (video.num_steps, video.first, video.step) == (count, 2 / 30, 4 / 30)
        np.testing.assert_allclose(dataset.features(name, 0, count), features_of(name), rtol=1e-6)
        assert [action.label for action in video.actions] == ["jump"]


@pytest.mark.parametrize(
    ("header", "encoding"),
    [("0,1,2\r\n", "utf-8"), ("", "utf-8-sig"), ("f0,f1,f2\n", "utf-8-sig"), ("", "utf-8")],
)
def test_no_feature_of_a_table_is_lost_or_made_up_by_its_first_line(tmp_path, header, encoding):
    (tmp_path / "a.csv").write_text(f"{header}0.0,1.0,2.0\n3,4,5\n", encoding=encoding)
    assert ForeignFile(tmp_path / "a.csv").read().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_table_of_one_line_of_numbers_is_one_feature(tmp_path):
    (tmp_path / "a.csv").write_text("0,1,2\n")
    assert ForeignFile(tmp_path / "a.csv").read().tolist() == [[0, 1, 2]]


def test_channels_may_come_first_and_further_axes_of_one_go(tmp_path, annotations):
    folder = write_features(tmp_path / "features", "npy", change=lambda array: array.T[None, :, :, None])
    result = imported(folder, annotations, tmp_path / "f.h5", *TIMES, "--clip-frames", "16", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["layout"] == "ct"
    dataset = FeatureDataset.open(tmp_path / "f.h5")
    assert dataset.videos["b"].first == pytest.approx(8 / 30)  # as ActionFormer: half a clip
    assert dataset.packing == {
        "made_by": "import-features",
        "precision": "float16",
        "num_features": WIDTH,
        "stride_frames": 4.0,
        "fps": 30.0,
        "clip_frames": 16.0,
        "offset_frames": 0.0,
    }
    np.testing.assert_allclose(dataset.features("b", 0, 30), features_of("b"), atol=2e-3)  # float16


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ([], 10.0),  # 75 strides of 4 frames at 30 a second
        (["--clip-frames", "16"], 10.4),  # the last 16 of 312 frames begin with number 296
        (["--clip-frames", "16", "--offset", "6"], 10.6),
        (["--clip-frames", "2"], 10.0),
        (["--offset", "-2"], 10.0),
    ],
)
def test_a_video_of_no_stated_duration_ends_with_the_frames_of_its_last_feature(tmp_path, options, seconds):
    folder = write_features(tmp_path / "features", "npy", names=["a", "b"])
    (tmp_path / "t.csv").write_text(
        f"video,start,end,label\na,1,99,run\na,{seconds - 0.2},99,jump\nb,1,2,run\n"
    )
    result = imported(folder, tmp_path / "t.csv", tmp_path / "f.h5", *TIMES, *options)
    assert result.exit_code == 0, result.output
    video = FeatureDataset.open(tmp_path / "f.h5").videos["a"]
    assert video.duration == pytest.approx(seconds)
    assert [action.end for action in video.actions] == [video.duration, video.duration]


def test_a_rate_that_is_a_little_off_is_told_by_where_the_features_end(tmp_path, annotations):
    folder = write_features(tmp_path / "features", "npy", names=["a", "c"])
    options = ("--stride", "4", "--clip-frames", "2", "--force")
    result = imported(folder, annotations, tmp_path / "f.h5", *options, "--fps", "25")
    assert "in 2 of 2 videos the features end elsewhere, in a at 1.20 of the video" in result.stderr
    result = imported(folder, annotations, tmp_path / "f.h5", *options, "--fps", "29.97")
    assert "elsewhere" not in result.stderr


def test_rescaled_features_cover_each_video_evenly(tmp_path, annotations):
    folder = write_features(tmp_path / "features", "npy", change=lambda array: array[:10])
    options = ("--rescaled", "--layout", "tc")
    result = imported(folder, annotations, tmp_path / "f.h5", *options)
    assert result.exit_code == 0 and "layout, as --layout says" in result.stdout
    video = FeatureDataset.open(tmp_path / "f.h5").videos["c"]
    assert (video.first, video.step) == (pytest.approx(0.6), pytest.approx(1.2))


def test_videos_without_features_and_files_without_videos_are_named(tmp_path, annotations):
    folder = write_features(tmp_path / "features", "npy", names=["a", "b"])
    np.save(folder / "stranger.npy", features_of("a"))
    result = imported(folder, annotations, tmp_path / "f.h5", *TIMES)
    assert result.exit_code == 1
    assert "no features of 1 annotated video: 'c'" in result.stderr
    assert "left out: 1 file of no annotated video: 'stranger'" in result.stderr
    dataset = FeatureDataset.open(tmp_path / "f.h5")
    assert dataset.videos["c"].reject and list(dataset.ground_truth("training")) == ["a", "b", "c"]


def with_nan(array):
    array[3, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("kind", "change", "options", "message"),
    [
        ("npy", with_nan, TIMES, "video a: 1 features are not finite (NaN or infinity), first number 3"),
        ("npy", lambda array: array * 1e6, TIMES, "does not fit float16; want --precision float32"),
        (
            "npy",
            lambda array: array[:6],
            ["--rescaled"],
            "all features are (6, 6), so that either axis may be",
        ),
        ("npy", lambda array: array[:, : len(array) // 30], TIMES, "neither axis has one length"),
        ("npy", lambda array: array, ["--stride", "8", "--fps", "30"], "would span 2.00 of a video"),
        ("npy", lambda array: array, [], "want --stride and --fps"),
        ("npy", lambda array: array, ["--rescaled", "--stride", "4"], "want no --stride"),
        ("npy", lambda array: array, ["--rescaled", "--clip-frames", "16"], "want no --stride"),
        ("npy", lambda array: array, ["--rescaled", "--offset", "8"], "want no --stride"),
        ("npy", lambda array: array[0], TIMES, "got an array (6,), want time and channels"),
        ("npy", lambda array: np.array(["x"]), TIMES, "want features, real numbers"),
        ("npy", lambda array: np.array([{}]), TIMES, "cannot be read"),
        ("pt", lambda array: array, ["--stride", "4"], "want --stride and --fps"),
    ],
)
def test_what_cannot_be_right_is_refused_and_nothing_is_written(
    tmp_path, annotations, kind, change, options, message
):
    folder = write_features(tmp_path / "features", kind, change=change)
    result = imported(folder, annotations, tmp_path / "f.h5", *options)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (tmp_path / "f.h5").exists()


def test_other_and_hidden_files_of_a_folder_are_no_features(tmp_path, annotations):
    folder = write_features(tmp_path / "features", "npy")
    (folder / "v_d.npy").mkdir()
    for name in ("README.txt", ".v_e.npy"):
        (folder / name).write_text("no array")
    (folder / "v_a.npy").rename(folder / "v_a.NPY")
    assert sorted(find_features(folder)) == ["v_a", "v_b", "v_c"]


def test_code_in_a_file_of_torch_is_not_run(tmp_path, annotations):
    folder = tmp_path / "features"
    folder.mkdir()
    torch.save(Timing(4, 30, 4, 0), folder / "a.pt")
    result = imported(folder, annotations, tmp_path / "f.h5", *TIMES)
    assert result.exit_code == 2 and "running code" in result.stderr


def test_features_of_other_videos_and_no_features_are_refused(tmp_path, annotations):
    folder = tmp_path / "features"
    folder.mkdir()
    for message in ("no features in it", "none of the features is of an annotated video: files are 'x'"):
        result = imported(folder, annotations, tmp_path / "f.h5", *TIMES)
        assert result.exit_code == 2 and message in result.stderr, result.output
        np.save(folder / "x.npy", features_of("a"))


def test_equal_shapes_are_told_apart_by_the_durations_if_they_are_known():
    timing = Timing(4.0, 30.0, 4.0, 0.0)
    shapes = {"a": (75, 512), "b": (75, 512)}
    assert guess_layout(shapes, {"a": 10.0, "b": 10.0}, timing) == "tc"
    assert guess_layout({key: s[::-1] for key, s in shapes.items()}, {"a": 10.0, "b": 10.0}, timing) == "ct"
    with pytest.raises(ValueError, match="either axis may be time; say which with --layout tc"):
        guess_layout(shapes, {"a": None, "b": None}, timing)
