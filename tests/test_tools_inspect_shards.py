"""`leantad inspect`: counts by hand, the best proposal against brute force, settings that load and fit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from model.backbones import build_backbone
from pipeline.annotations import Action, Repair, read_annotations
from pipeline.dataset import Dataset
from pipeline.packing.shard_writer import write_dataset
from pipeline.records import PackedVideo, Shard
from pipeline.windows import windows_of
from tools import inspect_shards
from tools.dataset.explanations import rate_warning
from tools.dataset.names import choose_subsets, name_warnings
from tools.dataset.recommend import choose_clips, coverage_of, recommend, sided
from tools.dataset.statistics import histogram, overlapping, statistics_of
from tools.dataset.training import I3D_CPU, PRETRAINED
from tools.dataset.windowing import Windowing, best_tiou
from tools.inspect_shards import inspect_dataset, main


def video(key: str, subset: str, duration: float, actions: list[tuple], *, fps=10.0, reject=None, size=128):
    packed = reject is None
    return PackedVideo(
        key,
        subset,
        duration,
        fps,
        round(duration * fps) if packed else 0,
        170,
        size,
        "vp9" if packed else "",
        tuple(Action(*action) for action in actions),
        "00000.tar" if packed else None,
        reject,
        key,
    )


def dataset_of(folder: Path, videos: list[PackedVideo], repairs=(), extra_classes=()) -> Path:
    """A data set whose tar holds no pixels, for inspect decodes none."""
    classes = {action.label for item in videos for action in item.actions} | set(extra_classes)
    (folder / "00000.tar").write_bytes(b"pixels")
    (folder / "00000.idx").write_text("v1.2 0\n")
    shard = Shard("00000.tar", "00000.idx", hashlib.sha256(b"pixels").hexdigest(), 6, len(videos))
    write_dataset(folder, classes=classes, videos=videos, shards=[shard], packing={}, repairs=repairs)
    return folder


VIDEOS = [
    video("a", "training", 60, [(0, 10, "run"), (5, 15, "run"), (12, 20, "jump")]),
    video("b", "training", 30, [(3, 9, "jump")]),
    video("c", "validation", 20, [(1, 4, "run"), (15, 20, "turn-left")], fps=25),
    video("d", "validation", 40, []),
    video("e", "validation", 9, [(1, 2, "run")], reject="not a readable video"),
]


@pytest.fixture
def shards(tmp_path) -> Path:
    repairs = [Repair("a", "clipped", "20.5 to 20.0")]
    return dataset_of(tmp_path, VIDEOS, repairs, ["swim"])


def test_counts_lengths_classes_and_overlaps_are_those_of_the_videos(shards):
    statistics = statistics_of(Dataset.open(shards))
    training, validation = statistics["subsets"]["training"], statistics["subsets"]["validation"]
    assert (training["videos"], training["packed"], training["actions"]) == (2, 2, 4)
    assert (validation["videos"], validation["packed"], validation["rejected"]) == (3, 2, 1)
    assert validation["without_actions"] == 1 and training["hours"] == pytest.approx(0.025)
    seconds = statistics["action_seconds"]  # 10, 10, 8, 6, 3, 5 s
    assert (seconds["p0"], seconds["p50"], seconds["p100"]) == (3, 7, 10)
    assert statistics["action_share_of_video"]["p100"] == 0.25
    assert statistics["fps"] == {"10": 3, "25": 1} and statistics["sizes"] == {"170x128": 4}
    # (0, 10) meets (5, 15), both run; (5, 15) meets (12, 20), run and jump
    assert statistics["overlaps"] == {"pairs_same_class": 1, "pairs_other_class": 1, "actions": 3}
    balance = statistics["balance"]
    assert balance["per_class"]["run"] == {"training": 2, "validation": 1} and balance["ratio"] == 3
    assert balance["in_one_subset"] == {"jump": "training", "turn-left": "validation"}
    assert balance["without_actions"] == ["swim"]
    assert statistics["rejects"] == [{"video": "e", "subset": "validation", "reason": "not a readable video"}]
    assert statistics["repairs"][0]["kind"] == "clipped"


@given(values=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=50))
def test_a_histogram_counts_every_length_once(values):
    found = histogram(values)
    assert sum(found["counts"]) == len(values) and len(found["edges"]) == len(found["counts"]) + 1


def test_the_bins_of_a_histogram_grow_by_one_factor():
    found = histogram([1.0, 1.5, 3.0, 1000.0, 1024.0])
    assert found == {"edges": [2.0**number for number in range(11)], "counts": [2, 1, *[0] * 7, 2]}
    assert histogram([5.0, 5.01]) == {"edges": [5.0, 5.01], "counts": [2]}


def test_actions_that_touch_do_not_overlap():
    assert overlapping(np.array([(0.0, 2.0), (1.0, 3.0)])).tolist() == [[0, 1]]
    assert overlapping(np.array([(0.0, 2.0), (2.0, 3.0), (1.0, 2.5)])).tolist() == [[0, 2], [1, 2]]
    assert overlapping(np.array([(0.0, 2.0)])).shape == (0, 2)


@settings(deadline=None, max_examples=60)
@given(
    duration=st.floats(2, 60),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    window=st.sampled_from([None, 3.0, 10.0]),
    num_steps=st.integers(4, 9),
)
def test_the_best_proposal_is_that_of_a_search_through_all(duration, ends, window, num_steps):
    segment = np.sort(np.array(ends)) * duration
    windows = windows_of(duration, window_seconds=window, overlap=0.5)
    wanted = 0.0
    for start, end in windows:
        grid = start + (end - start) * np.arange(num_steps + 1) / num_steps
        for low in range(num_steps):
            for high in range(low + 1, num_steps + 1):
                inter = max(0.0, min(grid[high], segment[1]) - max(grid[low], segment[0]))
                union = grid[high] - grid[low] + segment[1] - segment[0] - inter
                wanted = max(wanted, inter / union)
    found = best_tiou(segment[None], windows, num_steps)
    assert found[0] == pytest.approx(wanted, abs=1e-9)  # the order of float64 operations


def test_coverage_is_the_share_of_frames_that_clips_show():
    item = video("a", "training", 100, [])  # 1000 frames
    sparse = {"num_clips": 5, "clip_frames": 10, "stride_frames": 2}
    # 5 clips of 10 frames are 50 of 1000; each spans 2 * 9 + 1 frames, 95 in all
    assert coverage_of(item, None, sparse) == {"frames": 0.05, "time": 0.095}
    dense = {"num_clips": 100, "clip_frames": 16, "stride_frames": 1}
    assert coverage_of(item, None, dense) == {"frames": 1.0, "time": 1.0}


@pytest.mark.parametrize(
    ("window_seconds", "start", "clips"),
    [
        (None, PRETRAINED, (64, 16, 4)),  # 4,500 frames
        (60.0, PRETRAINED, (64, 16, 1)),  # of 900 frames a clip has 14
        (8.0, PRETRAINED, (64, 8, 1)),  # 16 would show each of 120 frames eight times
        (60.0, I3D_CPU, (32, 8, 3)),  # a clip for two steps
        (400.0, I3D_CPU, (32, 8, 4)),  # longer than the videos
    ],
)
def test_clips_spread_over_a_window_as_far_as_motion_allows(window_seconds, start, clips):
    windowing = Windowing(window_seconds, 64, np.ones(1))
    chosen = choose_clips([video("a", "training", 300, [], fps=15)], windowing, start)
    assert (chosen["num_clips"], chosen["clip_frames"], chosen["stride_frames"]) == clips


def test_long_videos_of_short_actions_get_windows_and_short_videos_none(tmp_path):
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 590, (20, 10))
    long = [
        video(f"v{i}", "training" if i % 2 else "validation", 600, [(s, s + 2, "run") for s in row])
        for i, row in enumerate(starts)
    ]
    advice = advice_on(tmp_path, long)
    # 600 s in 256 steps are 2.3 s a step, too coarse for 2 s; up to 1.4 s a step some proposal has tIoU 0.7
    assert advice["settings"]["data"]["window_seconds"] and advice["step_seconds"]["p100"] < 1.45
    assert advice["matchable"]["tiou_0.7"] > 0.99 and advice["unmatchable_actions"] == 0
    short = [video(f"v{i}", "training" if i else "val", 20, [(2, 9, "run")]) for i in range(4)]
    advice = advice_on(tmp_path, short)
    assert "window_seconds" not in advice["settings"]["data"]
    assert advice["settings"]["data"]["val_subset"] == "val"


def advice_on(folder: Path, videos: list[PackedVideo]) -> dict:
    dataset = Dataset.open(dataset_of(folder, videos))
    return recommend(dataset, statistics_of(dataset))


@pytest.mark.slow
def test_activitynet_gets_the_settings_of_its_recipe(shared_real):
    from train.settings import load_settings

    path = shared_real / "annotations" / "anet13" / "anet13_rebuilt_trainval_gt.json"
    videos = {
        key: replace(video(key, item.subset, item.duration or 1.0, [], fps=15.0), actions=item.actions)
        for key, item in read_annotations(path).items()
    }
    dataset = object.__new__(Dataset)  # no folder of shards: the descriptions are all that is read
    dataset.videos, dataset.packing, dataset.repairs = videos, {}, ()
    dataset.folder = Path("data/activitynet")
    dataset.classes = tuple(sorted({a.label for item in videos.values() for a in item.actions}))
    found = recommend(dataset, statistics_of(dataset))["settings"]
    recipe = load_settings(Path("activitynet_r2plus1d34"))
    names = ("num_clips", "clip_frames", "stride_frames", "resize", "crop", "train_subset", "val_subset")
    assert {name: found["data"][name] for name in names} == recipe.data.model_dump(include=set(names))
    assert "window_seconds" not in found["data"] and recipe.data.window_seconds is None
    assert found["detector"]["num_steps"] == recipe.detector.num_steps


def test_small_data_is_trained_from_random_weights_long_enough_and_large_data_from_pretrained_ones(tmp_path):
    """14 videos in steps of 2 are 7 steps an epoch: 129 epochs are the first with 900 steps."""
    few = [video(f"v{i}", "training", 150, [(2, 9, "run")], fps=15) for i in range(14)]
    advice = advice_on(tmp_path, [*few, video("w", "validation", 150, [(2, 9, "run")], fps=15)])
    settings = advice["settings"]
    assert settings["run"] == {"epochs": 129, "eval_every": 21}
    assert settings["optimizer"] == {"encoder_lr": 5e-3, "detector_lr": 5e-3, "batch_size": 2}
    sizes = ("clip_frames", "resize", "crop")
    assert [settings["data"][name] for name in sizes] == [8, 56, 48]
    assert "7 steps an epoch and 903 in all" in advice["reasons"]["run.epochs"]
    many = [video(f"v{i}", "training", 150, [(2, 30, "run")], fps=15) for i in range(400)]
    settings = advice_on(tmp_path, [*many, video("w", "validation", 150, [(2, 30, "run")], fps=15)])[
        "settings"
    ]
    assert settings["run"]["epochs"] == 9 and settings["optimizer"]["encoder_lr"] == 5e-7
    assert [settings["data"][name] for name in sizes] == [16, 128, 112]


def test_own_videos_has_the_learning_rates_that_inspect_proposes(shards):
    from train.settings import load_settings

    recipe = load_settings(Path("own_videos"))
    proposed = inspect_dataset(str(shards))["advice"]["settings"]["optimizer"]
    assert recipe.optimizer.model_dump(include=set(proposed)) == proposed


@pytest.fixture(scope="module")
def i3d(tmp_path_factory) -> Path:
    """A folder with i3d.safetensors in it."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(build_backbone("i3d").state_dict(), folder / "i3d.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "name"), [(True, "own_videos_i3d"), (False, "own_videos_i3d_cpu")])
def test_with_the_weights_of_i3d_settings_are_those_of_its_recipes(shards, i3d, monkeypatch, gpu, name):
    """Found in the folder that one works in, or named; without them, nothing changes."""
    from train.settings import load_settings

    monkeypatch.setattr(inspect_shards, "has_gpu", lambda: gpu)
    named = inspect_dataset(str(shards), i3d / "i3d.safetensors")["advice"]
    without = inspect_dataset(str(shards))["advice"]
    assert without["start"] == "own_videos" and "encoder" not in without["settings"]
    monkeypatch.chdir(i3d)
    found = inspect_dataset(str(shards))["advice"]
    assert found["start"] == named["start"] == name
    assert found["settings"]["encoder"].pop("weights") == "i3d.safetensors"
    assert named["settings"]["encoder"].pop("weights") == str(i3d / "i3d.safetensors")
    assert found["settings"] == named["settings"]
    recipe = load_settings(Path(name))
    for group in ("encoder", "optimizer"):
        proposed = found["settings"][group]
        assert getattr(recipe, group).model_dump(include=set(proposed)) == proposed
    sizes = ("clip_frames", "resize", "crop")
    assert {n: found["settings"]["data"][n] for n in sizes} == recipe.data.model_dump(include=set(sizes))
    assert found["settings"]["detector"]["num_steps"] == recipe.detector.num_steps
    assert found["settings"]["data"]["num_clips"] == recipe.data.num_clips
    assert recipe.encoder.weights == "i3d.safetensors"


def test_other_weights_than_those_of_i3d_are_refused_by_name(shards, tmp_path):
    other = tmp_path / "tiny.safetensors"
    save_file(build_backbone("r2plus1d_tiny").state_dict(), other)
    for path, text in ((other, "does not hold the weights of i3d"), (tmp_path / "none", "no such file")):
        result = CliRunner().invoke(main, [str(shards), "--weights", str(path)])
        assert result.exit_code == 2 and text in result.stderr and str(path) in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_warnings_name_what_cannot_be_learned(shards):
    warnings = "\n".join(inspect_dataset(str(shards))["advice"]["warnings"])
    for text in (
        "turn-left: without a training action",
        "jump: in the training subset only",
        "swim: a class without any action",
        "jump, run: fewer than 10 training actions",
        "frame rates differ (10, 25)",
        "pairs of actions of one class that overlap: 1",
        "rejected videos: 1",
    ):
        assert text in warnings, text


@pytest.mark.parametrize(
    ("packed", "chosen"),
    [
        ({"training": 3, "validation": 4, "testing": 9}, ("training", "validation")),
        ({"training": 3, "Validation ": 2, "testing": 9}, ("training", "Validation ")),
        ({"Train": 3, "VAL": 2, "fold": 9}, ("Train", "VAL")),
        ({"mine": 3, "none": 0}, ("mine", "mine")),
        ({"mine": 3, "Test 2": 9}, ("mine", "mine")),
        ({"a": 3, "b": 4, "test": 9}, ("b", "a")),
        ({"train": 200, "test": 210}, ("train", "train")),  # THUMOS-14, as thumos_gt.json calls them
        ({"validation": 200, "test": 213}, ("validation", "validation")),  # as its organisers do
        ({"test": 5}, ("test", "test")),
    ],
)
def test_subsets_are_chosen_by_their_usual_names_and_never_a_test_set_to_validate_on(packed, chosen):
    assert choose_subsets({name: {"packed": count} for name, count in packed.items()}) == chosen


def test_names_that_look_the_same_are_told_and_others_are_not():
    assert not name_warnings(["training", "validation", "testing"], ["pick-up", "put-down", "c", "c++"])
    for subsets, labels, text in (
        (["training", "Validation "], [], "subset 'Validation ' is not 'validation'"),
        (["train", "training"], [], "subsets 'train' and 'training' are 2 subsets"),
        (["Fold 1", "fold1"], [], "subsets 'Fold 1' and 'fold1' are 2 subsets"),
        ([], ["Pick up", "pick-up", "pick_up", "put"], "labels 'Pick up' and 'pick-up' and 'pick_up' are 3"),
        ([], ["\xdcben", "U\u0308ben", "Uben"], r"labels 'U\u0308ben' and '\xdcben' are 2 classes"),
        ([], ["pick up", "pick\xa0up"], r"labels 'pick up' and 'pick\xa0up' are 2 classes"),
    ):
        (warning,) = name_warnings(subsets, labels)
        assert text in warning


def test_a_test_set_alone_beside_training_is_told(tmp_path):
    videos = [replace(item, subset={"validation": "test"}.get(item.subset, item.subset)) for item in VIDEOS]
    document = inspect_dataset(str(dataset_of(tmp_path, videos)))
    assert document["advice"]["settings"]["data"]["val_subset"] == "training"
    assert "nothing is left to validate on but test" in document["advice"]["warnings"][0]


@pytest.mark.parametrize(
    ("packing", "way"),
    [
        ({"copy": True}, "pack without --copy"),
        ({"copy": False, "fps": 15.0, "upscale": False}, "pack with --fps 12, or let slower videos"),
        ({"copy": False, "fps": 0.0, "upscale": False}, "pack with --fps 12"),
    ],
)
def test_how_to_get_one_frame_rate_depends_on_how_it_was_packed(packing, way):
    assert rate_warning(["15", "12"], packing).startswith(f"frame rates differ (15, 12): {way}")


@pytest.mark.parametrize(
    ("packing", "way"),
    [
        ({"copy": True}, "pack without --copy"),
        (
            {"copy": False, "fps": 15.0, "upscale": False},
            "let slower videos have frames repeated by --upscale",
        ),
        ({"copy": False, "fps": 0.0, "upscale": False}, "pack with --fps 30 --upscale"),
    ],
)
def test_no_rate_is_proposed_that_ruins_the_other_videos(packing, way):
    assert rate_warning(["30", "15", "1.86034"], packing) == f"frame rates differ (30, 15, 1.86034): {way}"


def test_a_damaged_tar_is_refused_and_named(shards):
    (shards / "00000.tar").write_bytes(b"pixelz")
    result = CliRunner().invoke(main, [str(shards)])
    assert result.exit_code == 2 and "1 of 1 tars (00000.tar)" in result.stderr and not result.stdout
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_side_is_a_part_of_its_own_in_a_class_name():
    mirrored = ["turn-left", "Turn Right", "TurnLeft", "LEFT_ARM", "HTMLRight", "kick2left", "Left"]
    mirrored += ["lefthand", "leftwards", "right-handed"]
    same = ["brightening", "upright row", "cleft", "Copyright", "LeftoverMeal", "bright", "jump"]
    assert sided([*mirrored, *same]) == mirrored


def test_the_recipe_lines_load_as_settings(shards, tmp_path):
    from train.settings import load_settings

    document = inspect_dataset(str(shards))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(document["recipe"])
    loaded = load_settings(recipe)
    assert loaded.data.shards == str(shards) and loaded.data.flip == 0.0  # turn-left
    chosen = document["advice"]["settings"]
    assert loaded.data.model_dump(include=set(chosen["data"])) == chosen["data"]
    assert loaded.detector.num_steps == chosen["detector"]["num_steps"]
    assert loaded.optimizer.model_dump(include=set(chosen["optimizer"])) == chosen["optimizer"]
    assert loaded.run.model_dump(include=set(chosen["run"])) == chosen["run"]
    assert document["recipe"].count("  # ") >= 4  # the reasons


def test_the_command_prints_text_or_json_and_refuses_what_is_no_data_set(shards, tmp_path):
    shown = CliRunner().invoke(main, [str(shards)])
    assert shown.exit_code == 0, shown.output
    for text in ("subset", "videos by duration", "num_clips:", "e (validation): not a readable", "warning:"):
        assert text in shown.stdout, text
    found = CliRunner().invoke(main, [str(shards), "--json", "--out", str(tmp_path / "inspect.json")])
    assert json.loads(found.stdout) == json.loads((tmp_path / "inspect.json").read_text())
    again = CliRunner().invoke(main, [str(shards), "--out", str(tmp_path / "inspect.json")])
    assert again.exit_code == 2 and "--force" in again.stderr
    nothing = CliRunner().invoke(main, [str(tmp_path / "nowhere")])
    assert nothing.exit_code == 2 and "nowhere" in nothing.stderr


def test_a_data_set_without_actions_or_packed_videos_is_no_traceback(tmp_path):
    dataset_of(tmp_path, [video("a", "training", 5, [])], extra_classes=["run"])
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 0 and "nothing to learn" in result.stdout
    dataset_of(tmp_path, [video("a", "training", 5, [], reject="empty")], extra_classes=["run"])
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2 and "no packed video" in result.stderr
