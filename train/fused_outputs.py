"""Several raw files as one: the outputs of detectors for the same candidates, averaged.

As OpenTAD fuses predictions: the means of segments and scores of each candidate, window by window. Memory
holds one window of each file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.text import first_names, short
from train.postprocess import RawWindow
from train.raw_outputs import ARRAYS, read_raw, read_raw_header

ADVICE = "fuse runs that differ in seed or weights, not in data or detector settings"
CLOSE = 1e-3  # seconds by which times of the same window may differ


def read_fused_header(paths: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Class names and metadata, as the first file has them; ValueError if classes or videos differ."""
    classes, metadata = read_raw_header(paths[0])
    for path in paths[1:]:
        other, stated = read_raw_header(path)
        if other != classes:
            differ = first_names(sorted(set(other) ^ set(classes)) or ["the order of them"], quoted=False)
            raise ValueError(f"--from-raw {path}: other classes than {paths[0]} ({differ}); {ADVICE}")
        if missing := sorted(set(metadata.get("videos", ())) ^ set(stated.get("videos", ()))):
            differ = first_names(missing, quoted=False)
            raise ValueError(f"--from-raw {path}: other videos than {paths[0]} ({differ}); {ADVICE}")
    return classes, metadata


def read_fused(paths: Sequence[Path]) -> Iterator[RawWindow]:
    """The windows of the first file with the means of all; ValueError naming the first that differs."""
    for windows in zip_longest(*(read_raw(path) for path in paths)):
        first = windows[0]
        for path, other in zip(paths[1:], windows[1:], strict=True):
            difference = _difference(first, other)
            if difference:
                raise ValueError(f"--from-raw {path}: not as {paths[0]}: {difference}; {ADVICE}")
        means = {
            name: np.mean([getattr(window, name) for window in windows], axis=0, dtype=np.float32)
            for name in ARRAYS
        }
        yield replace(first, **means)


def _difference(first: RawWindow | None, other: RawWindow | None) -> str | None:
    """In what two windows are not of the same video, time and candidates; None: in nothing."""
    if first is None or other is None:
        return "one has more windows than the other"
    if other.key != first.key:
        return f"a window of video {short(other.key)} where that has one of {short(first.key)}"
    times = (*first.window, first.duration), (*other.window, other.duration)
    if not np.allclose(*times, rtol=0, atol=CLOSE):
        got, want = (f"{start:.2f} to {end:.2f} s" for start, end in (other.window, first.window))
        return f"video {short(first.key)} has a window of {got}, there it is {want}"
    sizes = {
        "steps": (first.num_steps, other.num_steps),
        "candidates": (len(first.segments), len(other.segments)),
    }
    for name, (want_size, got_size) in sizes.items():
        if want_size != got_size:
            return f"a window of video {short(first.key)} has {got_size} {name}, there {want_size}"
    return None
