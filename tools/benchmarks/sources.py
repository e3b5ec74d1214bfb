"""The videos that benchmarks of the data path start from: files of a folder, or rendered ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.packing.encoder import encode_video
from pipeline.packing.video_folder import COMMON_SUFFIXES
from tools.synthetic.scene import draw_scenario, render


def files_of(folder: Path, count: int) -> list[Path]:
    """The first `count` videos directly in a folder, by name. ValueError if there is none."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in COMMON_SUFFIXES]
    if not files:
        raise ValueError(f"--videos: no video in {folder}, want a folder of video files")
    return files[:count]


def rendered(count: int, *, seconds: float, fps: int, size: int) -> Iterator[bytes]:
    """Built-in videos in H.264, `size` pixels wide and high; the same ones each time."""
    for seed in range(count):
        rng = np.random.default_rng([7, seed])
        scenario = draw_scenario(rng, fps=fps, shortest=seconds, longest=seconds)
        yield encode_video(render(scenario, rng, size=size), fps=fps, codec="h264")
