"""All formats: there and back, recognised by what is in them, chapters, events per hour, names of files."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_cases import labels_of, read_text_as, written

from tools.labels.formats import FORMATS, format_of_output, recognise
from tools.labels.labelled import LabelledVideo, Report, TimedLabel, by_start
from tools.labels.names import file_stems, merged, short_names

FRAMES = ("cvat", "label-studio", "frames")
BOTH = [name for name, each in FORMATS.items() if each.read and each.write]
FOREIGN = [name for name in BOTH if name not in ("csv", "activitynet")]
# Lengths are at least a frame of the slowest rate: a shorter label becomes one frame.
LABELS = st.lists(
    st.tuples(
        st.floats(0, 4000), st.floats(0.07, 900), st.sampled_from(["jump", "a, b", 'x "y" & <z>', "läuft"])
    ),
    min_size=1,
    max_size=8,
)


def apart(labels: list[tuple[float, float, str]]) -> tuple[TimedLabel, ...]:
    """The labels, without those that overlap one of the same name: BORIS would join them."""
    kept: list[TimedLabel] = []
    for start, length, label in sorted(labels):
        if all(start > item.end + 0.1 for item in kept if item.label == label):
            kept.append(TimedLabel(start, start + length, label))
    return by_start(kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
@settings(max_examples=20, deadline=None)  # of each format; the labels are many at once
@given(labels=LABELS, fps=st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(15)]))
def test_times_and_labels_come_back_within_half_a_frame_or_a_millisecond(name, labels, fps):
    video = LabelledVideo("match.mp4", apart(labels), 5000.0, fps)
    text, _ = written(name, video)
    suffix = FORMATS[name].suffix
    assert recognise(Path("match" + suffix), text) == name.replace("boris-tsv", "boris-csv")
    (back,), report = read_text_as(name, text, "match" + suffix, fps=fps if name == "cvat" else None)
    bound = 0.5 / float(fps) + 1e-6 if name in FRAMES else 1e-3
    assert back.file_name in ("match", "match.mp4")
    pairs = zip(sorted(back.labels, key=_key), sorted(video.labels, key=_key), strict=True)
    for read, wrote in pairs:
        assert read.label == wrote.label
        assert abs(read.start - wrote.start) <= bound and abs(read.end - wrote.end) <= bound
    assert not report.losses


def _key(item: TimedLabel) -> tuple[str, float]:
    return item.label, item.start


@pytest.mark.parametrize("name", [name for name in FOREIGN if not FORMATS[name].per_video])
def test_formats_of_several_videos_keep_them_apart(name):
    videos = [
        LabelledVideo(f"{day}/cam.mp4", (TimedLabel(1.0, 2.0, day),), 60.0, Fraction(25))
        for day in ("mon", "tue")
    ]
    back, _ = read_text_as(name, written(name, *videos)[0], "x")
    assert [(video.name, labels_of(video)) for video in back] == [
        (f"{day}/cam.mp4", [(1.0, 2.0, day)]) for day in ("mon", "tue")
    ]


@pytest.mark.parametrize("name", [name for name in BOTH if name not in ("srt", "vtt", "label-studio")])
def test_scores_that_a_format_has_no_field_for_are_counted(name):
    video = LabelledVideo(
        "a.mp4", (TimedLabel(0.0, 1.0, "x", 0.5), TimedLabel(2.0, 3.0, "x", 0.5)), 9.0, Fraction(25)
    )
    assert any(line.startswith("out: 2 scores not carried: ") for line in written(name, video)[1])


def test_control_characters_do_not_make_a_file_unreadable():
    labels = (TimedLabel(0.0, 1.0, "a\x00\x1b[31m\ufffe\ud800b"),)
    for name in ("elan", "cvat"):
        text, _ = written(name, LabelledVideo("a.mp4", labels, 9.0, Fraction(25)))
        (back,), _ = read_text_as(name, text, "a", fps=Fraction(25))
        assert labels_of(back) == [(0.0, 1.0, "a[31mb")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "video,start,end,label\n", "csv"),
        ("a.csv", "video;start;end;label\n", "csv"),
        ("a.csv", "video,type,start_frame,end_frame\n", "frames"),
        ("a.csv", "one,two\n1,2\n", None),
        ("a.json", '{"database": {}}', "activitynet"),
        ("a.json", '{"results": {}}', "detections"),
        ("a.json", '{"behaviors_conf": {}, "observations": {}}', "boris"),
        ("a.json", '{"view": {}, "file": {}, "metadata": {}}', "via"),
        ("a.json", '[{"data": {}, "annotations": []}]', "label-studio"),
        ("a.json", "[]", None),
        ("a.json", "[[1]]", None),
        ("a.json", '{"images": []}', None),
        ("a.xml", "<?xml version='1.0'?>\n<annotations>", "cvat"),
        ("a.xml", "<rss/>", None),
        ("a.txt", "1\t2\tx", "audacity"),
        ("a.txt", "", "audacity"),
        ("a.txt", "hello", None),
        ("a.SRT", "", "srt"),
        ("a.bin", "\x01\x02", None),
    ],
)
def test_a_format_is_recognised_by_what_is_in_the_file(name, text, expected):
    assert recognise(Path(name), text) == expected


def test_a_format_to_write_is_known_by_its_ending():
    endings = {"a.csv": "csv", "a.json": "activitynet", "a.via.json": "via", "a.frames.csv": "frames"}
    endings |= {"a.EAF": "elan", "a.txt": "audacity", "a.chapters.txt": "youtube", "a.xml": "cvat", "a": None}
    assert {name: format_of_output(Path(name)) for name in endings} == endings


# ------------------------------------------------------------------------------------------ written only


def test_chapters_begin_at_zero_keep_apart_and_prefer_good_scores():
    times = [
        (3.0, "a", 0.9),
        (15.0, "b", 0.5),
        (21.0, "c", 0.8),
        (40.0, "d", 0.7),
        (3725.9, "e", 0.6),
        (3795, "f", 1),
    ]
    labels = tuple(TimedLabel(start, start + 2, label, score) for start, label, score in times)
    text, lines = written("youtube", LabelledVideo("v.mp4", labels, 3800.0))
    assert text == "0:00 a\n0:21 c\n0:40 d\n1:02:05 e\n"
    assert set(lines) == {
        "out: 1 label not carried: less than 10 s from the chapter of a better one",
        "out: 1 label not carried: in the last 10 s of the video",
        "out: 1 start of a chapter not carried: moved to 0:00, where the first has to be",
        "out: 6 scores not carried: YouTube has no field for them",
    }
    text, lines = written("youtube", LabelledVideo("v.mp4", labels[1:2], 60.0))
    assert text == "0:00 Start\n0:15 b\n" and "out: v.mp4: 2 chapters; YouTube shows them from 3 on" in lines
    text, lines = written(
        "youtube", LabelledVideo("v.mp4", tuple(replace(labels[i], score=1 - i / 9) for i in (3, 2)))
    )
    assert text == "0:00 Start\n0:21 c\n0:40 d\n" and not any("YouTube shows" in line for line in lines)


def test_events_are_counted_in_the_hour_in_which_they_begin():
    times = [(10, 20, "a"), (15, 25, "a"), (3590, 3610, "a"), (3600, 3601, "b")]
    videos = [
        LabelledVideo("long.mp4", tuple(TimedLabel(*each) for each in times), 5400.0),
        LabelledVideo("none.mp4", (), 1800.0),
        LabelledVideo("open.mp4", (TimedLabel(0, 900, "b"),)),
    ]
    text, lines = written("events-per-hour", *videos)
    assert text.splitlines() == [
        "video,hour,seconds,label,events,events_per_hour,labelled_seconds",
        "long.mp4,1,3600,a,3,3.000,25.000",
        "long.mp4,1,3600,b,0,0.000,0.000",
        "long.mp4,2,1800,a,0,0.000,10.000",
        "long.mp4,2,1800,b,1,2.000,1.000",
        "none.mp4,1,1800,a,0,0.000,0.000",
        "none.mp4,1,1800,b,0,0.000,0.000",
        "open.mp4,1,900,a,0,0.000,0.000",
        "open.mp4,1,900,b,1,4.000,900.000",
    ]
    assert lines == ["out: 1 video without a stated duration: taken to end with the last label"]


def test_seconds_of_labels_that_overlap_count_once():
    times = [(10, 100, "a"), (20, 30, "a"), (90, 110, "a"), (7300, 7320, "a")]  # the second lies in the first
    label = tuple(TimedLabel(*each) for each in times)
    text, _ = written("events-per-hour", LabelledVideo("v.mp4", label, 7250.0))
    assert [line.split(",")[1:] for line in text.splitlines()[1:]] == [
        ["1", "3600", "a", "3", "3.000", "100.000"],
        ["2", "3600", "a", "0", "0.000", "0.000"],
        ["3", "50", "a", "1", "72.000", "20.000"],
    ]


# ------------------------------------------------------------------------------------------ names


def test_names_lose_folders_and_keep_as_many_as_tell_them_apart():
    report = Report()
    names = ["/a/mon/cam.mp4", "C:\\v\\tue\\cam.mp4", "../x/b.mp4", "c", "../.."]
    assert short_names(names, report) == {
        names[0]: "mon/cam.mp4",
        names[1]: "tue/cam.mp4",
        names[2]: "b.mp4",
        "c": "c",
        "../..": "video",
    }
    assert any("'cam.mp4' is 2 videos" in line for line in report.lines(""))
    assert short_names(["cam.mp4", "a/cam.mp4"], Report()) == {"cam.mp4": "cam.mp4", "a/cam.mp4": "a/cam.mp4"}


def test_files_never_lead_out_of_the_folder_and_have_names_of_their_own():
    names = ["../../etc/passwd", "/a/b.mp4", "cam.mp4", "cam.avi", "x.y", "a\nb.mp4"]
    stems = file_stems([LabelledVideo(name, ()) for name in names])
    assert stems == ["etc/passwd", "a/b", "cam.mp4", "cam.avi", "x.y", "a b"]


def test_labels_of_one_video_in_several_files_are_put_together():
    report = Report()
    videos = [
        LabelledVideo("a", (TimedLabel(5.0, 6.0, "x"),), 10.0),
        LabelledVideo("b", ()),
        LabelledVideo("a", (TimedLabel(1.0, 2.0, "y"),), 12.0),
    ]
    first, _ = merged(videos, report)
    assert labels_of(first) == [(1.0, 2.0, "y"), (5.0, 6.0, "x")] and first.duration == 12.0
    assert report.lines("f") == ["f: a: stated to last 10 and 12 s; the longer counts"]
    with pytest.raises(ValueError, match="a: is of subsets 'training' and 'test', want one"):
        merged([videos[0], LabelledVideo("a", (), subset="test")], report)


def test_every_format_says_what_it_is():
    titles = json.dumps({name: each.title for name, each in FORMATS.items()})
    assert all(each.suffix.startswith(".") and each.title in titles for each in FORMATS.values())
    assert all(each.read or each.write for each in FORMATS.values())


def test_a_table_of_frame_numbers_may_state_subsets():
    text = "video,label,start_frame,end_frame,fps,subset\na,run,0,25,25,validation\nb,,,,,\n"
    videos, _ = read_text_as("frames", text, "t.csv")
    assert [(video.name, video.subset) for video in videos] == [("a", "validation"), ("b", "training")]
    with pytest.raises(ValueError, match="line 3: a is of subset 'test', further up 'validation'; want one"):
        read_text_as("frames", text.replace("b,,,,,", "a,,,,,test"), "t.csv")
