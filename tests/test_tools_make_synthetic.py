"""The built-in data: deterministic, exact actions, classes that only motion tells apart."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from tools.make_synthetic import VideoOptions, main, make_video
from tools.synthetic.hard_scene import PAN, draw_hard_scenario, draw_view, kind_of
from tools.synthetic.scene import CLASSES, Action, Scenario, View, draw_scenario, render

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = VideoOptions(seed=3, size=32, fps=12, shortest=2.0, longest=4.0)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    scenario, data = make_video("training", 0, OPTIONS)
    again, same = make_video("training", 0, OPTIONS)
    assert (scenario, data) == (again, same)
    assert make_video("training", 0, replace(OPTIONS, seed=4))[1] != data
    assert make_video("validation", 0, OPTIONS)[1] != data
    assert make_video("training", 0, replace(OPTIONS, hard=True))[1] != data


def test_a_negative_seed_is_refused_by_its_option(tmp_path):
    done = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), "--seed", "-1", "--train", "1"])
    assert done.exit_code == 2 and "invalid value for '--seed': -1 is not in the range x>=0" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_processes_that_render_end_with_the_command_that_is_killed(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "make_synthetic.py"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--train", "1000", "--quiet"])
    while not list(tmp_path.glob("out/videos/*.mp4")):
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < deadline, "a process renders for nobody"
        time.sleep(0.01)


def test_scenarios_have_up_to_six_actions_of_all_classes_within_the_video():
    scenarios = [draw_scenario(np.random.default_rng(i), fps=12, shortest=4, longest=40) for i in range(300)]
    counts = {len(scenario.actions) for scenario in scenarios}
    durations = [scenario.duration for scenario in scenarios]
    assert counts == set(range(7))
    assert max(durations) / min(durations) > 9  # a decade, but for the draw's own ends
    assert {action.label for scenario in scenarios for action in scenario.actions} == set(CLASSES)
    for scenario in scenarios:
        ends = [0.0] + [time for action in scenario.actions for time in (action.start, action.end)]
        assert ends == sorted(ends) and ends[-1] <= scenario.duration


def test_hard_actions_are_of_all_lengths_and_overlap_only_where_one_actor_can_do_both():
    scenarios = [
        draw_hard_scenario(np.random.default_rng(i), fps=12, shortest=4, longest=40) for i in range(400)
    ]
    actions = [action for scenario in scenarios for action in scenario.actions]
    lengths = [action.end - action.start for action in actions]
    assert {action.label for action in actions} == set(CLASSES)
    assert max(lengths) / min(lengths) > 30  # 40, but for the draw's own ends
    empty = sum(not scenario.actions for scenario in scenarios) / len(scenarios)
    assert abs(empty - 0.2) < 0.06  # three standard errors of 400 draws
    overlapping = 0
    for scenario in scenarios:
        assert list(scenario.actions) == sorted(scenario.actions, key=lambda action: action.start)
        for number, action in enumerate(scenario.actions):
            assert 0 <= action.start < action.end <= scenario.duration
            for other in scenario.actions[number + 1 :]:
                overlap = other.start < action.end
                assert not (overlap and kind_of(action.label) == kind_of(other.label))
                overlapping += overlap
    assert overlapping > len(actions) / 30


def test_the_camera_wanders_and_a_bar_hides_the_actor_at_times():
    scenario = Scenario(1200, 12, (Action(10.0, 20.0, "swing"),))
    view = draw_view(np.random.default_rng(0), scenario, size=32)
    assert view.pan.shape == (1200, 2) and view.bar.shape == (1200,)
    assert 0.3 * PAN * 32 < np.abs(view.pan).max() <= PAN * 32
    assert np.abs(np.diff(view.pan, axis=0)).max() < 1  # smooth: less than a pixel a frame
    hidden = (view.bar > 0) & (view.bar < 32)
    assert 0.02 < hidden.mean() < 0.4
    short = Scenario(12, 12, ())
    for seed in range(50):  # a bar that would pass beyond the end
        assert len(draw_view(np.random.default_rng(seed), short, size=32).bar) == 12


def test_what_the_camera_sees_is_shifted_and_what_the_bar_hides_is_hidden():
    scenario, rng = Scenario(2, 12, ()), np.random.default_rng
    still = np.stack(list(render(scenario, rng(5), size=32)))
    away = View(np.tile([3.0, 0.0], (2, 1)), np.full(2, -64.0), 4.0)
    panned = np.stack(list(render(scenario, rng(5), size=32, view=away)))
    np.testing.assert_array_equal(panned[:, :, :-3], still[:, :, 3:])
    barred = np.stack(
        list(render(scenario, rng(5), size=32, view=View(np.zeros((2, 2)), np.full(2, 16.0), 4.0)))
    )
    changed = (barred != still).any(axis=(0, 1, 3))
    assert set(np.flatnonzero(changed)) == set(range(13, 20))  # less than 4 pixels from column 16


def features_of(frames: np.ndarray) -> np.ndarray:
    """What a linear classifier can see of single frames: pixels, their squares, local contrasts."""
    grey = frames.mean(-1).reshape(len(frames), -1) / 255 - 0.5
    return np.concatenate([grey, grey**2, np.ones((len(frames), 1))], axis=1)


@pytest.mark.slow
def test_a_single_frame_does_not_tell_the_classes_apart_but_two_do():
    frames, motion, labels = [], [], []
    for number in range(240):
        rng = np.random.default_rng([11, number])
        label = number % len(CLASSES)
        scenario = Scenario(8, 12, (Action(0.0, 8 / 12, CLASSES[label]),))
        video = np.stack(list(render(scenario, rng, size=24))).astype(np.float32)
        frames.append(video[4])
        # normal flow: products of temporal and spatial differences, the simplest motion there is
        grey = video.mean(-1)
        change = grey[5] - grey[3]
        motion.append((change * np.gradient(grey[4], axis=1)).mean())
        labels.append(label)
    labels, chance = np.array(labels), 1 / len(CLASSES)
    one_hot = np.eye(len(CLASSES))[labels]
    train, test = slice(0, 160), slice(160, 240)

    def accuracy(x: np.ndarray) -> float:
        ridge = x[train].T @ x[train] + 1.0 * np.eye(x.shape[1])
        weights = np.linalg.solve(ridge, x[train].T @ one_hot[train])
        return float(((x[test] @ weights).argmax(1) == labels[test]).mean())

    # 80 test frames: three standard errors of a guess at 1/5 are 0.134
    assert accuracy(features_of(np.stack(frames))) < chance + 0.134
    slides = labels < 2  # the sign of the flow tells left from right
    assert ((np.array(motion) < 0) == labels)[slides].mean() > 0.9


@pytest.mark.slow
def test_the_tool_writes_whole_videos_and_matching_annotations(tmp_path):
    out = tmp_path / "made"
    sizes = ["--size", "32", "--shortest", "2", "--longest", "3", "--quiet"]
    result = CliRunner().invoke(main, ["--out", str(out), "--train", "2", "--val", "1", *sizes])
    assert result.exit_code == 0, result.output
    database = json.loads((out / "annotations.json").read_text())["database"]
    assert {video["subset"] for video in database.values()} == {"training", "validation"}
    for key, video in database.items():
        with av.open(str(out / "videos" / f"{key}.mp4")) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == round(video["duration"] * 12)


def test_asking_for_no_video_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--train", "0", "--val", "0"])
    assert result.exit_code == 2 and "at least one video" in result.stderr
