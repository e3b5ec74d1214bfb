"""CVAT: tracks until they are outside, tags of frames, tasks with a start frame and a step, projects."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.labelled import LabelledVideo, TimedLabel


def box(frame: int, outside: int = 0, *, keyframe: int = 1) -> str:
    corners = 'xtl="1.00" ytl="2.00" xbr="30.00" ybr="40.00" z_order="0"'
    return f'<box frame="{frame}" keyframe="{keyframe}" outside="{outside}" occluded="0" {corners}></box>'


def document(body: str, *, start: int = 0, step: str = "", source: str = "clips/day 1.mp4") -> str:
    filtering = f"<frame_filter>{step}</frame_filter>" if step else "<frame_filter></frame_filter>"
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>my task</name><size>300</size><mode>interpolation</mode><overlap>5</overlap>
      <start_frame>{start}</start_frame><stop_frame>{start + 299}</stop_frame>{filtering}
      <labels><label><name>walk</name><attributes></attributes></label></labels>
      <segments><segment><id>1</id><start>0</start><stop>299</stop><url>x</url></segment></segments>
      <original_size><width>640</width><height>480</height></original_size><source>{source}</source>
    </task>
    <dumped>2024-03-05 10:00:00+00:00</dumped>
  </meta>
  {body}
</annotations>
"""


def test_a_track_lasts_until_it_is_outside_and_may_come_back():
    shapes = [box(10), box(11, keyframe=0), box(12, keyframe=0), box(13, 1), box(50, 1), box(60), box(80, 1)]
    text = document(f'<track id="0" label="walk" source="manual">{"".join(shapes)}</track>')
    (video,), report = read_text_as("cvat", text, "annotations.xml", fps=Fraction(10))
    assert (video.name, video.file_name) == ("clips/day 1.mp4", "day 1.mp4")
    assert labels_of(video) == [(1.0, 1.3, "walk"), (6.0, 8.0, "walk")]
    assert report.lines("") == []


def test_a_track_that_is_never_outside_ends_with_its_last_shape():
    text = document(f'<track id="0" label="walk">{box(0)}{box(1)}{box(2)}</track>')
    (video,), _ = read_text_as("cvat", text, "a.xml", fps=Fraction(10))
    assert labels_of(video) == [(0.0, 0.3, "walk")]


def test_a_skeleton_is_outside_with_all_of_its_points():
    def skeleton(frame: int, *outside: int) -> str:
        points = "".join(f'<points label="{n}" outside="{o}" points="1,2"/>' for n, o in enumerate(outside))
        return f'<skeleton frame="{frame}" keyframe="1" z_order="0">{points}</skeleton>'

    body = f'<track id="0" label="walk">{skeleton(0, 0, 0)}{skeleton(5, 1, 0)}{skeleton(10, 1, 1)}</track>'
    (video,), _ = read_text_as("cvat", document(body), "a.xml", fps=Fraction(10))
    assert labels_of(video) == [(0.0, 1.0, "walk")]


def test_frames_are_those_of_the_video_whatever_the_task_leaves_out():
    body = f'<track id="0" label="walk">{box(100)}{box(105)}{box(110)}</track>'
    (video,), report = read_text_as(
        "cvat", document(body, start=100, step="step=5"), "a.xml", fps=Fraction(25)
    )
    assert labels_of(video) == [(4.0, 4.6, "walk")] and not report.lines("")


def test_frames_below_the_start_frame_are_counted_from_it():
    body = f'<track id="0" label="walk">{box(0)}{box(25, 1)}</track>'
    (video,), report = read_text_as("cvat", document(body, start=100), "a.xml", fps=Fraction(25))
    assert labels_of(video) == [(4.0, 5.0, "walk")]
    assert report.lines("a.xml") == ["a.xml: frames below start_frame 100: all are counted from there"]


def test_tags_of_neighbouring_frames_are_one_action():
    images = "".join(
        f'<image id="{frame}" name="frame_{frame:06d}" width="640" height="480">'
        f'<tag label="rain" source="manual"></tag>{box(frame) if frame == 4 else ""}</image>'
        for frame in (3, 4, 5, 9)
    )
    tags = '<tag label="sun" frame="0" source="manual"/><tag label="sun" frame="1" source="manual"/>'
    (video,), report = read_text_as("cvat", document(images + tags), "a.xml", fps=Fraction(10))
    assert labels_of(video) == [(0.0, 0.2, "sun"), (0.3, 0.6, "rain"), (0.9, 1.0, "rain")]
    assert report.lines("f") == [
        "f: 1 region of the picture not carried: an action has a label and times only"
    ]


def test_a_project_has_several_videos():
    tasks = "".join(
        f"<task><id>{number}</id><name>t</name><source>{name}.mp4</source></task>"
        for number, name in ((1, "a"), (2, "b"))
    )
    body = f'<track id="0" label="walk" task_id="2">{box(0)}{box(10, 1)}</track>'
    text = f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{body}</annotations>"
    first, second = read_text_as("cvat", text, "a.xml", fps=Fraction(10))[0]
    assert (first.name, labels_of(first)) == ("a.mp4", [])
    assert (second.name, labels_of(second)) == ("b.mp4", [(0.0, 1.0, "walk")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document(""), "its times are frame numbers; --fps says"),
        (document(f'<track id="0">{box(0)}</track>'), "an element 'track' has no label"),
        (document('<track id="0" label="a"><box outside="0"/></track>'), "an element 'box' has no frame"),
        (document('<track id="0" label="a"><box frame="x"/></track>'), "box, frame: got 'x'"),
        (document("", step="every second"), "frame_filter: got 'everysecond'"),
        ("<ANNOTATION_DOCUMENT/>", "its root is 'ANNOTATION_DOCUMENT'"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        read_text_as("cvat", text, "a.xml", fps=None if "--fps" in message else Fraction(10))


def test_tracks_are_written_with_a_shape_that_begins_and_one_that_is_outside():
    video = LabelledVideo("v.mp4", (TimedLabel(1.02, 2.0, 'a"<b'),), 4.0, Fraction(25))
    text, _ = written("cvat", video)
    assert 'label="a&quot;&lt;b"' in text and "<size>100</size>" in text
    assert 'frame="26" keyframe="1" outside="0"' in text and 'frame="50" keyframe="1" outside="1"' in text
    assert "<source>v.mp4</source>" in text


def test_frames_are_counted_from_the_first_picture_where_it_begins_after_the_sound():
    labels = (TimedLabel(0.5, 1.5, "a"), TimedLabel(1.5, 3.0, "b"), TimedLabel(4.0, 6.0, "c"))
    text, _ = written("cvat", LabelledVideo("v.mkv", labels, 12.0, Fraction(25), begin=Fraction(2)))
    assert "<size>250</size>" in text and "<stop_frame>249</stop_frame>" in text
    assert re.findall(r' frame="(\d+)"', text) == ["0", "1", "0", "25", "50", "100"]


def test_a_task_names_its_labels_and_ends_after_the_last_where_the_duration_is_not_known():
    labels = (TimedLabel(0.0, 1.0, "b"), TimedLabel(1.0, 2.0, "a"), TimedLabel(3.0, 4.0, "b"))
    text, _ = written("cvat", LabelledVideo("v.mp4", labels, None, Fraction(10)))
    assert re.findall(r"<name>(.*)</name>", text) == ["v.mp4", "a", "b"]
    assert re.findall(r'<track id="(\d+)" label="(.)"', text) == [("0", "b"), ("1", "a"), ("2", "b")]
    assert "<size>41</size>" in text  # the shape that ends the last track is on frame 40
