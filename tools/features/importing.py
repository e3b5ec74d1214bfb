"""Makes a feature file of another project's features and an annotation file: names, layout, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations import Video, repair_actions
from pipeline.features.records import MADE_BY, PRECISION, FeatureVideo
from pipeline.packing.shard_writer import unique_keys
from pipeline.text import counted, first_names
from tools.features.foreign import ForeignFile
from train.evaluation.video_names import match_videos

Layout = Literal["tc", "ct"]
LAYOUTS: dict[Layout, str] = {"tc": "time x channels", "ct": "channels x time"}
SLACK = 0.05  # of a video, by which the end of its features may miss its own; a clip and a stride besides
FITS = 1.25  # by which the seconds that features span may differ from those of their videos, in the middle


@dataclass(frozen=True)
class Timing:
    """When features are: rescaled to evenly cover each video, or every `stride` frames of `fps` a second.

    clip_frames: that a feature is made of, so that the middle of the first is clip_frames / 2 + offset frames
    from the beginning. None of the four if rescaled.
    """

    stride: float | None
    fps: float | None
    clip_frames: float | None
    offset: float

    @staticmethod
    def of_options(
        *, rescaled: bool, stride: float | None, fps: float | None, clip_frames: float | None, offset: float
    ) -> Timing:
        """ValueError unless the options state the times, in one of the two ways."""
        if rescaled and (stride or fps or clip_frames or offset):
            raise ValueError("--rescaled: evenly covers the video; want no --stride, --fps, --clip-frames")
        if not rescaled and not (stride and fps):
            raise ValueError(
                "want --stride and --fps, frames from one feature to the next and frames a second, or "
                "--rescaled, where each video's features were interpolated to evenly cover it"
            )
        return Timing(stride, fps, clip_frames or stride, offset)

    def times(self, num_steps: int, duration: float | None) -> tuple[float, float]:
        """Seconds of the first feature's middle, and from one to the next. duration: None if not stated."""
        if self.stride is None or self.fps is None:
            assert duration is not None, "rescaled features of a video of a stated duration"
            step = duration / num_steps
            return step / 2, step
        return ((self.clip_frames or 0) / 2 + self.offset) / self.fps, self.stride / self.fps

    def end(self, num_steps: int) -> float:
        """Seconds at which the frames of the last feature end, or its step if that is later."""
        assert self.fps is not None, "rescaled features of a video of a stated duration"
        first, step = self.times(num_steps, None)
        return max(first + (num_steps - 1) * step + (self.clip_frames or 0) / 2 / self.fps, num_steps * step)

    def settings(self) -> dict[str, Any]:
        """As the feature file states it."""
        if self.stride is None or self.fps is None:
            return {"rescaled": True}
        return {
            "stride_frames": self.stride,
            "fps": self.fps,
            "clip_frames": self.clip_frames or 0,
            "offset_frames": self.offset,
        }


# ---------------------------------------------------------------------------------------------- the layout


def guess_layout(
    shapes: Mapping[str, tuple[int, ...]], durations: Mapping[str, float | None], timing: Timing
) -> Layout:
    """Which axis is time: the one whose length differs where the other's does not, or fits the durations.

    shapes, durations: by video. ValueError if that leaves both, or neither.
    """
    lengths = [{shape[axis] for shape in shapes.values()} for axis in (0, 1)]
    is_constant = [len(found) == 1 for found in lengths]
    if is_constant[0] is not is_constant[1]:
        return "tc" if is_constant[1] else "ct"
    if not is_constant[0]:
        (one, first), (other, second) = list(shapes.items())[:2]
        raise ValueError(
            f"features of {one} are {first}, of {other} {second}, and neither axis has one length in all "
            "files, as channels have; want features of one width"
        )
    fits = [_time_fits(axis, shapes, durations, timing) for axis in (0, 1)]
    if fits[0] is not fits[1]:
        return "tc" if fits[0] else "ct"
    raise ValueError(
        f"all features are {next(iter(shapes.values()))}, so that either axis may be time; say which with "
        "--layout tc (time x channels) or --layout ct"
    )


def _time_fits(
    axis: int, shapes: Mapping[str, tuple[int, ...]], durations: Mapping[str, float | None], timing: Timing
) -> bool:
    """Whether so many features, at the stated times, span the videos whose durations are known."""
    spans = spanned({key: shape[axis] for key, shape in shapes.items()}, durations, timing)
    return bool(spans) and 1 / FITS < median(spans) < FITS


def spanned(
    num_steps: Mapping[str, int], durations: Mapping[str, float | None], timing: Timing
) -> list[float]:
    """The share of each video that its features span; of none, if they are rescaled to span all."""
    if timing.stride is None or timing.fps is None:
        return []
    step = timing.stride / timing.fps
    return [count * step / duration for key, count in num_steps.items() if (duration := durations.get(key))]


# ----------------------------------------------------------------------------------------------- the videos


@dataclass(frozen=True)
class Import:
    """Annotated videos with the features of each, in one layout, at stated times.

    files: by the video's name in the annotations; the others are missing. unused: files of no such video.
    """

    videos: dict[str, Video]
    files: dict[str, ForeignFile]
    unused: tuple[str, ...]
    timing: Timing
    layout: Layout
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def plan(
        found: Mapping[str, ForeignFile], videos: dict[str, Video], timing: Timing, layout: Layout | None
    ) -> Import:
        """Match names and find out the layout, which reads all files. ValueError if that cannot be."""
        pairs = match_videos(dict.fromkeys(found, ()), dict.fromkeys(videos, ()))
        files = {pairs[name]: file for name, file in found.items() if name in pairs}
        if not files:
            raise ValueError(
                f"none of the features is of an annotated video: files are {first_names(found)}, videos "
                f"{first_names(videos)}; want the same names, but for folders, endings and v_"
            )
        shapes = {key: file.read().shape for key, file in files.items()}
        durations = {key: videos[key].duration for key in files}
        layout = layout or guess_layout(shapes, durations, timing)
        unused = tuple(name for name in found if name not in pairs)
        planned = Import(videos, files, unused, timing, layout, shapes)
        planned._check_times(durations)
        return planned

    def _check_times(self, durations: Mapping[str, float | None]) -> None:
        """ValueError where the times that were stated cannot be those of the features."""
        if self.timing.stride is None:
            unknown = [key for key, duration in durations.items() if duration is None]
            if unknown:
                raise ValueError(
                    f"--rescaled: {counted(len(unknown), 'video')} without a duration in the annotations: "
                    f"{first_names(unknown)}; state it, or --stride and --fps"
                )
            return
        spans = spanned({key: self.num_steps(key) for key in self.files}, durations, self.timing)
        if spans and not 1 / FITS < median(spans) < FITS:
            raise ValueError(
                f"--stride, --fps: the features would span {median(spans):.2f} of a video (the median of "
                f"{len(spans)}), want about 1; is the stride or the rate another, or the layout not "
                f"{LAYOUTS[self.layout]}?"
            )

    @property
    def misfits(self) -> dict[str, float]:
        """The part of their video that features reach to, at the stated times, of those that miss its end."""
        if self.timing.stride is None or self.timing.fps is None:
            return {}
        clip = (self.timing.stride + (self.timing.clip_frames or 0)) / self.timing.fps
        stated = {key: self.videos[key].duration for key in self.files}
        ends = {key: (self.timing.end(self.num_steps(key)), end) for key, end in stated.items() if end}
        return {key: own / end for key, (own, end) in ends.items() if abs(own - end) > SLACK * end + clip}

    @property
    def missing(self) -> list[str]:
        """Annotated videos without features."""
        return [key for key in self.videos if key not in self.files]

    @property
    def num_features(self) -> int:
        """Channels of a feature."""
        return next(iter(self.shapes.values()))[1 if self.layout == "tc" else 0]

    def num_steps(self, name: str) -> int:
        """Features of a video."""
        return self.shapes[name][0 if self.layout == "tc" else 1]

    def settings(self, precision: str) -> dict[str, Any]:
        """The "settings" of the feature file."""
        decisive = {"num_features": self.num_features, **self.timing.settings()}
        return {MADE_BY: "import-features", PRECISION: precision, **decisive}

    def classes(self) -> list[str]:
        """The labels of all actions, sorted."""
        return sorted({action.label for video in self.videos.values() for action in video.actions})

    def entries(self, repairs: Counter[str]) -> Iterator[tuple[FeatureVideo, NDArray[Any] | None]]:
        """What the feature file states of each video, and its features (T, D).

        repairs: counts, by kind, what of the actions was corrected.
        """
        keys = unique_keys(self.videos)
        for name, video in self.videos.items():
            features = self.files[name].read() if name in self.files else None
            num_steps, first, step, duration = 0, 0.0, 0.0, video.duration
            if features is not None:
                features = features if self.layout == "tc" else np.ascontiguousarray(features.T)
                num_steps = len(features)
                first, step = self.timing.times(num_steps, duration)
                duration = duration or self.timing.end(num_steps)
            actions, corrected = repair_actions(video, duration)
            repairs.update(repair.kind for repair in corrected)
            reject = "no features among those imported" if features is None else None
            entry = FeatureVideo(
                key=keys[name],
                subset=video.subset,
                duration=duration,
                num_steps=num_steps,
                first=first,
                step=step,
                actions=actions,
                source=name,
                reject=reject,
            )
            yield entry, features
