"""Feature files: windows of features at the right times, whole files, and what is refused by name."""

from contextlib import closing

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from full_disk import files_of_at_most

from pipeline.annotations import Action
from pipeline.features.dataset import FeatureDataset, open_any, open_of_settings
from pipeline.features.records import FeatureVideo, check_made_alike
from pipeline.features.steps import interpolated, step_positions
from pipeline.features.writer import write_features
from pipeline.loader import Loader
from pipeline.settings import DataSettings

WIDTH = 3


def video(key: str, num_steps: int, *, step: float = 0.5, subset: str = "training", **other) -> FeatureVideo:
    entry = {"duration": num_steps * step, "first": step / 2, "actions": (Action(0.1, 0.4, "jump"),)}
    return FeatureVideo(
        **{"key": key, "subset": subset, "source": key, "step": step, **entry, **other}, num_steps=num_steps
    )


def ramp(num_steps: int, scale: float = 1.0) -> np.ndarray:
    """(T, WIDTH): feature t is t times 1, 2, 3."""
    return np.arange(num_steps, dtype=np.float32)[:, None] * np.arange(1, WIDTH + 1, dtype=np.float32) * scale


def write(path, videos, precision="float32", **settings):
    write_features(path, videos, classes=["jump"], num_features=WIDTH, settings=settings, precision=precision)
    return path


def loader_of(path, *, num_steps=8, training=False, source=None, **settings) -> Loader:
    values = {"shards": str(path), "num_features": WIDTH, "num_clips": num_steps, **settings}
    options = {"batch_size": 1, "seed": 3, "rank": 0, "world_size": 1, "training": training, "remark": print}
    data = DataSettings(**values)
    return Loader(source or open_of_settings(data), data, subset="training", device="cpu", **options)


def take(loader, count):
    with closing(iter(loader)) as batches:
        return [batch for _, batch in zip(range(count), batches, strict=False)]


# ---------------------------------------------------------------------------------------------- arithmetic


def test_a_full_disk_is_an_error_before_hdf5_meets_it_and_leaves_nothing(tmp_path):
    """HDF5 itself crashes the process, then or at its end."""
    with files_of_at_most(6_000_000), pytest.raises(OSError, match="File too large: .*full.h5"):
        write(tmp_path / "full.h5", [(video(name, 100_000), ramp(100_000)) for name in "abcdefgh"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("stored", "wanted"), [(8, 8), (5, 8), (8, 5), (1, 4), (40, 1), (7, 3)])
def test_features_of_a_whole_video_are_resized_as_torch_does(stored, wanted):
    features = np.random.default_rng(0).normal(size=(stored, WIDTH)).astype(np.float32)
    step = 30.0 / stored
    positions = step_positions((0.0, 30.0), wanted, first=step / 2, step=step, count=stored)
    want = F.interpolate(torch.from_numpy(features.T[None]), size=wanted, mode="linear", align_corners=False)
    np.testing.assert_allclose(interpolated(features, positions).T, want[0].numpy(), atol=1e-5)  # float32


@pytest.mark.parametrize("window", [(0.0, 4.0), (1.3, 5.3), (7.0, 11.0), (-3.0, 30.0)])
def test_a_step_has_the_value_at_its_middle_and_beyond_the_ends_the_nearest(window):
    first, step, count = 0.35, 0.4, 20
    features = ramp(count)
    positions = step_positions(window, 6, first=first, step=step, count=count)
    start, end = window
    for t, row in enumerate(interpolated(features, positions)):
        middle = start + (t + 0.5) * (end - start) / 6
        place = min(max((middle - first) / step, 0), count - 1)
        np.testing.assert_allclose(row, place * np.array([1, 2, 3]), atol=1e-4)  # of 60, in float32


def test_windows_on_the_grid_of_the_features_hold_them_bit_by_bit():
    features = np.random.default_rng(1).normal(size=(256, WIDTH)).astype(np.float32)
    step = 30 / 128  # as 128 clips in windows of 30 s
    for start in (0, 15, 30):
        positions = step_positions((start, start + 30.0), 128, first=step / 2, step=step, count=256)
        assert np.array_equal(interpolated(features, positions), features[start * 128 // 30 :][:128])


# ------------------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_file_gives_back_what_was_written(tmp_path, precision):
    rejected = video("b", 0, reject="no video stream", duration=None, step=0.0, first=0.0)
    videos = [(video("a", 4), ramp(4)), (rejected, None), (video("c", 6, subset="test"), ramp(6))]
    dataset = FeatureDataset.open(write(tmp_path / "f.h5", videos, precision, backbone="i3d"))
    assert dataset.classes == ("jump",) and dataset.num_features == WIDTH
    assert dataset.packing == {"backbone": "i3d"}
    assert dataset.videos == {one.key: one for one, _ in videos}
    assert [one.key for one in dataset.packed("training")] == ["a"]
    assert list(dataset.ground_truth("training")) == ["a", "b"], "it stays in the denominator of mAP"
    assert np.array_equal(dataset.features("c", 2, 5), ramp(6)[2:5])  # small whole numbers: exact in float16
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((4, WIDTH), np.nan), "4 features are not finite.*first number 0"),
        (ramp(4, 1e5), "number of 900000 does not fit float16; want --precision float32"),
        (ramp(3), r"features \(3, 3\), want \(4, 3\)"),
        (np.zeros((4, WIDTH + 1)), r"features \(4, 4\), want \(4, 3\)"),
        (np.zeros((0, WIDTH)), "none empty"),
        (np.array([["a"] * WIDTH] * 4), "want numbers"),
    ],
)
def test_features_that_are_none_are_refused_by_the_name_of_the_video(tmp_path, features, message):
    with pytest.raises(ValueError, match=f"video a: .*{message}"):
        write(tmp_path / "f.h5", [(video("a", 4), features)], "float16")
    assert not list(tmp_path.iterdir())


def test_the_width_is_checked_and_asked_for(tmp_path):
    path = write(tmp_path / "f.h5", [(video("a", 4), ramp(4))])
    with pytest.raises(ValueError, match="data.num_features: got 5, but .* have 3 channels"):
        open_of_settings(DataSettings(shards=str(path), num_features=5))
    with pytest.raises(ValueError, match="data.num_features: missing, want 3"):
        open_of_settings(DataSettings(shards=str(path)))
    with pytest.raises(ValueError, match="data.shards: got .*, want a feature file"):
        open_of_settings(DataSettings(shards=str(tmp_path), num_features=3))
    with pytest.raises(ValueError, match="no such file, want a feature file"):
        open_any(tmp_path / "gone.h5")


def damaged(path, kind):
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    with h5py.File(path, "r+") as file:
        if kind == "another":
            file.attrs["format"] = "leantad-raw"
        elif kind == "no JSON":
            del file["description"]
            file["description"] = "{"
        elif kind == "another file":
            del file["features"]["a"]
            file["features"]["a"] = h5py.ExternalLink("/etc/other.h5", "x")
        elif kind == "nan":
            file["features"]["a"][2, 1] = np.nan
        elif kind == "another shape":
            del file["features"]["a"]
            file["features"]["a"] = np.zeros((4, WIDTH + 2), dtype=np.float32)


@pytest.mark.parametrize("kind", ["cut", "another", "no JSON", "another file", "nan", "another shape"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, kind):
    path = write(tmp_path / "f.h5", [(video("a", 4), ramp(4))])
    damaged(path, kind)
    with pytest.raises(ValueError, match=r"f\.h5|not finite \(NaN or infinity\), first number 2") as error:
        FeatureDataset.open(path).features("a", 0, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"num_steps": 0}, {"reject": "gone"}, {"step": 0.0}, {"key": "a/b"}])
def test_entries_that_contradict_themselves_are_refused(tmp_path, change):
    odd = FeatureVideo(**{**vars(video("a", 4)), **change})
    path = tmp_path / "f.h5"
    write(path, [(odd, None)])
    with pytest.raises(ValueError, match=r"f\.h5: (key )?'?a"):
        FeatureDataset.open(path)


def test_only_what_decides_features_makes_two_files_differ():
    made = {"made_by": "x", "precision": "float16", "weights_sha256": "ab", "stride_frames": 4}
    check_made_alike(made, {**made, "made_by": "y", "precision": "float32"}, where="f.h5")
    with pytest.raises(ValueError, match="f.h5: .* otherwise .*stride_frames 4 here, 8 there"):
        check_made_alike(made, {**made, "stride_frames": 8}, where="f.h5")
    with pytest.raises(ValueError, match="weights_sha256 'ab' here, None there"):
        check_made_alike(made, {name: made[name] for name in made if name != "weights_sha256"}, where="f.h5")


def test_what_files_of_earlier_versions_do_not_state_is_compared_where_both_do():
    earlier = {"weights_sha256": "ab"}
    for name, value, other in (("beta", 0.0, 1.0), ("leapfrog", False, True), ("temporal", "mean", "shift")):
        made = {**earlier, name: value}
        check_made_alike(made, earlier, where="f.h5")
        check_made_alike(earlier, made, where="f.h5")
        with pytest.raises(ValueError, match=f"otherwise .*{name} {value!r} here, {other!r} there"):
            check_made_alike(made, {**earlier, name: other}, where="f.h5")


# ---------------------------------------------------------------------------------------------- the loader


def test_a_window_is_read_at_its_own_times_and_a_shorter_video_is_one_window(tmp_path):
    path = write(tmp_path / "f.h5", [(video("long", 40), ramp(40)), (video("short", 5), ramp(5))])
    batches = list(loader_of(path, window_seconds=4.0))  # 8 features of half a second
    seen = {(batch.keys[0], batch.windows[0, 0].item()): batch.inputs[0] for batch in batches}
    assert [start for key, start in seen if key == "long"] == [2.0 * k for k in range(9)]
    for (key, start), features in seen.items():
        assert features.dtype == torch.float32 and features.shape == (WIDTH, 8)
        if key == "long":
            assert torch.equal(features[0], torch.arange(8) + start / 0.5)
    short = next(batch for batch in batches if batch.keys[0] == "short")
    assert short.windows.tolist() == [[0.0, 2.5]]
    want = F.interpolate(torch.from_numpy(ramp(5).T[None].copy()), size=8, mode="linear")
    torch.testing.assert_close(short.inputs, want)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_order_and_resume_are_those_of_videos(tmp_path, world_size, stop):
    path = write(tmp_path / "f.h5", [(video(f"v{k}", 4), ramp(4, k)) for k in range(7)])
    of_ranks = []
    for rank in range(world_size):
        source = open_any(path)
        options = {"training": True, "source": source, "batch_size": 1}
        whole = take(ranked(path, rank, world_size, **options), 9)
        cut = ranked(path, rank, world_size, **options)
        take(cut, stop)
        again = ranked(path, rank, world_size, **options)
        again.load_state_dict(cut.state_dict())
        for want, got in zip(whole[stop:], take(again, 9 - stop), strict=True):
            assert want.keys == got.keys and torch.equal(want.inputs, got.inputs)
        of_ranks.append([batch.keys[0] for batch in whole])
    steps = -(-7 // world_size)
    epoch = [keys[step] for step in range(steps) for keys in of_ranks][:7]
    assert sorted(epoch) == [f"v{k}" for k in range(7)]


def ranked(path, rank, world_size, *, training, source, batch_size):
    data = DataSettings(shards=str(path), num_features=WIDTH, num_clips=4)
    options = {"batch_size": batch_size, "seed": 3, "training": training, "remark": print}
    return Loader(source, data, subset="training", device="cpu", rank=rank, world_size=world_size, **options)


def test_a_video_whose_features_are_not_finite_stops_by_name_or_is_skipped(tmp_path):
    path = write(tmp_path / "f.h5", [(video("a", 4), ramp(4)), (video("b", 4), ramp(4))])
    damaged(path, "nan")
    with pytest.raises(ValueError, match="video a: 1 features are not finite"):
        list(loader_of(path))
    batches = list(loader_of(path, skip_bad=1))
    assert [batch.padding[0] for batch in batches] == [True, False]
    assert not batches[0].inputs.any()


@pytest.mark.parametrize(
    ("num_steps", "words"), [(3, "most features are left out"), (8, None), (40, "most steps lie")]
)
def test_a_stride_that_does_not_fit_the_recipe_is_said(tmp_path, num_steps, words):
    path = write(tmp_path / "f.h5", [(video("long", 40), ramp(40)), (video("short", 5), ramp(5))])
    warning = loader_of(path, num_steps=num_steps, window_seconds=4.0).reader.stride_warning()
    assert warning is None if words is None else words in warning and "8 features" in warning
