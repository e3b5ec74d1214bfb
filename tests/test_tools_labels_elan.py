"""ELAN files: times through slots and references, tiers, media, and what is written."""

from __future__ import annotations

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.labelled import LabelledVideo, TimedLabel

SAMPLE = """\
<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2024-03-05T10:00:00+01:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/Users/me/sound%20of%20it.wav" MIME_TYPE="audio/x-wav"
            RELATIVE_MEDIA_URL="./sound%20of%20it.wav"/>
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/Users/me/Day%201/talk%20%C3%A4.mp4" MIME_TYPE="video/mp4"
            RELATIVE_MEDIA_URL="../Day%201/talk%20%C3%A4.mp4"/>
        <PROPERTY NAME="lastUsedAnnotationId">7</PROPERTY>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="1000"/>
        <TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1000"/>
        <TIME_SLOT TIME_SLOT_ID="ts3"/>
        <TIME_SLOT TIME_SLOT_ID="ts4"/>
        <TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="4000"/>
        <TIME_SLOT TIME_SLOT_ID="ts6" TIME_VALUE="4000"/>
        <TIME_SLOT TIME_SLOT_ID="ts7" TIME_VALUE="6250"/>
        <TIME_SLOT TIME_SLOT_ID="ts8"/>
    </TIME_ORDER>
    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="gesture">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts5">
            <ANNOTATION_VALUE>stroke</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts6" TIME_SLOT_REF2="ts7">
            <ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="phase" PARENT_REF="gesture" TIER_ID="phase">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
            <ANNOTATION_VALUE>prepare</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
            <ANNOTATION_VALUE>hold</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a5" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="ts5">
            <ANNOTATION_VALUE>retract</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="hand" PARENT_REF="gesture" TIER_ID="hand">
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a6" ANNOTATION_REF="a1">
            <ANNOTATION_VALUE>left</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a7" ANNOTATION_REF="a1" PREVIOUS_ANNOTATION="a6">
            <ANNOTATION_VALUE>right</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a8" ANNOTATION_REF="lost">
            <ANNOTATION_VALUE>none</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="open">
        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a9" TIME_SLOT_REF1="ts7" TIME_SLOT_REF2="ts8">
            <ANNOTATION_VALUE>never ends</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    </TIER>
    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Time_Subdivision" LINGUISTIC_TYPE_ID="phase" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Subdivision" LINGUISTIC_TYPE_ID="hand" TIME_ALIGNABLE="false"/>
</ANNOTATION_DOCUMENT>
"""


def test_slots_without_value_and_references_get_the_times_that_elan_shows():
    (video,), report = read_text_as("elan", SAMPLE, "talk.eaf")
    assert video.name == "/C:/Users/me/Day 1/talk ä.mp4" and video.file_name == "talk ä.mp4"
    assert labels_of(video) == [
        (1.0, 2.0, "prepare"),
        (1.0, 2.5, "left"),
        (1.0, 4.0, "stroke"),
        (2.0, 3.0, "hold"),
        (2.5, 4.0, "right"),
        (3.0, 4.0, "retract"),
        (4.0, 6.25, "gesture"),  # no value: the name of the tier
    ]
    lines = report.lines("talk.eaf")
    assert "talk.eaf: 2 times without value, taken evenly from the neighbours as ELAN shows them" in lines
    assert "talk.eaf: 1 label without time not carried: the file has none for them" in lines
    assert "talk.eaf: 1 reference not carried: they lead to no annotation with times" in lines
    assert "talk.eaf: 1 further media file not carried: labels are those of the first video" in lines
    assert any("3 tiers: 'gesture' (2), 'phase' (3), 'hand' (2); --tier" in line for line in lines)


def test_a_tier_is_read_alone():
    (video,), report = read_text_as("elan", SAMPLE, "talk.eaf", tiers=["hand"])
    assert labels_of(video) == [(1.0, 2.5, "left"), (2.5, 4.0, "right")]
    with pytest.raises(ValueError, match="no tier 'hands', want one of: 'gesture', 'hand', 'open', 'phase'"):
        read_text_as("elan", SAMPLE, "talk.eaf", tiers=["hands"])


def test_annotations_in_a_row_need_not_be_in_order():
    """A file of another program than ELAN: the second comes first."""
    begin = "        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="
    first = SAMPLE[SAMPLE.index(f'{begin}"a6"') : SAMPLE.index(f'{begin}"a7"')]
    swapped = SAMPLE.replace(first, "").replace(f'{begin}"a8"', f'{first}{begin}"a8"')
    assert swapped.index('"a6"') > swapped.index('"a7"')
    (video,), _ = read_text_as("elan", swapped, "talk.eaf", tiers=["hand"])
    assert labels_of(video) == [(1.0, 2.5, "left"), (2.5, 4.0, "right")]


def test_the_offset_of_the_media_is_added():
    shifted = SAMPLE.replace('MIME_TYPE="video/mp4"', 'MIME_TYPE="video/mp4" TIME_ORIGIN="2500"')
    (video,), _ = read_text_as("elan", shifted, "talk.eaf", tiers=["hand"])
    assert labels_of(video) == [(3.5, 5.0, "left"), (5.0, 6.5, "right")]


def test_a_video_without_media_is_called_as_the_file():
    bare = SAMPLE.split("<MEDIA_DESCRIPTOR")[0] + SAMPLE[SAMPLE.index("<PROPERTY") :]
    (video,), _ = read_text_as("elan", bare, "folder/talk.eaf")
    assert video.name == "folder/talk"
    relative = SAMPLE.replace('MEDIA_URL="file:///C:/Users/me/Day%201/talk%20%C3%A4.mp4" ', "")
    (video,), _ = read_text_as("elan", relative, "talk.eaf")
    assert video.file_name == "talk ä.mp4"


def test_frames_of_television_are_a_unit():
    (video,), _ = read_text_as("elan", SAMPLE.replace("milliseconds", "PAL-frames"), "t.eaf", tiers=["hand"])
    assert labels_of(video)[0] == (40.0, 100.0, "left")
    with pytest.raises(ValueError, match="TIME_UNITS is 'hours'"):
        read_text_as("elan", SAMPLE.replace("milliseconds", "hours"), "t.eaf")


def test_references_in_a_circle_end():
    circle = SAMPLE.replace('ANNOTATION_REF="a1"', 'ANNOTATION_REF="a7"')
    (video,), report = read_text_as("elan", circle, "talk.eaf")
    assert not {"left", "right"} & {label for *_, label in labels_of(video)}
    assert any("3 references not carried" in line for line in report.lines(""))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("<annotations/>", "root is 'annotations'"),
        (SAMPLE.replace(' TIER_ID="gesture"', ""), "an element 'TIER' has no TIER_ID"),
        (SAMPLE.replace('TIME_VALUE="1000"', 'TIME_VALUE="soon"'), "TIME_VALUE: got 'soon'"),
        (SAMPLE[:900], "not XML"),
    ],
)
def test_what_is_no_elan_file_is_named(broken, message):
    with pytest.raises(ValueError, match=message) as error:
        read_text_as("elan", broken, "talk.eaf")
    assert "\n" not in str(error.value) and str(error.value).startswith("talk.eaf")


def test_each_label_is_a_tier_and_a_further_one_where_two_of_it_overlap():
    times = [(0.0, 2.0, "a"), (1.0, 3.0, "a"), (1.5, 4.0, "b"), (2.0, 2.5, "a")]
    text, _ = written("elan", LabelledVideo("v.mp4", tuple(TimedLabel(*each) for each in times)))
    (video,), report = read_text_as("elan", text, "v.eaf")
    assert labels_of(video) == times
    assert report.remarks == ["labels of 3 tiers: 'a' (2), 'a (2)' (1), 'b' (1); --tier reads one alone"]
