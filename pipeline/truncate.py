"""Random truncation: a training sample sees a part of its window, in which an action remains.

After ActionFormer's `truncate_feats` (Zhang et al., ECCV 2022), drawn from (seed, epoch, key, window) alone.
"""

from __future__ import annotations

from dataclasses import replace

from .order import stable_uniforms
from .samples import Sample
from .windows import segments_in

TRIES = 200  # as ActionFormer; then the window stays whole


def truncated(
    sample: Sample, *, seed: int, epoch: int, least: float, min_overlap: float, pad: bool
) -> Sample:
    """The sample with a random part of what its window shows of the video, from `least` of it to all.

    At least one of the window's actions keeps `min_overlap` of its own length, if there was any; a window
    without one is cut anywhere. pad: the window keeps its length, and ends behind what is shown.
    """
    start, end = sample.window[0], sample.shown_end
    actions = [(action.start, action.end) for action in sample.video.actions]
    has_actions = len(segments_in(actions, (start, end), min_overlap=min_overlap)[1]) > 0
    draws = stable_uniforms((TRIES, 2), "truncate", seed, epoch, sample.video.key, *map(float, sample.window))
    for of_length, of_start in draws.tolist():
        length = (end - start) * (least + (1 - least) * of_length)
        first = start + (end - start - length) * of_start
        part = (first, first + length)
        if not has_actions or len(segments_in(actions, part, min_overlap=min_overlap)[1]):
            window = (first, first + sample.window[1] - sample.window[0]) if pad else part
            return replace(sample, window=window, end=part[1])
    return sample
