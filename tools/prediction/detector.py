"""A trained network as a Python object, and the detections that calling it gives.

Imports nothing heavy: `import leantad` imports this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tools.prediction.errors import one_line_errors

if TYPE_CHECKING:
    import pandas

    from train.detections import DetectionsFile, VideoDetections
    from train.inference import TrainedNetwork


@dataclass(frozen=True)
class Detection:
    """One detected action: start and end in seconds from the first displayed frame."""

    video: str
    label: str
    start: float
    end: float
    score: float


class Detections(Sequence[Detection]):
    """Detections in one or several videos: video after video, the best first in each.

    A sequence of `Detection`; `to_pandas()` makes a table of it, `save(folder)` writes what `leantad predict`
    writes.
    """

    def __init__(self, found: Sequence[VideoDetections], *, metadata: Mapping[str, Any]):
        self._found, self._metadata = tuple(found), metadata
        self._detections = tuple(
            Detection(video.key, entry["label"], entry["segment"][0], entry["segment"][1], entry["score"])
            for video in found
            for entry in video.detections
        )

    @property
    def videos(self) -> tuple[str, ...]:
        """The names of all videos, also of those without detections."""
        return tuple(video.key for video in self._found)

    @property
    def durations(self) -> dict[str, float]:
        """The seconds of each video that could be read."""
        return {video.key: video.duration for video in self._found if video.duration is not None}

    @property
    def rejected(self) -> dict[str, str]:
        """Why videos could not be read, by name; empty if all could."""
        return {video.key: video.reason for video in self._found if video.reason is not None}

    def to_pandas(self) -> pandas.DataFrame:
        """A table with the columns video, label, start, end, score. ValueError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ValueError("to_pandas: pandas is not installed; pip install pandas") from None
        columns = [field.name for field in fields(Detection)]
        return pandas.DataFrame([asdict(detection) for detection in self], columns=columns)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write detections.json, detections.csv and subtitles, as `leantad predict --out folder` does.

        force: replace results that are there. Returns the folder. ValueError if results are there already.
        """
        from pipeline.lock import writing_folder
        from train.detections import check_outputs, write_outputs

        out = Path(folder)
        with writing_folder(out, "predict"):
            check_outputs(out, self.videos, force=force)
            write_outputs(out, self._found, metadata=self._metadata)
        return out

    def as_file(self) -> DetectionsFile:
        """The same as a detections.json holds it."""
        from train.detections import detections_file

        return detections_file(self._found, metadata=self._metadata)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Detection, ...]: ...
    def __getitem__(self, index: int | slice) -> Detection | tuple[Detection, ...]:
        return self._detections[index]

    def __iter__(self) -> Iterator[Detection]:
        return iter(self._detections)

    def __len__(self) -> int:
        return len(self._detections)

    def __repr__(self) -> str:
        unread = f", {len(self.rejected)} not read" if self.rejected else ""
        return f"<Detections: {len(self)} in {len(self.videos)} videos{unread}>"


class Detector:
    """A trained network that detects actions in video files when it is called; `leantad.load` makes it."""

    def __init__(self, trained: TrainedNetwork, *, quiet: bool = False):
        self._trained, self._quiet = trained, quiet

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that it knows."""
        return self._trained.classes

    @property
    def checkpoint(self) -> Path:
        """The checkpoint folder or model file that its weights are from."""
        return self._trained.source

    @one_line_errors
    def __call__(
        self,
        *videos: str | Path | Iterable[str | Path],
        min_score: float = 0.0,
        auto_threshold: bool = False,
        top: int | None = None,
        classes: Iterable[str] | None = None,
    ) -> Detections:
        """The detections in files, in folders of them (at any depth), or in what globs match.

        videos: names, or lists of names. min_score: leave out what scores less. auto_threshold: leave out, of
        each class, what scores less than where its F1 was best in validation. top: the best so many of each
        video. classes: these only. A file that cannot be used is named on stderr and in `rejected`;
        ValueError if none can be used.
        """
        from tools.prediction.detect import auto_thresholds, detect_in_files, metadata_of
        from tools.prediction.features import find_inputs
        from train.cli import Output
        from train.detections import Selection

        output = Output(self._quiet)
        thresholds = auto_thresholds(self._trained, output) if auto_threshold else {}
        selection = Selection(_known(classes, self.classes), min_score, top, thresholds)
        files = find_inputs([name for given in videos for name in _names(given)])
        if not files:
            raise ValueError("no video given, want files, folders of them, or globs")
        found = detect_in_files(self._trained, files, selection, output=output)
        if all(video.reason is not None for video in found):
            raise ValueError(
                f"none of the {len(found)} files could be read; {found[0].file}: {found[0].reason}"
            )
        return Detections(found, metadata=metadata_of(self._trained, files, thresholds))

    def __repr__(self) -> str:
        return f"<Detector: {self.checkpoint}, classes {', '.join(self.classes)}>"


def _names(given: str | Path | Iterable[str | Path]) -> list[str]:
    """A path, or several, as text."""
    return [str(path) for path in ([given] if isinstance(given, (str, Path)) else given)]


def _known(names: Iterable[str] | None, known: Sequence[str]) -> frozenset[str] | None:
    """The names of classes; ValueError with a suggestion for one that the network does not know."""
    from pipeline.text import suggestion

    if names is None:
        return None
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"classes: {name!r} is no class of this checkpoint; {suggestion(name, known)}")
    return frozenset(chosen)
