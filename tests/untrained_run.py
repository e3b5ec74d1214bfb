"""A run of no steps, whose network detects in any video; shared by tests of predict and of the Python API."""

from __future__ import annotations

from pathlib import Path

from painted_video import painted_video
from tiny_run import SMALL

from train.build_network import build_network
from train.checkpoint import write_checkpoint
from train.settings import load_settings

CLASSES = ["jump", "run", "swim"]
PACKED = {"copy": False, "codec": "vp9", "fps": 10.0, "short_side": 24, "gop": 8, "upscale": False}
WINDOWS = {"data.window_seconds": 1.5}


def checkpoint(folder: Path, packing: dict = PACKED) -> Path:
    """The checkpoint of a run of no steps; returns the run folder."""
    sets = [f"{name}={value}" for name, value in {**SMALL, **WINDOWS, "data.shards": "gone"}.items()]
    settings = load_settings(Path("demo"), sets)
    state = build_network(settings, len(CLASSES)).state_dict()
    plain = settings.model_dump(mode="json")
    write_checkpoint(folder, 0, state=state, settings=plain, classes=CLASSES, packing=packing, progress={})
    return folder


def write_videos(folder: Path) -> Path:
    """Writes two videos that packing changes: H.264 with B-frames in Matroska, and VP9; 3.2 and 2 s."""
    first = painted_video(80, size=(48, 64), codec="libx264", container="matroska", fps=25)
    (folder / "first.mkv").write_bytes(first)
    (folder / "second.webm").write_bytes(painted_video(30, size=(48, 36), container="webm", fps=15))
    return folder
