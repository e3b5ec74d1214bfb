"""What a feature file states of its videos, as dataclasses, which are its schema too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, TypeAdapter

from ..annotations import Action
from ..records import KEY, Seconds, action_entry, keyed
from ..schemas import Count, Number, Table, Text, exact, validated
from ..text import short

FORMAT, VERSION = "leantad-features", 1
SUFFIX = ".h5"
AGAIN = "write it again with extract-features or import-features"
MOST_STEPS = 1 << 24  # features of one video: four a second for 48 days


@exact
@dataclass(frozen=True)
class FeatureVideo:
    """One video of a feature file: num_steps features, in even steps of time.

    duration: seconds; None: unknown. first, step: seconds of the video, the middle of its first feature, and
    from that of one feature to that of the next. source: its name in the annotations. A video without
    features has the reason in reject, and num_steps 0.
    """

    key: Text
    subset: Text
    duration: Seconds | None
    num_steps: Annotated[Count, Field(le=MOST_STEPS)]
    first: Annotated[Number, Field(ge=-1e9, le=1e9)]
    step: Annotated[Number, Field(ge=0, le=1e9)]
    actions: tuple[Annotated[Action, BeforeValidator(action_entry)], ...]
    source: Text
    reject: Text | None = None
    file: Text | None = None

    @property
    def where(self) -> str:
        """For messages, which name the file themselves."""
        return "features"

    @property
    def name(self) -> str:
        """For messages: the key, and the name in the annotations where that is another."""
        return self.key if self.source == self.key else f"{self.key} ({self.source})"

    def to_json(self) -> dict[str, Any]:
        """The entry in the file's description."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("key", "actions")}
        actions = [{"segment": [action.start, action.end], "label": action.label} for action in self.actions]
        return {**fields, "actions": actions}


class FeatureSource(Protocol):
    """What training, evaluation and prediction read features from."""

    @property
    def classes(self) -> Sequence[str]: ...

    def packed(self, subset: str) -> list[FeatureVideo]: ...

    def features(self, key: str, first: int, end: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class FeatureDescription:
    """What a feature file states beside its numbers; "settings" says what made them."""

    classes: tuple[Text, ...]
    num_features: Annotated[Count, Field(ge=1, le=1 << 20)]
    settings: Table
    videos: dict[Text, FeatureVideo]


_DESCRIPTION = TypeAdapter(FeatureDescription)


def read_description(document: Any, *, where: object) -> FeatureDescription:
    """Check the description of a feature file; ValueError naming `where` and the entry that is none."""
    if isinstance(document, dict) and isinstance(entries := document.get("videos"), dict):
        document = {**document, "videos": {key: keyed(key, entry) for key, entry in entries.items()}}
    description = validated(_DESCRIPTION, document, where=where, advice=AGAIN)
    classes = set(description.classes)
    if len(classes) < len(description.classes):
        raise ValueError(f"{where}: a class stands there twice, want each once; {AGAIN}")
    for video in description.videos.values():
        _check_video(video, classes, where)
    return description


def _check_video(video: FeatureVideo, classes: set[str], where: object) -> None:
    if not KEY.fullmatch(video.key):
        raise ValueError(f"{where}: key {short(video.key)}: want letters, digits, _ and - only; {AGAIN}")
    has_features = bool(video.num_steps and video.step and video.duration)
    if has_features is (video.reject is not None) or (video.reject and video.num_steps):
        raise ValueError(f"{where}: {video.key} has features, or a reason for having none; want one; {AGAIN}")
    unknown = next((action.label for action in video.actions if action.label not in classes), None)
    if unknown is not None:
        raise ValueError(
            f"{where}: {video.key} has an action {short(unknown)}, not one of its classes; {AGAIN}"
        )


def description_json(
    videos: Mapping[str, FeatureVideo], *, classes: Sequence[str], num_features: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """The plain values that `read_description` reads back."""
    return {
        "classes": list(classes),
        "num_features": num_features,
        "settings": settings,
        "videos": {key: video.to_json() for key, video in videos.items()},
    }


MADE_BY, PRECISION = "made_by", "precision"  # of "settings": they change no feature by more than rounding
LATER_FIELDS = ("beta", "leapfrog", "temporal")  # which files of earlier versions do not state
# Of "settings", what decides features, beside how the videos were packed.
FEATURE_FIELDS = (
    *LATER_FIELDS,
    "backbone",
    "weights_sha256",
    "num_clips",
    "clip_frames",
    "stride_frames",
    "resize",
    "crop",
    "window_seconds",
    "steps_per_clip",
    "num_features",
    "fps",
    "offset_frames",
    "rescaled",
)


def check_made_alike(here: Mapping[str, Any], there: Mapping[str, Any], *, where: object) -> None:
    """ValueError unless two feature files' `settings` say that their features were made in the same way.

    here: of the file `where`; there: of the one that weights were trained on; empty: nobody knows, as of a
    detector of another project. LATER_FIELDS are compared where both state them.
    """
    if not there:
        return
    left_out = {MADE_BY, PRECISION, *(set(LATER_FIELDS) - (here.keys() & there.keys()))}
    differ = [
        f"{name} {short(here.get(name))} here, {short(there.get(name))} there"
        for name in sorted({*here, *there} - left_out)
        if here.get(name) != there.get(name)
    ]
    if differ:
        raise ValueError(
            f"{where}: its features were made otherwise than those that the weights were trained on "
            f"({', '.join(differ[:3])}); make them in the same way, or train on these"
        )
