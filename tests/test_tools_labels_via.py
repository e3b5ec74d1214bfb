"""VIA 3: projects, both tables, values of attributes, and what is no segment."""

from __future__ import annotations

import copy
import json

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.labelled import LabelledVideo, TimedLabel
from tools.labels.via import is_table

PROJECT = {
    "project": {"pid": "__VIA_PROJECT_ID__", "pname": "days", "vid_list": ["1", "2", "3"]},
    "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
    "attribute": {
        "1": {"aname": "Activity", "anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "",
              "options": {"0": "walk", "1": "sit down"}, "default_option_id": ""},
        "2": {"aname": "Hands", "anchor_id": "FILE1_Z2_XY0", "type": 2,
              "options": {"l": "left", "r": "right"}},
        "3": {"aname": "Object", "anchor_id": "FILE1_Z1_XY1", "type": 1, "options": {}},
    },
    "file": {
        "1": {"fid": "1", "fname": "day1.mp4", "type": 4, "loc": 1, "src": ""},
        "2": {"fid": 2, "fname": "", "type": 4, "loc": 2, "src": "https://x.org/v/day2.mp4"},
        "3": {"fid": "3", "fname": "still.jpg", "type": 2, "loc": 1, "src": ""},
    },
    "metadata": {
        "1_a": {"vid": "1", "flg": 0, "z": [1.5, 3.25], "xy": [], "av": {"1": "0"}},
        "1_b": {"vid": "1", "flg": 0, "z": ["2", 4], "xy": [], "av": {"1": "1", "2": "l,r"}},
        "1_c": {"vid": "1", "flg": 0, "z": [5.5], "xy": [], "av": {"1": "0"}},
        "1_d": {"vid": "1", "flg": 0, "z": [6], "xy": [2, 10, 20, 50, 80], "av": {"3": "cup"}},
        "1_e": {"vid": "1", "flg": 0, "z": [], "xy": [], "av": {}},
        "1_f": {"vid": "1", "flg": 0, "z": [1, 2, 3, 4], "xy": [], "av": {"1": "0"}},
        "1_g": {"vid": "1", "flg": 1, "z": [7, 8], "xy": [], "av": {"1": "0"}},
        "1_h": {"vid": "1", "flg": 0, "z": [7, 8], "xy": [], "av": {}},
        "1_i": {"vid": "1", "flg": 0, "z": [9, 8], "xy": [], "av": {"1": "0"}},
        "2_a": {"vid": "2", "flg": 0, "z": [0.5, 1], "xy": [], "av": {"1": "free text"}},
    },
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2", "1"]}, "3": {"fid_list": ["3"]}},
}  # fmt: skip
TABLE = """\
# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)\r
# Notes:\r
# - metadata of {""1"":""3""} indicates attribute with id "1" set to an attribute option with id "3"\r
# SHAPE_ID = {"POINT":1,"RECTANGLE":2}\r
# FLAG_ID = {"RESERVED_FOR_FUTURE":1}\r
# ATTRIBUTE = {"1":{"aname":"Scene","anchor_id":"FILE1_Z2_XY0","type":4,"desc":"","options":{"0":"title",\
"1":"x, y"},"default_option_id":""}}\r
# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata\r
"1_j5sJvB9h","[""chimie-verte_fran\u00e7aise.mp4""]",0,"[1.124,5.31493]","[]","{""1"":""1""}"\r
"1_zYQJk2sM","[""chimie-verte_fran\u00e7aise.mp4""]",0,"[2.41892]","[2,162.262,176.2,639.4,192.4]","{""1"":""0""}"\r
"2_zYQJk2sM","[""/data/b.mp4"",""/data/c.mp4""]",0,"[2,3.5]","[]","{""1"":""0""}"\r
"""
SEGMENTS = """\
# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)
# CSV_HEADER = metadata_id,file_list,temporal_segment_start,temporal_segment_end,metadata
"1_uHmYhVMF","[""a.mp4""]",12.5,20.75,"{""TEMPORAL-SEGMENTS"":""jump""}"
"1_bHmYhVMF","[""a.mp4""]",3,undefined,"{""TEMPORAL-SEGMENTS"":""jump""}"
"""


def test_segments_of_a_project_have_the_text_of_the_options():
    (first, second), report = read_text_as("via", json.dumps(PROJECT), "via.json")
    assert (first.name, second.file_name) == ("day1.mp4", "day2.mp4")
    assert labels_of(first) == [(1.5, 3.25, "walk"), (2, 4, "left"), (2, 4, "right"), (2, 4, "sit down")]
    assert labels_of(second) == [(0.5, 1, "free text")]
    assert set(report.lines("f")) == {
        "f: labels of 2 attributes: 'Activity' (4), 'Hands' (2); --tier reads one alone",
        "f: 1 point event not carried: a moment has no duration",
        "f: 1 region of the picture not carried: an action has a label and times only",
        "f: 1 label of a whole file not carried: it has no start and end",
        "f: 1 list of moments not carried: z has neither one time nor two",
        "f: 1 deleted entry not carried: somebody deleted them in VIA",
        "f: 1 segment without label not carried: no class to learn",
        "f: 1 label not carried: they end before they start",
        "f: 1 further file of a view not carried: labels are those of the first",
    }


def test_an_attribute_is_read_alone():
    (first, _), _ = read_text_as("via", json.dumps(PROJECT), "via.json", tiers=["Hands"])
    assert labels_of(first) == [(2, 4, "left"), (2, 4, "right")]
    with pytest.raises(ValueError, match="no tier 'Foot', want one of: 'Activity', 'Hands', 'Object'"):
        read_text_as("via", json.dumps(PROJECT), "via.json", tiers=["Foot"])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("metadata", "1_a", "z"), "soon", r"via.json: metadata.1_a.z: "),
        (("metadata", "1_a", "z"), [1, True], "metadata.1_a.z.1: got True, want a number"),
        (("metadata", "1_a", "z"), [1, 1e300], "metadata.1_a.z.1: got 1e"),
        (("metadata", "1_a", "av"), {"1": {}}, "metadata.1_a.av.1: got {}, want a text"),
        (("view", "1"), {}, "view.1.fid_list: Field required"),
        (("file",), None, "via.json: file: "),
    ],
)
def test_what_is_wrong_in_a_project_is_named(path, value, message):
    project = copy.deepcopy(PROJECT)
    *way, last = path
    inner = project
    for key in way:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(ValueError, match=message) as error:
        read_text_as("via", json.dumps(project), "via.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_whole_table():
    assert is_table(TABLE)
    (first, second), report = read_text_as("via-csv", TABLE, "export.csv")
    assert first.name == "chimie-verte_française.mp4" and labels_of(first) == [(1.124, 5.31493, "x, y")]
    assert second.name == "/data/b.mp4" and labels_of(second) == [(2.0, 3.5, "title")]
    assert any("1 region of the picture" in line for line in report.lines(""))


def test_a_table_that_a_spreadsheet_saved_again():
    """The header becomes cells of its own, the remarks get quotes and trailing commas."""
    lines = (
        TABLE.replace("\r", "")
        .replace("# CSV_HEADER = metadata_id", '"# CSV_HEADER = metadata_id"')
        .split("\n")
    )
    text = "\n".join(line + ",,," if line and not line.startswith("# ATTR") else line for line in lines)
    (first, _), _ = read_text_as("via-csv", text, "export.csv")
    assert labels_of(first) == [(1.124, 5.31493, "x, y")]


def test_the_table_of_segments():
    (video,), report = read_text_as("via-csv", SEGMENTS, "export.csv")
    assert labels_of(video) == [(12.5, 20.75, "jump")]
    assert report.lines("f") == ["f: 1 point event not carried: a moment has no duration"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('[""a.mp4""]', "a.mp4", "export.csv, line 3: file_list, line 1"),
        ('[""a.mp4""]', "{}", "line 3: file_list is '{}'"),
        ("12.5", "early", "line 3: got 'early'"),
        ('{""TEMPORAL-SEGMENTS"":""jump""}', "[]", "line 3: av: "),
    ],
)
def test_a_wrong_row_is_named(old, new, message):
    with pytest.raises(ValueError, match=message):
        read_text_as("via-csv", SEGMENTS.replace(old, new), "export.csv")


def test_scores_and_empty_videos_are_counted_when_written():
    scored = LabelledVideo("a.mp4", (TimedLabel(0, 1, "x", 0.5), TimedLabel(0, 1, "y", 0.25)))
    _, lines = written("via-csv", scored, LabelledVideo("b.mp4", ()))
    assert lines == [
        "out: 2 scores not carried: VIA has no field for them",
        "out: 1 video without labels not carried: VIA's table has rows of labels",
    ]
    text, _ = written("via", scored)
    entry = json.loads(text)["metadata"]["1_00000001"]
    assert entry == {"vid": "1", "flg": 0, "z": [0.0, 1.0], "xy": [], "av": {"1": "x"}}
