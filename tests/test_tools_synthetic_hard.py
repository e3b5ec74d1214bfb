"""The harder built-in task is as hard as it says, and the plain one is what it was before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tools.make_synthetic import VideoOptions, main, make_video
from tools.synthetic.hard import (
    HARD_MOTIONS,
    camera_path,
    draw_hard_scenario,
    render_hard,
)
from tools.synthetic.scene import (
    MOTIONS,
    TEXTURE_SIZE,
    Scenario,
    Stage,
    as_bytes,
    background_jitter,
    draw_scenario,
    render,
    sample_periodic,
    smooth_texture,
)

SCENARIOS = [draw_hard_scenario(np.random.default_rng(i), fps=12, shortest=4, longest=40) for i in range(400)]


def test_actions_are_of_all_classes_of_a_forty_fold_range_and_inside_their_videos():
    actions = [action for scenario in SCENARIOS for action in scenario.actions]
    lengths = [action.end - action.start for action in actions]
    assert {action.label for action in actions} == set(HARD_MOTIONS) > set(MOTIONS)
    assert min(lengths) == pytest.approx(5 / 12)  # 0.4 s in whole frames
    assert 30 < max(lengths) / min(lengths) <= 16 / (5 / 12) + 1e-9
    for scenario in SCENARIOS:
        assert list(scenario.actions) == sorted(scenario.actions, key=lambda a: (a.start, a.end))
        for action in scenario.actions:
            assert 0 <= action.start < action.end <= scenario.duration
            assert (action.start * 12) % 1 == pytest.approx(0, abs=1e-9)


def test_at_most_two_actions_overlap_one_that_moves_and_one_that_turns():
    overlaps = 0
    for scenario in SCENARIOS:
        for i, one in enumerate(scenario.actions):
            crossing = [b for b in scenario.actions[:i] if b.end > one.start and b.start < one.end]
            overlaps += len(crossing)
            for other in crossing:
                turning = [HARD_MOTIONS[action.label][2] != 0 for action in (one, other)]
                assert sum(turning) == 1
        for frame in range(scenario.num_frames):
            now = (frame + 0.5) / scenario.fps
            assert sum(a.start < now < a.end for a in scenario.actions) <= 2
    assert overlaps > 100


def test_most_of_the_time_nothing_happens_and_in_a_fifth_of_the_videos_all_the_time():
    empty = sum(not scenario.actions for scenario in SCENARIOS) / len(SCENARIOS)
    assert abs(empty - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 400)  # four standard errors
    busy = sum(a.end - a.start for scenario in SCENARIOS for a in scenario.actions)
    assert busy / sum(scenario.duration for scenario in SCENARIOS) < 0.5


def test_the_camera_sways_slowly_and_stays_near():
    path = camera_path(Scenario(480, 12, ()), np.random.default_rng(0), 48)
    assert np.abs(path).max() <= 2 and np.ptp(path, axis=0).min() > 1  # pixels
    slide = 48 / 18  # pixels a frame
    assert 0.05 < np.abs(np.diff(path, axis=0)).max() / slide < 0.25


def test_a_bar_hides_part_of_the_picture_for_part_of_the_time():
    """All else is what the moved camera sees of the plain scene."""
    scenario, size = Scenario(200, 12, ()), 32
    rng = np.random.default_rng(3)
    stage, camera = Stage.draw(scenario, rng, HARD_MOTIONS, size), camera_path(scenario, rng, size)
    y, x = np.mgrid[:size, :size].astype(float)
    hidden = []
    for frame, shown in enumerate(render_hard(scenario, np.random.default_rng(3), size=size)):
        behind = as_bytes(stage.picture(frame, x + camera[frame, 0], y + camera[frame, 1]))
        hidden.append((shown != behind).any(-1).mean())
    assert 0.1 < max(hidden) < 0.4  # the bar, with soft edges
    assert 0.4 < np.mean(np.array(hidden) == 0) < 0.9


def test_the_same_seed_gives_the_same_bytes_and_other_bytes_than_the_plain_task():
    options = VideoOptions(seed=3, size=32, fps=12, shortest=2.0, longest=4.0, hard=True)
    assert make_video("training", 0, options) == make_video("training", 0, options)
    assert make_video("training", 0, options)[1] != make_video("training", 0, replace(options, hard=False))[1]


def test_the_tool_says_which_task_it_made(tmp_path):
    sizes = ["--size", "32", "--shortest", "2", "--longest", "3", "--quiet", "--train", "2", "--val", "1"]
    for extra, version in (([], "leantad-synthetic seed 0"), (["--hard"], "leantad-synthetic hard seed 0")):
        out = tmp_path / f"made{len(extra)}"
        result = CliRunner().invoke(main, ["--out", str(out), *sizes, *extra])
        assert result.exit_code == 0, result.output
        assert json.loads((out / "annotations.json").read_text())["version"] == version
        assert len(list((out / "videos").glob("*.mp4"))) == 3


# The plain task's pictures as they were first drawn; a changed one would change every figure in LOG.md.


def first_path(scenario: Scenario, rng: np.random.Generator, *, speed: float, spin: float) -> np.ndarray:
    """(num_frames, 3): texture offset x, y in pixels and angle in radians, frame by frame.

    Outside actions the actor rests, or jitters around its position.
    """
    step, jitter = np.zeros((scenario.num_frames, 3)), background_jitter(scenario, rng)
    for action in scenario.actions:
        inside = slice(round(action.start * scenario.fps), round(action.end * scenario.fps))
        *direction, period = MOTIONS[action.label]
        pace = np.full(inside.stop - inside.start, rng.uniform(0.8, 1.2))
        if period:
            pace *= np.sin(2 * np.pi * (np.arange(len(pace)) / period + rng.random()))
        step[inside] = pace[:, None] * np.array(direction) * (speed, speed, spin)
        jitter[inside] = 0
    step[:, :2] += np.diff(jitter[:, :2], axis=0, prepend=0) * speed
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(step[:, 2]) + jitter[:, 2] * spin
    # A step is in picture coordinates, the offset in those of the rotated texture: rotate back, then sum up.
    cos, sin = np.cos(angle), np.sin(angle)
    steps = np.stack([cos * step[:, 0] + sin * step[:, 1], -sin * step[:, 0] + cos * step[:, 1]], axis=1)
    offset = rng.uniform(0, TEXTURE_SIZE, size=2) + np.cumsum(steps, axis=0)
    return np.concatenate([offset, angle[:, None]], axis=1)


def first_render(scenario: Scenario, rng: np.random.Generator, *, size: int) -> Iterator[np.ndarray]:
    """The frames of the video, (size, size, 3) uint8, one at a time."""
    actor, ground = smooth_texture(rng, size / 3.5), smooth_texture(rng, size / 4)
    fliers = smooth_texture(rng, size / 6)
    path = first_path(scenario, rng, speed=size / 18, spin=0.2)
    drift = rng.uniform(-1, 1, size=2) * size / 96
    centre, radius = size / 2 + rng.uniform(-1, 1, size=2) * size / 16, size * rng.uniform(0.36, 0.44)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    distance = np.hypot(x - centre[0], y - centre[1])
    inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # soft edge
    rim = np.exp(-0.5 * ((distance - radius) / 1.2) ** 2)[..., None]
    flight = rng.uniform(0, size, size=2), rng.uniform(-1, 1, size=2) * size / 32
    for frame in range(scenario.num_frames):
        back = 0.5 * sample_periodic(ground, x + frame * drift[0], y + frame * drift[1])
        shift_x, shift_y, angle = path[frame]
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = x - centre[0], y - centre[1]
        # sampling the texture at (position - displacement) makes it move by the displacement
        face = sample_periodic(actor, cos * dx + sin * dy - shift_x, -sin * dx + cos * dy - shift_y)
        picture = back * (1 - inside) + face * inside
        picture = picture * (1 - rim) + 235.0 * rim
        # the small disc is outside the picture for a third of the time
        at = (flight[0] + frame * flight[1]) % (1.5 * size) - 0.25 * size
        spot = np.clip(size * 0.07 - np.hypot(x - at[0], y - at[1]) + 0.5, 0, 1)[..., None]
        picture = picture * (1 - spot) + sample_periodic(fliers, x, y) * spot
        yield np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def test_the_plain_task_is_equal_byte_for_byte_to_its_first_version():
    for number in range(3):
        scenario = draw_scenario(np.random.default_rng(number), fps=12, shortest=2, longest=4)
        now = render(scenario, np.random.default_rng([5, number]), size=32)
        first = first_render(scenario, np.random.default_rng([5, number]), size=32)
        assert np.array_equal(np.stack(list(now)), np.stack(list(first)))
