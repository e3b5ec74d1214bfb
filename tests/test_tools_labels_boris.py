"""BORIS: tables of versions 7 and 8, projects, starts and stops, media files in a row."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.boris import is_boris_table
from tools.labels.labelled import LabelledVideo, TimedLabel

AGGREGATED = """\
Observation id,Observation date,Description,Observation type,Source,Time offset (s),Coding duration,\
Media duration (s),FPS (frame/s),Subject,Observation duration by subject by observation,Behavior,\
Behavioral category,Modifier #1,Behavior type,Start (s),Stop (s),Duration (s),Media file name,\
Image index start,Image index stop,Image file path start,Image file path stop,Comment start,Comment stop
obs1,2024-03-05 10:00:00,,Media file,player #1:/data/a.mp4;/data/b.mp4|player #2:/data/side.mp4,0.0,30.000,\
10.000;20.000|30.000,25.000;25.000|25.000,No focal subject,9.5,groom,Not defined,,STATE,1.500,3.250,1.750,\
/data/a.mp4,37,81,NA,NA,,
obs1,2024-03-05 10:00:00,,Media file,player #1:/data/a.mp4;/data/b.mp4|player #2:/data/side.mp4,0.0,30.000,\
10.000;20.000|30.000,25.000;25.000|25.000,mouse 1,9.5,groom,Not defined,paw,STATE,12.000,14.000,2.000,\
/data/b.mp4,50,100,NA,NA,odd,
obs1,2024-03-05 10:00:00,,Media file,player #1:/data/a.mp4;/data/b.mp4|player #2:/data/side.mp4,0.0,30.000,\
10.000;20.000|30.000,25.000;25.000|25.000,mouse 1,9.5,rest,Not defined,,STATE,8.000,11.500,3.500,\
/data/a.mp4,50,100,NA,NA,,
obs1,2024-03-05 10:00:00,,Media file,player #1:/data/a.mp4;/data/b.mp4|player #2:/data/side.mp4,0.0,30.000,\
10.000;20.000|30.000,25.000;25.000|25.000,No focal subject,9.5,squeak,Not defined,,POINT,2.000,2.000,NA,\
/data/a.mp4,50,50,NA,NA,,
obs1,2024-03-05 10:00:00,,Media file,player #1:/data/a.mp4;/data/b.mp4|player #2:/data/side.mp4,0.0,30.000,\
10.000;20.000|30.000,25.000;25.000|25.000,No focal subject,9.5,rest,Not defined,,STATE,25.000,NA,NA,\
/data/b.mp4,50,50,NA,NA,,
"""
TABULAR_8 = """\
Observation id\tObservation date\tDescription\tObservation duration\tObservation type\tSource\t\
Time offset (s)\tMedia duration (s)\tFPS\tSubject\tBehavior\tBehavioral category\tBehavior type\tTime\t\
Media file name\tImage index\tImage file path\tComment
""" + "".join(
    "o\t2024-03-05 10:00:00\t\t60,0\tMedia file(s)\tplayer #1:C:\\v\\cage 1.mp4\t100,5\t60,000\t25,000\t"
    f"{subject}\tdig\t\t{kind}\t{time}\tC:\\v\\cage 1.mp4\t1\tNA\t\r\n"
    for subject, kind, time in [
        ("A", "START", "101,500"),
        ("B", "START", "102,000"),
        ("A", "STOP", "103,000"),
        ("B", "STOP", "104,250"),
        ("A", "STOP", "105,000"),
        ("A", "START", "106,000"),
        ("A", "START", "107,000"),
        ("A", "STOP", "108,000"),
        ("B", "START", "109,000"),
        ("A", "POINT", "109,500"),
    ]
)
TABULAR_7 = """\
Observation id,obs 1,,,,,,,,
,,,,,,,,,
Media file(s),,,,,,,,,
Player #1,/home/me/cage.avi,,,,,,,,
Observation date,2021-12-06 13:26:24,,,,,,,,
Description,,,,,,,,,
Time offset (s),0.0,,,,,,,,
,,,,,,,,,
Time,Media file path,Total length,FPS,Subject,Behavior,Behavioral category,Modifiers,Comment,Status
3.450,/home/me/cage.avi,60.0,25.0,No focal subject,dig,,,,START
5.450,/home/me/cage.avi,60.0,25.0,No focal subject,dig,,,,STOP
"""
AGGREGATED_7 = """\
Observation id,Observation date,Description,Media file,Total length,FPS,Subject,Behavior,\
Behavioral category,Modifiers,Behavior type,Start (s),Stop (s),Duration (s),Comment start,Comment stop
6008,2021-12-06 13:26:24,,T:/Video Coding/6008.mp4,1381.010,29.97,No focal subject,Holding,Mom,,STATE,\
689.000,989.023,300.023,,
"""


def test_aggregated_events_are_split_by_the_files_that_play_in_a_row():
    videos, report = read_text_as("boris-csv", AGGREGATED, "events.csv")
    first, second = videos
    assert (first.name, first.duration) == ("/data/a.mp4", 10.0)
    assert labels_of(first) == [(1.5, 3.25, "groom"), (8.0, 10.0, "rest")]
    assert (second.name, second.duration) == ("/data/b.mp4", 20.0)
    assert labels_of(second) == [(2.0, 4.0, "groom")]
    assert set(report.lines("f")) == {
        "f: 1 point event not carried: a moment has no duration",
        "f: 1 unpaired event not carried: a start without stop, or a stop without start",
        "f: 1 end of an action not carried: cut where the next media file begins",
        "f: 1 modifier or attribute not carried: an action has a label and times only",
        "f: 1 comment not carried: an action has a label and times only",
        "f: 2 subjects of labels not carried: an action has a label and times only",
    }


def test_starts_and_stops_are_paired_by_subject_with_decimal_commas_and_an_offset():
    (video,), report = read_text_as("boris-csv", TABULAR_8, "events.tsv")
    assert video.file_name == "cage 1.mp4" and video.duration == 60.0
    assert labels_of(video) == [(1.0, 2.5, "dig"), (1.5, 3.75, "dig"), (6.5, 7.5, "dig")]
    assert "f: 3 unpaired events not carried: a start without stop, or a stop without start" in report.lines(
        "f"
    )
    assert "f: 1 point event not carried: a moment has no duration" in report.lines("f")


def test_a_subject_is_read_alone():
    (video,), _ = read_text_as("boris-csv", TABULAR_8, "events.tsv", tiers=["B"])
    assert labels_of(video) == [(1.5, 3.75, "dig")]
    with pytest.raises(ValueError, match="no tier 'C', want one of: 'A', 'B'"):
        read_text_as("boris-csv", TABULAR_8, "events.tsv", tiers=["C"])


@pytest.mark.parametrize(
    ("text", "name", "labels"),
    [
        (TABULAR_7, "cage.avi", [(3.45, 5.45, "dig")]),
        (AGGREGATED_7, "6008.mp4", [(689.0, 989.023, "Holding")]),
        (AGGREGATED_7.replace(",", ";").replace(".0", ",0"), "6008.mp4", [(689.0, 989.023, "Holding")]),
    ],
)
def test_tables_of_version_7(text, name, labels):
    assert is_boris_table(text)
    (video,), report = read_text_as("boris-csv", text, "events.csv")
    assert (video.file_name, labels_of(video), report.lines("")) == (name, labels, [])


def test_an_observation_without_media_is_called_by_its_id():
    live = AGGREGATED_7.replace("T:/Video Coding/6008.mp4", "NA").replace("1381.010", "NA")
    (video,), report = read_text_as("boris-csv", live, "events.csv")
    assert (video.name, video.duration) == ("6008", None)
    assert report.lines("f") == ["f: observations without a media file are called by their id"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("689.000", "soon", r"line 2: Start \(s\): got 'soon'"),
        ("689.000", "1_0", "got '1_0'"),
        ("T:/Video Coding/6008.mp4", "a.mp4;b.mp4", "convert the .boris project instead"),
        (",989.023,300.023,,", ",989.023,300.023,,,,x", "line 2: got 18 cells, want 16"),
        (",989.023,300.023,,", "", "line 2: got 12 cells, want 16"),
        (",,,,START", ",,,,BEGIN", "line 10: got 'BEGIN', want START, STOP or POINT"),
    ],
)
def test_a_wrong_row_is_named(old, new, message):
    text = AGGREGATED_7 if old in AGGREGATED_7 else TABULAR_7
    with pytest.raises(ValueError, match=message):
        read_text_as("boris-csv", text.replace(old, new), "events.csv")


def test_one_modifier_of_several_counts():
    text = TABULAR_7.replace("Modifiers", "Modifier #1,Modifier #2").replace(",dig,,,,", ",dig,,None,paw,,")
    (video,), report = read_text_as("boris-csv", text.replace("START", "start"), "events.csv")
    assert labels_of(video) == [(3.45, 5.45, "dig")]
    assert report.lines("f") == [
        "f: 2 modifiers or attributes not carried: an action has a label and times only"
    ]


def test_a_written_table_states_how_long_each_action_and_its_video_last():
    label = TimedLabel(1.5, 4.0, "dig")
    known = LabelledVideo("a.mp4", (label,), 60.0, Fraction(30000, 1001))
    rows = list(csv.DictReader(io.StringIO(written("boris-csv", known, LabelledVideo("b.mp4", (label,)))[0])))
    columns = ("Media duration (s)", "FPS (frame/s)", "Start (s)", "Stop (s)", "Duration (s)")
    assert [[row[column] for column in columns] for row in rows] == [
        ["60.000", "29.970", "1.5", "4", "2.5"],
        ["NA", "NA", "1.5", "4", "2.5"],
    ]


def project(**changes) -> dict:
    observation = {
        "file": {"1": ["videos/a.mp4", "videos/b.mp4"], "2": []},
        "type": "MEDIA",
        "date": "2024-03-05T10:00:00",
        "description": "",
        "time offset": 5.0,
        "events": [
            [6.5, "", "groom", "", "", 37],
            [7.0, "mouse", "groom", "", "", 50],
            [7.25, "", "squeak", "", "loud", 50],
            [8.25, "", "groom", "", "", 81],
            [17.0, "mouse", "groom", "", "", 200],
            [20.0, "", "groom", "", "", 1],
            [None, "", "groom", "", "", 1],
        ],
        "media_info": {"length": {"videos/a.mp4": 10.0, "videos/b.mp4": 20.0}, "fps": {"videos/a.mp4": 25.0}},
    }
    behaviors = {"0": {"code": "groom", "type": "State event", "key": "g"}}
    behaviors["1"] = {"code": "squeak", "type": "Point event", "key": "s"}
    live = {"file": [], "type": "LIVE", "time offset": 0.0}
    live["events"] = [[1.0, "", "groom", "", ""], [2.0, "", "groom", "", ""]]
    stills = {"file": [], "type": "IMAGES", "directories_list": ["a"], "events": []}
    observations = {"first": {**observation, **changes}, "live": live, "stills": stills}
    return {"project_format_version": "7.0", "behaviors_conf": behaviors, "observations": observations}


def test_a_project_is_paired_in_turn_and_split_by_files():
    videos, report = read_text_as("boris", json.dumps(project()), "p.boris")
    first, second, live = videos
    assert (live.name, labels_of(live)) == ("live", [(1.0, 2.0, "groom")])
    assert labels_of(first) == [(1.5, 3.25, "groom"), (2.0, 10.0, "groom")]
    assert (first.duration, second.duration, second.labels) == (10.0, 20.0, ())
    assert set(report.lines("f")) == {
        "f: 1 point event not carried: a moment has no duration",
        "f: 1 comment not carried: an action has a label and times only",
        "f: 1 label without time not carried: the file has none for them",
        "f: 1 unpaired event not carried: a start without stop, or a stop without start",
        "f: 1 end of an action not carried: cut where the next media file begins",
        "f: 1 subject of a label not carried: an action has a label and times only",
        "f: 1 observation of pictures not carried: they are no video",
        "f: observations without a media file are called by their id",
    }


def test_events_of_a_project_are_paired_in_the_order_of_time_of_one_subject_alone():
    events = [[9.0, "B", "groom"], [8.0, "A", "groom", None, None], [6.0, "A", "groom"], [7.0, "B", "groom"]]
    text = json.dumps(project(events=events))
    for subject, times in (("A", (1.0, 3.0)), ("B", (2.0, 4.0))):
        videos, report = read_text_as("boris", text, "p.boris", tiers=[subject])
        assert [labels_of(video) for video in videos] == [[(*times, "groom")], [], []]
        assert not any("comment" in line or "modifier" in line for line in report.lines("f"))
    text, _ = written("boris", LabelledVideo("v.mp4", (), 4.0))
    files = json.loads(text)["observations"]["v.mp4"]["file"]
    assert files["1"] == ["v.mp4"] and all(files[str(player)] == [] for player in range(2, 9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media_creation_date_as_offset": True}, "its times are dates"),
        ({"media_info": {}}, "2 media files in a row"),
        ({"events": [[1.0, ""]]}, "an event has 2 fields"),
        ({"events": [["soon", "", "groom", "", ""]]}, "time: got 'soon'"),
        ({"events": [[{}, "", "groom", "", ""]]}, "time is '{}'"),
        ({"events": {}}, "p.boris: observations.first.events: "),
    ],
)
def test_a_wrong_project_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read_text_as("boris", json.dumps(project(**changes)), "p.boris")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_labels_of_one_name_that_overlap_are_joined_in_a_project():
    """BORIS takes the events of a behavior for starts and stops in turn; touching ones stay apart."""
    labels = [(0, 2, "a"), (1, 3, "a"), (3, 4, "a"), (1, 2, "b")]
    text, lines = written("boris", LabelledVideo("v.mp4", tuple(TimedLabel(*each) for each in labels)))
    events = json.loads(text)["observations"]["v.mp4"]["events"]
    assert [event[0] for event in events if event[2] == "a"] == [0, 3, 3, 4]
    assert "out: 1 overlapping label not carried: joined with the one of the same name" in lines
    (video,), _ = read_text_as("boris", text, "p.boris")
    assert labels_of(video) == [(0.0, 3.0, "a"), (1.0, 2.0, "b"), (3.0, 4.0, "a")]
