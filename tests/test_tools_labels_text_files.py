"""Audacity labels, subtitles, tables of frames, and the text, numbers and XML beneath all formats."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.labelled import LabelledVideo, TimedLabel
from tools.labels.text_files import number, rate, read_text, seconds
from tools.labels.xml_files import parse_xml

# ------------------------------------------------------------------------------------------------ Audacity

AUDACITY = (
    "1.500000\t2.750000\tbark\n\\\t100.0\t2000.0\n"
    "3,000000\t4,250000\tgrowl  at\tme\r\n5.0\t5.0\tclick\n6\t7\t\n\n"
)


def test_audacity_labels_with_frequencies_commas_moments_and_empty_text():
    (video,), report = read_text_as("audacity", AUDACITY, "day/dog.txt")
    assert video.name == "day/dog" and video.file_name == "dog"
    assert labels_of(video) == [(1.5, 2.75, "bark"), (3.0, 4.25, "growl at me")]
    assert set(report.lines("f")) == {
        "f: 1 range of frequencies not carried: they are those of a sound",
        "f: 1 point event not carried: a moment has no duration",
        "f: 1 segment without label not carried: no class to learn",
    }


def test_a_line_that_is_no_label_is_named():
    with pytest.raises(ValueError, match=r"dog.txt, line 2: got 'x', want a number"):
        read_text_as("audacity", "1\t2\ta\nx\t2\tb\n", "dog.txt")


# ------------------------------------------------------------------------------------------------ subtitles

SRT = (
    "1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>slide</i> left\r\n\r\n"
    "2\r\n00:00:02,000 --> 01:00:03.250  X1:10 X2:20\r\n{\\an8}two\r\nlines\r\n\r\n\r\n"
    "00:00:05,000 --> 00:00:05,000\r\nmoment\r\n"
)
VTT = """\
WEBVTT - made by hand

STYLE
::cue { color: red }

NOTE a remark
--- of two lines

intro
00:01.000 --> 00:02.500 align:start line:0%
<v Anna>walk &amp; <c.loud>run</c></v>

01:00:00.000 --> 01:00:01.000
stop
"""


def test_subrip_with_tags_positions_and_missing_counters():
    (video,), report = read_text_as("srt", SRT, "match.srt")
    assert labels_of(video) == [(1.0, 2.5, "slide left"), (2.0, 3603.25, "two lines")]
    assert report.lines("f") == ["f: 1 point event not carried: a moment has no duration"]


def test_webvtt_with_blocks_names_settings_and_entities():
    (video,), report = read_text_as("vtt", VTT, "match.vtt")
    assert labels_of(video) == [(1.0, 2.5, "walk & run"), (3600.0, 3601.0, "stop")]
    assert report.lines("") == []


def test_scores_of_predict_are_read_if_every_cue_has_one():
    label = (TimedLabel(1.0, 2.0, "run", 0.875), TimedLabel(1.5, 2.0, "a <z>", 0.25))
    for name in ("srt", "vtt"):
        text, _ = written(name, LabelledVideo("v", label))
        (video,), report = read_text_as(name, text, f"v.{name}")
        assert [(item.label, item.score) for item in video.labels] == [("run", 0.88), ("a <z>", 0.25)]
        assert report.lines("f") == ["f: a number stands behind every text, and is taken for its score"]
    mixed = "1\n00:00:01,000 --> 00:00:02,000\nlevel 0.50\n\n2\n00:00:01,000 --> 00:00:02,000\nrun\n"
    (video,), _ = read_text_as("srt", mixed, "v.srt")
    assert [item.label for item in video.labels] == ["level 0.50", "run"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00:00:01,000 -->", "v.srt, line 2: got '00:00:01,000 -->'"),
        ("soon --> later", "line 2: got 'soon --> later'"),
        ("0:0:0:1 --> 0:0:0:2", "line 2: got '0:0:0:1', want a number"),
    ],
)
def test_a_wrong_time_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        read_text_as("srt", f"1\n{line}\nrun\n", "v.srt")


def test_text_without_times_is_counted():
    _, report = read_text_as("srt", "hello\n\n1\n00:00:01,000 --> 00:00:02,000\nrun\n", "v.srt")
    assert report.lines("f") == ["f: 1 text without times not carried: no cue says when they are shown"]


# ------------------------------------------------------------------------------------------------ frames


@pytest.mark.parametrize(
    "text",
    [
        "video,label,start_frame,end_frame\na.mp4,run,25,50\nb.mp4,,,\n",
        "Video;Label;Start Frame;End Frame;;\r\na.mp4;run;25,0;50;;\r\nb.mp4;;;;;\r\n",
        "\ufefffilename\tclass\tstartFrame\tstop_frame\tfps\na.mp4\trun\t25\t50\t25\nb.mp4\t\t\t\t\n".lstrip(
            "\ufeff"
        ),
    ],
)
def test_frame_numbers_begin_at_zero_and_stand_for_the_moment_the_frame_begins(text):
    first, second = read_text_as("frames", text, "t.csv", fps=None if "fps" in text else Fraction(25))[0]
    assert (first.name, labels_of(first), first.fps) == ("a.mp4", [(1.0, 2.0, "run")], 25)
    assert (second.name, second.labels) == ("b.mp4", ())


def test_plain_columns_are_frames_where_the_person_says_so():
    text = "video,start,end,label\na.mp4,25,50,None\n"
    (video,), _ = read_text_as("frames", text, "t.csv", fps=Fraction(25))
    assert labels_of(video) == [(1.0, 2.0, "None")]  # a class may be called so


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,label,start_frame,end_frame\na,run,25,50\n", "--fps"),
        ("video,label,start_frame,end_frame,fps\na,run,x,50,25\n", "line 2: start frame: got 'x'"),
        ("video,label,start_frame,end_frame,fps\n,run,1,50,25\n", "line 2: no video"),
        ("video,label,start_frame,end_frame,fps\na,run,1,50,0\n", "line 2: fps: got '0'"),
        (
            "video,label,begin\na,run,1\n",
            "want a table with the columns video, label, start frame and end frame",
        ),
    ],
)
def test_a_wrong_table_of_frames_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_text_as("frames", text, "t.csv")


# ------------------------------------------------------------------------------------------------ beneath


def test_numbers_and_times():
    assert number("", "-1,25e1") == -12.5 and number("", 3) == 3.0 and number("", ".5") == 0.5
    for wrong in ("", "1_0", "nan", "inf", "1e999", "1.2.3", "0x10", "١", True, "1 000", 1e10):
        with pytest.raises(ValueError, match="want a number"):
            number("cell", wrong)
    assert seconds("", "1:02:03,5") == 3723.5 and seconds("", "02:03") == 123.0 and seconds("", "4.5") == 4.5
    assert rate("", "29.97") == rate("", "30000/1001") == Fraction(30000, 1001)
    assert {rate("", text) for text in ("23.98", "23,98", "23.976", "24000/1001")} == {Fraction(24000, 1001)}
    assert rate("", "25") == 25 and rate("", "12,5") == Fraction(25, 2)
    for wrong in ("0", "-25", "25/0", "fast", "1e9"):
        with pytest.raises(ValueError, match="--fps: got"):
            rate("--fps", wrong)


def test_byte_order_marks_and_encodings(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("1\t2\tä\r\n".encode(encoding))
        assert read_text(path) == "1\t2\tä\r\n"
    path.write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match="byte 0 is not UTF-8 text; save the file as UTF-8"):
        read_text(path)
    path.write_bytes(b"a\0b")
    with pytest.raises(ValueError, match="zero bytes"):
        read_text(path)
    with open(path, "wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(ValueError, match="want annotations of at most 256 MiB"):
        read_text(path)


LAUGHS = '<!DOCTYPE a [<!ENTITY l0 "ha">' + "".join(
    f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}]>\n<a>&l11;</a>", "has a document type"),
        ('<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>\n<a>&f;</a>', "has a document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">\n<a/>', "has a document type"),
        ('<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/hostname"> %p;]>\n<a/>', "has a document type"),
        ("<a>&undefined;</a>", "a.xml, line 1: not XML: undefined entity"),
        ("<a><b></a>", "a.xml, line 1: not XML: mismatched tag"),
        ("", "a.xml, line 1: not XML: no element found"),
        ("<a>" * 200_000, "has more than 100 elements within each other"),
        ("<a>\x00</a>", "not XML"),
    ],
)
def test_xml_that_is_dangerous_or_broken_ends_in_one_line_at_once(text, message):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        parse_xml(Path("a.xml"), text)
    assert "\n" not in str(error.value) and time.monotonic() - begin < 2  # 10^11 laughs would take hours


def test_xml_without_a_document_type_is_read_as_the_standard_library_reads_it():
    root = parse_xml(
        Path("a.xml"), '<?xml version="1.0" encoding="ISO-8859-1"?><a b="1 &lt; 2">ä<c/>&#228;</a>'
    )
    assert (root.get("b"), root.text, root[0].tail) == ("1 < 2", "ä", "ä")
