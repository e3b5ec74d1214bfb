"""The harder built-in task: short and overlapping actions, a moving camera, something in the way.

The demo's task is solved (mAP@0.5 of 1.00), so it cannot tell a better detector from a worse one. Here the
same motions last from 1 to 40 seconds, the shortest a step or two of a long video; a slide and
a spin can happen at once; every fifth video is empty; and now and then a bar passes before the actor.
"""

from __future__ import annotations

import numpy as np

from pipeline.annotations import Action
from tools.synthetic.scene import CLASSES, Scenario, View

LENGTHS = (1.0, 40.0)  # seconds of an action, log-uniform
LARGEST_FRACTION = 0.8  # of the video, that one action takes
EMPTY = 0.2  # part of the videos without an action
MAX_ACTIONS = 8
MAY_OVERLAP = 0.5  # part of the actions that need not wait for one of another kind to end
GAP_SECONDS = 0.4  # between two actions that one motion of the actor could not do at once
PAN = 0.04  # the camera's excursions, as a fraction of the picture


def kind_of(label: str) -> str:
    """ "slide-left" -> "slide". The actor can do two motions at once if they are of two kinds."""
    return "spin" if label.startswith("spin") else "slide"  # a swing is a slide there and back


def draw_hard_scenario(rng: np.random.Generator, *, fps: int, shortest: float, longest: float) -> Scenario:
    """As `draw_scenario`, with up to 8 actions; a slide and a spin can overlap, two slides cannot."""
    num_frames = round(float(np.exp(rng.uniform(np.log(shortest), np.log(longest)))) * fps)
    duration = num_frames / fps
    wanted = 0 if rng.random() < EMPTY else int(rng.integers(1, MAX_ACTIONS + 1))
    actions: list[Action] = []
    for _ in range(wanted):
        length = min(float(np.exp(rng.uniform(*np.log(LENGTHS)))), LARGEST_FRACTION * duration)
        first = int(rng.integers(num_frames - round(length * fps) + 1))
        start, end = first / fps, (first + round(length * fps)) / fps  # whole frames: exact
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        may_overlap = rng.random() < MAY_OVERLAP
        free = all(
            end + GAP_SECONDS <= other.start or other.end + GAP_SECONDS <= start
            for other in actions
            if not may_overlap or kind_of(other.label) == kind_of(label)
        )
        if free:
            actions.append(Action(start, end, label))
    return Scenario(num_frames, fps, tuple(sorted(actions, key=lambda action: (action.start, action.end))))


def draw_view(rng: np.random.Generator, scenario: Scenario, *, size: int) -> View:
    """A camera that wanders smoothly, and a bar that passes within two seconds, every ten on average."""
    time = np.arange(scenario.num_frames)[:, None] / scenario.fps
    periods, phases = rng.uniform(4, 9, size=(2, 3)), rng.uniform(0, 2 * np.pi, size=(2, 3))
    waves = np.sin(2 * np.pi * time[..., None] / periods + phases).mean(-1)  # (num_frames, 2)
    bar = np.full(scenario.num_frames, -2.0 * size)  # outside the picture
    for _ in range(rng.poisson(scenario.duration / 10)):
        begin, frames = int(rng.integers(scenario.num_frames)), round(rng.uniform(1, 2) * scenario.fps)
        passing = np.linspace(-0.3, 1.3, frames)[:: rng.choice([-1, 1])] * size
        bar[begin : begin + frames] = passing[: scenario.num_frames - begin]
    return View(waves * PAN * size, bar, size * float(rng.uniform(0.1, 0.2)))
