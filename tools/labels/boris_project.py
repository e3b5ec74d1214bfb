"""BORIS's projects (.boris): observations with events [time, subject, behavior, modifier, comment, frame].

From its config.py and project_functions.py: a behavior is a state or a point event as the ethogram
(behaviors_conf) says; the events of a state with one subject and modifier are starts and stops in turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from pipeline.files import parse_json

from .boris import NAMELESS, Events, Playlist, joined
from .labelled import (
    COMMENT,
    MODIFIER,
    NO_TIME,
    POINT,
    LabelFile,
    LabelledVideo,
    Loss,
    Report,
    label_names,
    lose_scores,
    remark_durations,
)
from .models import Number, Text, parsed
from .text_files import LARGEST_SECONDS, number, seconds_text

PICTURES = Loss("observation of pictures", "observations of pictures", "they are no video")
KEYS = "abcdefghijklmnopqrstuvwxyz0123456789"


class Behavior(BaseModel):
    """One row of the ethogram."""

    code: Text
    type: Text = ""


class MediaInfo(BaseModel):
    """Seconds of media files, by path."""

    length: dict[str, Number] = Field(default_factory=dict)


class Observation(BaseModel):
    """One observation: media files by player, the time at which it begins (seconds), and events."""

    file: dict[str, list[Text]] | list[Text] = Field(default_factory=dict)
    type: Text = "MEDIA"
    offset: Number | None = Field(default=None, alias="time offset")
    events: list[list[Any]] = Field(default_factory=list)
    media_info: MediaInfo = Field(default_factory=MediaInfo)
    media_creation_date_as_offset: bool = False

    @property
    def first_player(self) -> tuple[str, ...]:
        """The media files of the first player."""
        return tuple(self.file.get("1", []) if isinstance(self.file, dict) else self.file)


class Project(BaseModel):
    """A project file, as far as it is read."""

    behaviors_conf: dict[str, Behavior]
    observations: dict[str, Observation]


def is_project(document: Any) -> bool:
    """Whether a JSON document is a project of BORIS."""
    return isinstance(document, dict) and {"behaviors_conf", "observations"} <= document.keys()


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The state events of all observations of media files."""
    project = parsed(Project, parse_json(file.text, where=file.path), file.path)
    states = {each.code for each in project.behaviors_conf.values() if "STATE" in each.type.upper()}
    events = Events(file, report)
    for name, observation in project.observations.items():
        names = observation.first_player
        if observation.type.upper() == "IMAGES":
            report.lose(PICTURES)
            continue
        if not names:
            names = (name,)
            report.remark(NAMELESS)
        where = f"{file.path}: observation {name!r}"
        playlist = _playlist(observation, names, where)
        events.durations.update(observation.media_info.length)
        for media in names:
            events.videos.setdefault(media, [])
        _add_events(observation, name, playlist, states, events, where)
    return events.labelled()


def _playlist(observation: Observation, names: tuple[str, ...], where: str) -> Playlist:
    offset = observation.offset or 0.0
    if observation.media_creation_date_as_offset or abs(offset) > LARGEST_SECONDS:
        raise ValueError(f"{where}: its times are dates (creation date as offset); turn that off in BORIS")
    lengths = observation.media_info.length
    stated = all(media in lengths for media in names)
    return Playlist(names, tuple(lengths[media] for media in names) if stated else (), offset)


def _add_events(
    observation: Observation, name: str, playlist: Playlist, states: set[str], events: Events, where: str
) -> None:
    """Pair the events of an observation, in the order of their times."""
    timed_events: list[tuple[float, list[str]]] = []
    for event in observation.events:
        if len(event) < 3:
            raise ValueError(f"{where}: an event has {len(event)} fields, want time, subject, behavior")
        texts = ["" if field is None else str(field) for field in (*event[1:5], "", "")]
        subject, behavior, modifier, comment = texts[:4]
        if not events.wants(subject):
            continue
        events.report.lose(MODIFIER, modifier not in ("", "None"))
        events.report.lose(COMMENT, bool(comment))
        if behavior not in states:
            events.report.lose(POINT)
        elif event[0] is None or event[0] == "NA":
            events.report.lose(NO_TIME)
        elif not isinstance(event[0], (int, float, str)):
            raise ValueError(f"{where}: an event's time is {str(event[0])[:40]!r}, want seconds")
        else:
            timed_events.append((number(f"{where}: time", event[0]), [name, subject, behavior, modifier]))
    for time, key in sorted(timed_events, key=lambda item: item[0]):
        if tuple(key) not in events.begun:
            events.start(tuple(key), time)
        elif (begin := events.stop(tuple(key))) is not None:
            events.add(playlist, where, (begin, time), key[2], key[1])


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """A project with one observation per video; labels of one name that overlap are joined."""
    lose_scores(videos, report, "BORIS")
    remark_durations(videos, report, "BORIS asks for the media when it opens them")
    behaviors = {
        str(index): _behavior(label, KEYS[index] if index < len(KEYS) else "")
        for index, label in enumerate(label_names(videos))
    }
    project = {
        "time_format": "hh:mm:ss",
        "project_date": "1970-01-01T00:00:00",
        "project_name": "LeanTAD",
        "project_description": "",
        "project_format_version": "7.0",
        "subjects_conf": {},
        "behaviors_conf": behaviors,
        "observations": {video.name: _observation(video, report) for video in videos},
        "behavioral_categories": [],
        "independent_variables": {},
        "coding_map": {},
        "behaviors_coding_map": [],
        "converters": {},
    }
    return json.dumps(project, indent=1) + "\n"


def _behavior(label: str, key: str) -> dict[str, str]:
    empty = dict.fromkeys(("description", "category", "modifiers", "excluded", "coding map"), "")
    return {"type": "State event", "key": key, "code": label, **empty}


def _observation(video: LabelledVideo, report: Report) -> dict[str, Any]:
    events = []
    for item in joined(video.labels, report):
        events += [(item.start, 1, item.label), (item.end, 0, item.label)]  # a stop before the next start
    players = {str(player): [video.media] if player == 1 else [] for player in range(1, 9)}
    known = {"length": video.duration, "fps": video.fps and float(video.fps)}
    media_info: dict[str, Any] = {}
    for name, value in known.items():
        media_info[name] = {video.media: value} if value else {}
    return {
        "file": players,
        "type": "MEDIA",
        "date": "1970-01-01T00:00:00",
        "description": "",
        "time offset": 0.0,
        "events": [[float(seconds_text(time)), "", label, "", "", "NA"] for time, _, label in sorted(events)],
        "observation time interval": [0, 0],
        "independent_variables": {},
        "visualize_spectrogram": False,
        "visualize_waveform": False,
        "close_behaviors_between_videos": False,
        "media_info": {**media_info, "hasVideo": {video.media: True}, "hasAudio": {video.media: False}},
    }
