"""Pure arithmetic of time: windows of a video, frame numbers of clips, seconds to feature steps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Window = tuple[float, float]  # start and end in seconds


def windows_of(
    duration: float, *, window_seconds: float | None, overlap: float, pad: bool = False
) -> list[Window]:
    """Cut `duration` seconds into windows; together they cover all of it and none leaves it.

    `window_seconds` None, or a video no longer than it: one window, the whole video; with `pad` it is of that
    length all the same, and ends after the video. Otherwise windows of that length slide by `(1 - overlap)`
    of it, and the last one is aligned to the end of the video. `window_seconds` is above 0 and `overlap` in
    [0, 1), as DataSettings has them. Raises ValueError for a duration that is none.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration: got {duration}, want more than 0 seconds; check the video's entry")
    if window_seconds is None:
        return [(0.0, float(duration))]
    stride = window_seconds * (1 - overlap)
    # How many strides fit before the last window; 1e-9 of one is rounding, not a further window.
    count = math.ceil((duration - window_seconds) / stride - 1e-9)
    if count <= 0:
        return [(0.0, max(float(duration), float(window_seconds) if pad else 0.0))]
    starts = [i * stride for i in range(count)] + [duration - window_seconds]
    return [(start, min(start + window_seconds, duration)) for start in starts]


def clip_frame_numbers(
    window: Window,
    *,
    fps: float,
    num_frames: int,
    num_clips: int,
    clip_frames: int,
    stride_frames: int | None,
) -> NDArray[np.int64]:
    """Frame numbers of the clips that are spread evenly over `window`. Returns (N, L).

    Clip i is centred at `start + (i + 0.5) / N * length`, to within half a frame; frame f is on screen during
    [f, f + 1) / fps. Where a clip reaches over either end of the video the edge frame is repeated.
    stride_frames: from one frame of a clip to its next; None: the N * L frames are spread evenly over the
    window, each in the middle of its part, and repeated where there are fewer.
    """
    if fps <= 0 or num_frames < 1:
        raise ValueError(
            f"video: got {num_frames} frames at {fps} fps, want at least one frame and fps above 0"
        )
    start, end = window
    if stride_frames is None:
        count = num_clips * clip_frames
        seconds = start + (np.arange(count) + 0.5) / count * (end - start)
        spread = np.floor(seconds * fps).astype(np.int64).reshape(num_clips, clip_frames)
        return np.asarray(np.clip(spread, 0, num_frames - 1), dtype=np.int64)
    centres = start + (np.arange(num_clips) + 0.5) / num_clips * (end - start)
    span = stride_frames * (clip_frames - 1) + 1
    # The clip's middle is first + span / 2; floor(x + 0.5) and not round(), which rounds halves to even.
    first = np.floor(centres * fps - span / 2 + 0.5).astype(np.int64)
    frames = first[:, None] + stride_frames * np.arange(clip_frames, dtype=np.int64)
    return np.asarray(np.clip(frames, 0, num_frames - 1), dtype=np.int64)


def seconds_to_steps(t: ArrayLike, window: Window, num_steps: int) -> NDArray[np.float64]:
    """Seconds of the video to feature steps of `window`: its start is 0, its end `num_steps`."""
    start, end = window
    return np.asarray((np.asarray(t, dtype=np.float64) - start) * (num_steps / (end - start)))


def steps_to_seconds(x: ArrayLike, window: Window, num_steps: int) -> NDArray[np.float64]:
    """Feature steps of `window` to seconds of the video; the inverse of `seconds_to_steps`."""
    start, end = window
    return np.asarray(start + np.asarray(x, dtype=np.float64) * ((end - start) / num_steps))


def segments_in(
    segments: ArrayLike, window: Window, *, min_overlap: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The actions that are the ground truth of `window`, clipped to it.

    segments: (A, 2) start and end in seconds. An action counts if at least `min_overlap` of its own length
    lies inside (and some of it always must). Returns the clipped segments (A', 2) and their numbers (A',).
    """
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    clipped = np.clip(segments, *window)
    inside = clipped[:, 1] - clipped[:, 0]
    length = segments[:, 1] - segments[:, 0]
    kept = np.flatnonzero((inside > 0) & (inside >= min_overlap * length - 1e-9))
    return clipped[kept], kept
