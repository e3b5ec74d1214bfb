"""Renders one synthetic untrimmed video: a textured actor whose motion alone tells which action it performs.

The actor is a disc filled with a smooth random texture. Between actions it rests or jitters; in an action the
texture slides left or right, spins one way or the other, or swings. Every frame shows the same kind of disc
with a texture of uniformly random phase, so that a single frame does not tell the class, but the order of
frames does. A drifting textured background and a small disc that flies through the picture distract.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import Action

# Displacement of the actor's texture per frame: (right, down) in units of its speed, spin (clockwise +1), and
# the period in frames after which it has gone there and back (0: it goes on and on).
MOTIONS = {
    "slide-left": (-1.0, 0.0, 0.0, 0),
    "slide-right": (1.0, 0.0, 0.0, 0),
    "spin-left": (0.0, 0.0, -1.0, 0),
    "spin-right": (0.0, 0.0, 1.0, 0),
    "swing": (1.4, 0.0, 0.0, 6),
}
CLASSES = tuple(MOTIONS)
Floats = NDArray[np.floating]

TEXTURE_SIZE = 96  # pixels; textures are periodic, so they can be shifted for ever
MAX_ACTIONS = 6
ACTION_FRACTION = (0.08, 0.22)  # length of an action as a fraction of the video
MIN_ACTION_SECONDS = 0.7
GAP_FRACTION = 0.03  # least background before, between and after actions


@dataclass(frozen=True)
class View:
    """What comes between the actor and the eye, frame by frame, in pixels.

    pan: (num_frames, 2), where the camera looks, right and down. bar: (num_frames,), the middle of an upright
    bar that passes before all else; width: half of the bar's.
    """

    pan: Floats
    bar: Floats
    width: float


@dataclass(frozen=True)
class Scenario:
    """What happens in one video: its length in frames, frames per second, and its actions in rising order."""

    num_frames: int
    fps: int
    actions: tuple[Action, ...]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames / self.fps


def draw_scenario(rng: np.random.Generator, *, fps: int, shortest: float, longest: float) -> Scenario:
    """Draw a duration (log-uniform between `shortest` and `longest` seconds) and 0 to 6 separate actions."""
    duration = float(np.exp(rng.uniform(np.log(shortest), np.log(longest))))
    num_frames = round(duration * fps)
    duration = num_frames / fps
    wanted = 0 if rng.random() < 0.08 else int(rng.integers(1, MAX_ACTIONS + 1))
    lengths = np.maximum(rng.uniform(*ACTION_FRACTION, size=wanted) * duration, MIN_ACTION_SECONDS)
    gap = GAP_FRACTION * duration
    while lengths.sum() + gap * (len(lengths) + 1) > duration:  # short videos hold fewer actions
        lengths = lengths[:-1]
    spare = duration - lengths.sum() - gap * (len(lengths) + 1)
    gaps = gap + spare * rng.dirichlet(np.ones(len(lengths) + 1))
    starts = np.cumsum(gaps[:-1]) + np.concatenate([[0.0], np.cumsum(lengths)[:-1]])[: len(lengths)]
    actions = []
    for start, length in zip(starts, lengths, strict=True):
        first, last = round(start * fps), round((start + length) * fps)  # whole frames: exact
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        actions.append(Action(first / fps, last / fps, label))
    return Scenario(num_frames, fps, tuple(actions))


def smooth_texture(rng: np.random.Generator, wavelength: float) -> NDArray[np.float32]:
    """A periodic random texture (S, S, 3), float32 in 0..255, with details of about `wavelength` pixels."""
    frequency = np.fft.fftfreq(TEXTURE_SIZE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    band = np.exp(-0.5 * ((radius - 1 / wavelength) / (0.35 / wavelength)) ** 2)
    noise = rng.standard_normal((3, TEXTURE_SIZE, TEXTURE_SIZE))
    noise[1:] = 0.6 * noise[1:] + 0.8 * noise[:1]  # channels agree, so that luminance carries the texture
    field = np.fft.ifft2(np.fft.fft2(noise) * band).real
    field = field / field.std(axis=(1, 2), keepdims=True)
    texture: NDArray[np.float32] = np.clip(127.5 + 55.0 * field, 0, 255).transpose(1, 2, 0).astype(np.float32)
    return texture


def sample_periodic(texture: NDArray[np.float32], x: Floats, y: Floats) -> Floats:
    """Bilinear look-up of the periodic texture at (x, y) pixels; returns x.shape + (3,)."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    x0, y0 = x0 % TEXTURE_SIZE, y0 % TEXTURE_SIZE
    x1, y1 = (x0 + 1) % TEXTURE_SIZE, (y0 + 1) % TEXTURE_SIZE
    top = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    bottom = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    sampled: Floats = top * (1 - fy) + bottom * fy
    return sampled


def background_jitter(scenario: Scenario, rng: np.random.Generator) -> Floats:
    """(num_frames, 3) in -1..1: stretches of rest and of jitter (both happen in every longer video)."""
    jitter = np.zeros((scenario.num_frames, 3))
    frame = 0
    while frame < scenario.num_frames:
        stretch = int(rng.integers(scenario.fps // 2, 2 * scenario.fps))
        length = min(stretch, scenario.num_frames - frame)
        if rng.random() < 0.6:
            jitter[frame : frame + length] = rng.uniform(-1, 1, size=(length, 3))
        frame += stretch
    return jitter


def actor_path(scenario: Scenario, rng: np.random.Generator, *, speed: float, spin: float) -> Floats:
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


def render(
    scenario: Scenario, rng: np.random.Generator, *, size: int, view: View | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The frames of the video, (size, size, 3) uint8, one at a time; by default nothing hides the actor."""
    actor, ground = smooth_texture(rng, size / 3.5), smooth_texture(rng, size / 4)
    fliers = smooth_texture(rng, size / 6)
    path = actor_path(scenario, rng, speed=size / 18, spin=0.2)
    drift = rng.uniform(-1, 1, size=2) * size / 96
    centre, radius = size / 2 + rng.uniform(-1, 1, size=2) * size / 16, size * rng.uniform(0.36, 0.44)
    down, right = np.mgrid[:size, :size].astype(np.float64)
    flight = rng.uniform(0, size, size=2), rng.uniform(-1, 1, size=2) * size / 32
    for frame in range(scenario.num_frames):
        x, y = (right, down) if view is None else (right + view.pan[frame, 0], down + view.pan[frame, 1])
        back = 0.5 * sample_periodic(ground, x + frame * drift[0], y + frame * drift[1])
        shift_x, shift_y, angle = path[frame]
        cos, sin = np.cos(angle), np.sin(angle)
        dx, dy = x - centre[0], y - centre[1]
        # sampling the texture at (position - displacement) makes it move by the displacement
        face = sample_periodic(actor, cos * dx + sin * dy - shift_x, -sin * dx + cos * dy - shift_y)
        distance = np.hypot(dx, dy)
        inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # soft edge
        rim = np.exp(-0.5 * ((distance - radius) / 1.2) ** 2)[..., None]
        picture = back * (1 - inside) + face * inside
        picture = picture * (1 - rim) + 235.0 * rim
        # the small disc is outside the picture for a third of the time
        at = (flight[0] + frame * flight[1]) % (1.5 * size) - 0.25 * size
        spot = np.clip(size * 0.07 - np.hypot(x - at[0], y - at[1]) + 0.5, 0, 1)[..., None]
        picture = picture * (1 - spot) + sample_periodic(fliers, x, y) * spot
        if view is not None:
            hidden = (np.abs(right - view.bar[frame]) < view.width)[..., None]
            picture = np.where(hidden, sample_periodic(fliers, right, down), picture)
        yield np.clip(picture + 0.5, 0, 255).astype(np.uint8)
