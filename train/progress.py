"""Where a run stands: what every checkpoint says of it, and the lines of log.jsonl, with their schemas."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from pipeline.files import parse_json
from pipeline.schemas import Count, Number, Table, Text, exact, validated

Logged = Annotated[float, Strict()]  # of a step: NaN where a loss diverged
Fraction = Annotated[Number, Field(ge=0, le=1)]


def _with_keys(*names: str) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        if value.keys() != set(names):
            raise ValueError(f"want {' and '.join(names)} in it")
        return value

    return AfterValidator(check)


Seconds = Annotated[dict[str, Number], _with_keys("train", "eval")]
LoaderPosition = Annotated[dict[str, Count], _with_keys("epoch", "step")]


@exact
@dataclass
class Progress:
    """Where a run stands; written into every checkpoint."""

    step: Count = 0  # optimizer steps done, which is also the number of the next one, counted from 0
    best: Number = -1.0  # highest average mAP so far
    seconds: Seconds = field(default_factory=lambda: {"train": 0.0, "eval": 0.0})
    loader: LoaderPosition = field(default_factory=lambda: {"epoch": 0, "step": 0})  # the next batch
    metrics: Table = field(default_factory=dict)  # of the last evaluation
    samples: Count = 0  # of training, in a pass over the data; 0: an earlier version did not keep it
    windows: str = ""  # a digest of those samples, see train.data; "": an earlier version did not keep it
    validation_due: Annotated[bool, Strict()] = False  # of these weights, before the next step
    actions: str = ""  # a summary of those to learn from, see train.data; "": as above
    ground_truth: str = ""  # of those to validate on


PROGRESS = TypeAdapter(Progress)


@with_config(ConfigDict(extra="allow"))
class Metrics(TypedDict):
    """What the report shows of an evaluation; what else it measured stays beside it."""

    protocol: Text
    tiou: Annotated[list[Fraction], Field(min_length=1)]
    mAP: Annotated[list[Fraction], Field(min_length=1)]
    average_mAP: Fraction
    per_class: dict[Text, list[Fraction]]
    num_videos: Count
    num_truth: Count
    num_detections: Count
    seconds: NotRequired[dict[Text, Number]]


_METRICS = TypeAdapter(Metrics)


def checked_metrics(value: object, *, where: object) -> dict[str, Any]:
    """The metrics of an evaluation checked; ValueError naming the file and what is wrong."""
    advice = "evaluate again, or remove the file"
    found: Any = validated(_METRICS, value, where=where, advice=advice)
    if {len(values) for values in (found["mAP"], *found["per_class"].values())} != {len(found["tiou"])}:
        raise ValueError(f"{where}: got other numbers of mAP than of tiou; {advice}")
    return found  # type: ignore[no-any-return]


@with_config(ConfigDict(extra="allow"))
class Event(TypedDict):
    """A line of log.jsonl; "train" has all from `step` on but metrics, "eval" step, epoch and metrics."""

    event: Text
    time: NotRequired[Annotated[Number, Field(ge=0, le=1e11)]]
    step: NotRequired[Count]
    epoch: NotRequired[Number]
    loss: NotRequired[Logged | None]
    parts: NotRequired[dict[Text, Logged | None]]
    step_seconds: NotRequired[Annotated[Number, Field(ge=0)]]
    data_seconds: NotRequired[Annotated[Number, Field(ge=0)]]
    memory_mib: NotRequired[Annotated[Number, Field(ge=0)]]
    metrics: NotRequired[Metrics]
    world_size: NotRequired[Count]
    device: NotRequired[Text]
    complete: NotRequired[Annotated[bool, Strict()]]


_EVENT = TypeAdapter(Event)
NEEDED = {"train": ("step",), "eval": ("epoch", "metrics")}  # what the report cannot do without


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of log.jsonl that are sound, and how many are not.

    A kill may cut the last one in half, which does not count. Without the file there are none.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    events, damaged = [], 0
    for number, line in enumerate(lines, 1):
        try:
            events.append(_event_of(line, where=path))
        except (ValueError, ValidationError):
            damaged += number < len(lines)
    return events, damaged


def _event_of(line: bytes, *, where: object) -> dict[str, Any]:
    event = parse_json(line, where=where)
    _EVENT.validate_python(event)  # which would put its keys in another order
    missing = [name for name in NEEDED.get(event["event"], ()) if name not in event]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    if "metrics" in event:
        checked_metrics(event["metrics"], where=where)
    return event  # type: ignore[no-any-return]
