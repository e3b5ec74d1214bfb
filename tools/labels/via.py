"""VIA 3, the VGG Image Annotator of videos: project files (JSON) and both tables that it exports (CSV).

From its CodeDoc and exporter: `z` of a metadata holds two times for a segment, one for a still frame, none
for the whole file; `xy` is a region of the picture; `av` holds the values of attributes, which for a
checkbox, radio or select attribute are ids of its options. A label is the value of an attribute of segments.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field

from pipeline.files import parse_json

from .labelled import (
    POINT,
    REGION,
    UNLABELLED,
    LabelFile,
    LabelledVideo,
    Loss,
    Report,
    TimedLabel,
    by_start,
    label_names,
    lose_empty,
    lose_scores,
    timed,
)
from .models import Number, Text, parsed
from .text_files import lines_of, number, seconds_text

ATTRIBUTE, SEGMENTS = "TEMPORAL-SEGMENTS", "FILE1_Z2_XY0"  # VIA's names for labels of segments
CHECKBOX, SELECT = 2, 4  # types of attributes
DELETED = 1  # a flag
VIDEO, AUDIO, ANY_TYPE = 4, 8, 0  # types of files
CREATOR = "VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)"
FULL_HEADER = "metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
DELETED_ENTRY = Loss("deleted entry", "deleted entries", "somebody deleted them in VIA")
WHOLE_FILE = Loss("label of a whole file", "labels of whole files", "it has no start and end")
MOMENTS = Loss("list of moments", "lists of moments", "z has neither one time nor two")
OTHER_FILE = Loss("further file of a view", "further files of views", "labels are those of the first")


class Attribute(BaseModel):
    """What labels can be: free text, or one or several of the options."""

    aname: Text = ATTRIBUTE
    anchor_id: Text = SEGMENTS
    type: int = 0
    options: dict[str, Text] = Field(default_factory=dict)

    def texts(self, value: str) -> list[str]:
        """The text, or those of the options, that a value stands for."""
        values = value.split(",") if self.type == CHECKBOX else [value]
        return [self.options.get(each.strip(), each) for each in values]


class Entry(BaseModel):
    """One metadata: what is labelled when."""

    vid: Text = ""
    flg: int = 0
    z: list[Number] = Field(default_factory=list)
    xy: list[Number] = Field(default_factory=list)
    av: dict[str, Text] = Field(default_factory=dict)


class MediaFile(BaseModel):
    """A file of a project."""

    fname: Text = ""
    src: Text = ""
    type: int = VIDEO


class View(BaseModel):
    """The files that are seen together."""

    fid_list: list[Text]


class Project(BaseModel):
    """A project file, as far as it is read."""

    attribute: dict[str, Attribute] = Field(default_factory=dict)
    file: dict[str, MediaFile]
    metadata: dict[str, Entry] = Field(default_factory=dict)
    view: dict[str, View]


def is_project(document: Any) -> bool:
    """Whether a JSON document is a project of VIA 3."""
    return isinstance(document, dict) and {"view", "file", "metadata"} <= document.keys()


def is_table(text: str) -> bool:
    """Whether a text is one of the tables that VIA 3 exports."""
    return any(line.lstrip('"').startswith("# CSV_HEADER") for line in lines_of(text)[:60])


class Segments:
    """Collects the labels of segments, and how many each attribute gave."""

    def __init__(self, file: LabelFile, report: Report, attributes: dict[str, Attribute]):
        self.file, self.report, self.attributes = file, report, attributes
        self.used: Counter[str] = Counter()

    def labels(self, entry: Entry) -> Iterable[TimedLabel]:
        """The labels of an entry; what is none is counted."""
        if entry.flg & DELETED:
            self.report.lose(DELETED_ENTRY)
        elif entry.xy:
            self.report.lose(REGION)
        elif len(entry.z) != 2:
            self.report.lose({0: WHOLE_FILE, 1: POINT}.get(len(entry.z), MOMENTS))
        else:
            yield from self._of_segment(entry)

    def _of_segment(self, entry: Entry) -> Iterable[TimedLabel]:
        names = {self._attribute(key).aname: (key, value) for key, value in entry.av.items() if value}
        if not names:
            self.report.lose(UNLABELLED)
        for name, (key, value) in names.items():
            for text in self._attribute(key).texts(value) if self.file.wants(name) else []:
                self.used[name] += 1
                yield from timed(self.report, entry.z[0], entry.z[1], text)

    def _attribute(self, key: str) -> Attribute:
        return self.attributes.get(key) or Attribute(aname=key)

    def remark(self) -> None:
        """Name the attributes that labels came from, if there were several; refuse an unknown --tier."""
        self.file.check_tiers([*self.used, *(each.aname for each in self.attributes.values())])
        self.report.remark_sources("attribute", self.used)


def read_project(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The segments of each view of a project; a view is called as its first file."""
    project = parsed(Project, parse_json(file.text, where=file.path), file.path)
    segments = Segments(file, report, project.attribute)
    labels: dict[str, list[TimedLabel]] = {}
    names: dict[str, str] = {}
    for vid, view in project.view.items():
        report.lose(OTHER_FILE, len(view.fid_list) - 1)
        first = project.file.get(view.fid_list[0]) if view.fid_list else None
        if first is not None and first.type in (VIDEO, AUDIO, ANY_TYPE):
            names[vid] = first.fname or first.src
            labels[vid] = []
    for entry in project.metadata.values():
        found = list(segments.labels(entry))
        if entry.vid in labels:
            labels[entry.vid] += found
        else:
            report.lose(Loss("label", "labels", "no video has them"), len(found))
    segments.remark()
    return [LabelledVideo(names[vid], by_start(found)) for vid, found in labels.items()]


def read_table(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The segments of a table: of "Export as CSV", or of only the temporal segments."""
    attributes: dict[str, Attribute] = {}
    header: list[str] = []
    segments = Segments(file, report, attributes)
    videos: dict[str, list[TimedLabel]] = {}
    for line_number, line in enumerate(lines_of(file.text), 1):
        where = f"{file.path}, line {line_number}"
        text = line.lstrip('"')
        if text.startswith("#"):
            attributes.update(_attributes_of(text, where))
            if "CSV_HEADER" in text:
                header = [cell.strip('# "') for cell in text.partition("=")[2].split(",")]
                header = [cell for cell in (cell.strip() for cell in header) if cell]
        elif text.strip():
            cells = next(csv.reader([line]))
            row = dict(zip(header, cells, strict=False))
            name, entry = _entry_of(row, where, report)
            videos.setdefault(name, []).extend(segments.labels(entry))
    segments.remark()
    return [LabelledVideo(name, by_start(found)) for name, found in videos.items()]


def _attributes_of(line: str, where: str) -> dict[str, Attribute]:
    """The attributes that a remark line of a table defines, by id; some versions write their names alone."""
    title, _, text = line.partition("=")
    if title.strip("# ") not in ("ATTRIBUTE", "ATTRIBUTES"):
        return {}
    document = parse_json(text.strip(), where=where)
    if not isinstance(document, dict):
        raise ValueError(f"{where}: want the attributes as a JSON object")
    return {
        key: Attribute(aname=value) if isinstance(value, str) else parsed(Attribute, value, where)
        for key, value in document.items()
    }


def _entry_of(row: dict[str, str], where: str, report: Report) -> tuple[str, Entry]:
    """(name of the video, entry) of a row."""
    files = parse_json(row.get("file_list") or "[]", where=f"{where}: file_list")
    if not isinstance(files, list) or not files or not isinstance(files[0], str):
        raise ValueError(f"{where}: file_list is {row.get('file_list', '')[:60]!r}, want a list of names")
    report.lose(OTHER_FILE, len(files) - 1)
    if "temporal_segment_start" in row:
        ends = [row["temporal_segment_start"], row.get("temporal_segment_end", "")]
        times: Any = [number(where, end) for end in ends if end.strip() not in ("", "undefined")]
    else:
        times = parse_json(row.get("temporal_coordinates") or "[]", where=f"{where}: temporal_coordinates")
    fields = {
        "z": times,
        "xy": parse_json(row.get("spatial_coordinates") or "[]", where=f"{where}: spatial_coordinates"),
        "av": parse_json(row.get("metadata") or "{}", where=f"{where}: metadata"),
    }
    return files[0], parsed(Entry, fields, where)


def write_project(videos: Sequence[LabelledVideo], report: Report) -> str:
    """A project with all videos, to open in VIA 3 beside them."""
    lose_scores(videos, report, "VIA")
    ids = {str(index): video for index, video in enumerate(videos, 1)}
    options = {label: label for label in label_names(videos)}
    attribute = {"aname": ATTRIBUTE, "anchor_id": SEGMENTS, "type": SELECT, "desc": "", "options": options}
    prefix = {str(index): "" for index in range(1, 5)}
    markers = {"pid": "__VIA_PROJECT_ID__", "rev": "__VIA_PROJECT_REV_ID__"}
    markers["rev_timestamp"] = "__VIA_PROJECT_REV_TIMESTAMP__"
    interface = {"file_content_align": "center", "file_metadata_editor_visible": True}
    interface |= {"spatial_metadata_editor_visible": False, "temporal_segment_metadata_editor_visible": True}
    interface |= {"spatial_region_label_attribute_id": "", "gtimeline_visible_row_count": "4"}
    empty: dict[str, Any] = {"flg": 0, "xy": []}
    project = {
        "project": {**markers, "pname": "LeanTAD", "creator": CREATOR, "created": 0, "vid_list": list(ids)},
        "config": {"file": {"loc_prefix": prefix}, "ui": interface},
        "attribute": {"1": {**attribute, "default_option_id": ""}},
        "file": {
            index: {"fid": index, "fname": video.name, "type": VIDEO, "loc": 1, "src": ""}
            for index, video in ids.items()
        },
        "metadata": {
            f"{index}_{number_:08d}": {**empty, "vid": index, "z": _times(item), "av": {"1": item.label}}
            for index, video in ids.items()
            for number_, item in enumerate(video.labels, 1)
        },
        "view": {index: {"fid_list": [index]} for index in ids},
    }
    return json.dumps(project) + "\n"


def write_table(videos: Sequence[LabelledVideo], report: Report) -> str:
    """VIA's table of all videos; one without labels has no row in it."""
    lose_scores(videos, report, "VIA")
    lose_empty(videos, report, "VIA's table has rows of labels")
    lines = [f"# Exported using {CREATOR}", f"# ATTRIBUTES = {json.dumps({'1': ATTRIBUTE})}"]
    lines.append(f"# CSV_HEADER = {FULL_HEADER}")
    for index, video in enumerate(videos, 1):
        for number_, item in enumerate(video.labels, 1):
            cells = [f"{index}_{number_:08d}", json.dumps([video.name]), 0, json.dumps(_times(item)), "[]"]
            lines.append(",".join(_quoted(cell) for cell in [*cells, json.dumps({"1": item.label})]))
    return "\n".join(lines) + "\n"


def _quoted(cell: object) -> str:
    return str(cell) if isinstance(cell, int) else '"' + str(cell).replace('"', '""') + '"'


def _times(item: TimedLabel) -> list[float]:
    return [float(seconds_text(item.start)), float(seconds_text(item.end))]
