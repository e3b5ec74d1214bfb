"""The harder built-in task: more and similar motions, seen by a moving camera, partly hidden, of any length.

The actor and its textures are those of scene.py. What is harder: seven motions, of which some differ in
direction or axis alone; actions of 0.4 to 16 s (40-fold), two of which may overlap where one moves
the texture and the other turns it; for most of the time nothing happens, in a fifth of the videos all the
time; the camera sways, and a bar passes in front of the actor.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import Action
from tools.synthetic.scene import (
    MOTIONS,
    Floats,
    Motion,
    Scenario,
    Stage,
    as_bytes,
    sample_periodic,
    smooth_texture,
)

HARD_MOTIONS: dict[str, Motion] = {
    **MOTIONS,
    "nod": (0.0, 1.4, 0.0, 6),
    "wobble": (0.0, 0.0, 1.4, 6),
}
ACTION_SECONDS = (0.4, 16.0)  # 40-fold
EMPTY_VIDEOS = 0.2  # share of the videos in which nothing happens
MAX_ACTIONS = 8
MAX_SHARE = 0.5  # of a video that one action lasts at most
LEAST_GAP = 0.4  # seconds between actions that do not overlap
OVERLAPS = 0.25  # share of the actions that may begin within another
TRIES = 20  # to place an action before it is left out


def _turns(label: str) -> bool:
    return HARD_MOTIONS[label][2] != 0


def _fits(action: Action, others: list[Action], *, overlap: bool) -> bool:
    """Whether the action is apart from all others; with `overlap`: from all but one, of the other kind."""
    near = [
        other
        for other in others
        if action.start < other.end + LEAST_GAP and other.start < action.end + LEAST_GAP
    ]
    if not near:
        return not overlap
    one = near[0]
    crosses = action.start < one.end and one.start < action.end
    return overlap and len(near) == 1 and crosses and _turns(one.label) != _turns(action.label)


def draw_hard_scenario(rng: np.random.Generator, *, fps: int, shortest: float, longest: float) -> Scenario:
    """Draw a duration (log-uniform between `shortest` and `longest` seconds) and 0 to 8 actions."""
    num_frames = round(float(np.exp(rng.uniform(np.log(shortest), np.log(longest)))) * fps)
    wanted = 0 if rng.random() < EMPTY_VIDEOS else int(rng.integers(1, MAX_ACTIONS + 1))
    actions: list[Action] = []
    most = max(ACTION_SECONDS[0], min(ACTION_SECONDS[1], MAX_SHARE * num_frames / fps))
    for _ in range(wanted):
        label = tuple(HARD_MOTIONS)[int(rng.integers(len(HARD_MOTIONS)))]
        overlap = rng.random() < OVERLAPS
        frames = max(1, round(float(np.exp(rng.uniform(np.log(ACTION_SECONDS[0]), np.log(most)))) * fps))
        for first in rng.integers(0, max(1, num_frames - frames), size=TRIES).tolist():
            action = Action(first / fps, min(first + frames, num_frames) / fps, label)  # whole frames: exact
            if _fits(action, actions, overlap=overlap and bool(actions)):
                actions.append(action)
                break
    return Scenario(num_frames, fps, tuple(sorted(actions, key=lambda action: (action.start, action.end))))


def camera_path(scenario: Scenario, rng: np.random.Generator, size: int) -> Floats:
    """(num_frames, 2): where the camera is, in pixels; two slow swings a direction."""
    seconds = np.arange(scenario.num_frames)[:, None, None] / scenario.fps
    periods = rng.uniform(3.0, 9.0, size=(2, 2))  # seconds
    phases = rng.uniform(0, 2 * np.pi, size=(2, 2))
    path: Floats = np.sin(2 * np.pi * seconds / periods + phases).sum(2) * size / 48
    return path


def render_hard(scenario: Scenario, rng: np.random.Generator, *, size: int) -> Iterator[NDArray[np.uint8]]:
    """The frames of the video, (size, size, 3) uint8, one at a time."""
    stage = Stage.draw(scenario, rng, HARD_MOTIONS, size)
    camera, bark = camera_path(scenario, rng, size), smooth_texture(rng, size / 8)
    width, pace, begin = size * rng.uniform(0.12, 0.24), rng.uniform(0.2, 0.5) * size, rng.uniform(0, 1)
    upright = bool(rng.integers(2))
    y, x = np.mgrid[:size, :size].astype(np.float64)
    for frame in range(scenario.num_frames):
        seen_x, seen_y = x + camera[frame, 0], y + camera[frame, 1]
        picture = stage.picture(frame, seen_x, seen_y)
        # the bar crosses the picture in `size / pace` seconds, and is away for twice as long
        at = (begin * 3 * size + frame * pace / scenario.fps) % (3 * size)
        along = seen_x if upright else seen_y
        hidden = np.clip(width / 2 - np.abs(along - at) + 0.5, 0, 1)[..., None]
        bar = 0.7 * sample_periodic(bark, seen_x - at * upright, seen_y - at * (not upright))
        yield as_bytes(picture * (1 - hidden) + bar * hidden)
