"""Label Studio: timelines, tracked regions, regions of sound, both exports, names of videos."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from label_cases import labels_of, read_text_as, written

from tools.labels.label_studio import media_name
from tools.labels.labelled import LabelledVideo, TimedLabel

TEN = Fraction(10)


def timeline(start: int, end: int, *labels: str, **more) -> dict:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": list(labels)}
    return {
        "id": "r1",
        "from_name": "actions",
        "to_name": "video",
        "type": "timelinelabels",
        "value": value,
        **more,
    }


def task(*results: dict, **more) -> dict:
    annotation = {
        "id": 1,
        "completed_by": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "result": list(results),
    }
    data = {"video": "/data/upload/3/1b2c3d4e-match_1.mp4"}
    return {"id": 5, "data": data, "annotations": [annotation], "predictions": [], **more}


def test_frames_are_counted_from_one_and_the_last_is_included():
    tasks = [task(timeline(1, 10, "run"), timeline(11, 11, "jump", "fall"))]
    (video,), _ = read_text_as("label-studio", json.dumps(tasks), "export.json", fps=TEN)
    assert video.file_name == "match_1.mp4"
    assert labels_of(video) == [(0.0, 1.0, "run"), (1.0, 1.1, "fall"), (1.0, 1.1, "jump")]


def test_the_frame_rate_is_stated_by_the_person_or_the_task():
    text = json.dumps(task(timeline(1, 25, "run")))
    with pytest.raises(ValueError, match="--fps says how many frames a second has"):
        read_text_as("label-studio", text, "export.json")
    stated = task(timeline(1, 25, "run"), data={"video": "a.mp4", "fps": "25"})
    (video,), _ = read_text_as("label-studio", json.dumps([stated]), "export.json")
    assert labels_of(video) == [(0.0, 1.0, "run")]


def test_tracked_regions_are_visible_until_a_key_frame_that_is_not_enabled():
    sequence = [
        {"frame": 1, "enabled": True, "x": 1, "time": 0.1},
        {"frame": 5, "enabled": True, "x": 2, "time": 0.5},
        {"frame": 20, "enabled": False, "x": 2, "time": 2.0},
        {"frame": 31, "enabled": True, "x": 2, "time": 3.1},
    ]
    value = {"framesCount": 50, "duration": 5.0, "sequence": sequence, "labels": ["man"]}
    result = {"id": "x", "from_name": "box", "type": "videorectangle", "value": value}
    (video,), _ = read_text_as("label-studio", json.dumps([task(result)]), "export.json")
    assert labels_of(video) == [(0.0, 2.0, "man"), (3.0, 5.0, "man")]


def test_shape_and_label_of_a_region_may_be_two_results():
    value = {"framesCount": 50, "duration": 5.0, "sequence": [{"frame": 11, "enabled": False}]}
    shape = {"id": "x", "from_name": "box", "type": "videorectangle", "value": value}
    label = {"id": "x", "from_name": "kind", "type": "labels", "value": {**value, "labels": ["man"]}}
    (video,), _ = read_text_as("label-studio", json.dumps([task(shape, label)]), "export.json")
    assert labels_of(video) == [(1.0, 1.1, "man")]


def test_regions_of_sound_are_in_seconds_and_other_results_are_counted():
    sound = {
        "from_name": "a",
        "type": "labels",
        "value": {"start": 1.25, "end": 3, "labels": ["bark"], "channel": 0},
    }
    text = {
        "from_name": "t",
        "type": "labels",
        "value": {"start": 3, "end": 9, "text": "word", "labels": ["X"]},
    }
    choice = {"from_name": "c", "type": "choices", "value": {"choices": ["good"]}}
    box = {"from_name": "b", "type": "rectanglelabels", "value": {"x": 1, "y": 2, "rectanglelabels": ["car"]}}
    moment = {"from_name": "a", "type": "labels", "value": {"start": 2, "end": 2, "labels": ["bark"]}}
    nameless = {"from_name": "a", "type": "labels", "value": {"start": 2, "end": 3, "labels": []}}
    tasks = [task(sound, text, choice, box, moment, nameless)]
    (video,), report = read_text_as("label-studio", json.dumps(tasks), "export.json")
    assert labels_of(video) == [(1.25, 3.0, "bark")]
    assert set(report.lines("f")) == {
        "f: 3 entries of other kinds not carried: they are no stretches of time",
        "f: 1 point event not carried: a moment has no duration",
        "f: 1 segment without label not carried: no class to learn",
    }


def test_one_annotation_of_a_task_counts():
    several = task()
    several["annotations"] = [
        {"was_cancelled": True, "result": [timeline(1, 10, "skipped")]},
        {"result": [timeline(1, 10, "first")]},
        {"ground_truth": True, "result": [timeline(1, 10, "truth")]},
    ]
    (video,), report = read_text_as("label-studio", json.dumps([several]), "export.json", fps=TEN)
    assert labels_of(video) == [(0.0, 1.0, "truth")]
    assert set(report.lines("f")) == {
        "f: 1 skipped annotation not carried: somebody skipped the task",
        "f: 1 further annotation of a task not carried: the first one counts",
    }


def test_predictions_count_where_nobody_annotated():
    predicted = task(annotations=[], predictions=[{"result": [timeline(1, 10, "run", score=0.75)]}])
    (video,), _ = read_text_as("label-studio", json.dumps([predicted]), "export.json", fps=TEN)
    assert [item.score for item in video.labels] == [0.75]


def test_scripts_that_count_from_zero_and_name_the_upload_alone():
    entry = {"file_upload": "abc12345-video1.mp4", "annotations": [{"result": [timeline(0, 90, "walk")]}]}
    (video,), _ = read_text_as("label-studio", json.dumps([entry]), "e.json", fps=Fraction(30))
    assert (video.name, labels_of(video)) == ("video1.mp4", [(0.0, 3.0, "walk")])


def test_the_minimal_export():
    entry = {
        "video": "s3://bucket/day/a%20b.mp4",
        "id": 1,
        "actions": [{"ranges": [{"start": 11, "end": 20}], "timelinelabels": ["run"]}],
        "comment": "fine",
        "annotator": 1,
        "annotation_id": 2,
        "lead_time": 3.5,
    }
    (video,), _ = read_text_as("label-studio", json.dumps([entry]), "export.json", fps=TEN)
    assert video.file_name == "a b.mp4" and labels_of(video) == [(1.0, 2.0, "run")]


def minimal(annotation: int, label: str, video: str = "a.mp4", **more) -> dict:
    action = {"ranges": [{"start": 1, "end": 10}], "timelinelabels": [label]}
    return {"video": video, "actions": [action], "annotator": 1, "annotation_id": annotation, **more}


def test_one_annotation_of_a_task_counts_in_the_minimal_export_too():
    entries = [
        minimal(1, "first", id=1),
        minimal(2, "other", id=2, video="b.mp4"),
        minimal(3, "further", id=1),
    ]
    (a, b), report = read_text_as("label-studio", json.dumps(entries), "export.json", fps=TEN)
    assert (a.name, labels_of(a)) == ("a.mp4", [(0.0, 1.0, "first")])
    assert (b.name, labels_of(b)) == ("b.mp4", [(0.0, 1.0, "other")])
    assert report.lines("f") == ["f: 1 further annotation of a task not carried: the first one counts"]


def test_entries_of_the_minimal_export_without_a_task_or_of_two_projects_stay_apart():
    entries = [minimal(1, "x"), minimal(2, "y"), minimal(3, "z", id=1), minimal(4, "z", id=1, video="b.mp4")]
    videos, report = read_text_as("label-studio", json.dumps(entries), "export.json", fps=TEN)
    assert [(video.name, len(video.labels)) for video in videos] == [("a.mp4", 1)] * 3 + [("b.mp4", 1)]
    assert report.lines("f") == []


def test_a_task_that_nobody_annotated_is_left_out_and_an_empty_annotation_is_not():
    skipped = {"was_cancelled": True, "result": [timeline(1, 10, "run")]}
    tasks = [
        task(timeline(1, 10, "run")),
        task(data={"video": "later.mp4"}, annotations=[]),
        task(data={"video": "skipped.mp4"}, annotations=[skipped]),
        task(data={"video": "quiet.mp4"}),
    ]
    videos, report = read_text_as("label-studio", json.dumps(tasks), "export.json", fps=TEN)
    assert [(video.file_name, len(video.labels)) for video in videos] == [
        ("match_1.mp4", 1),
        ("quiet.mp4", 0),
    ]
    assert set(report.lines("f")) == {
        "f: 1 skipped annotation not carried: somebody skipped the task",
        "f: 2 tasks without annotation not carried: what happens there is not known",
    }


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"video": "/data/upload/3/1b2c3d4e-a.mp4"}, "/data/upload/3/a.mp4"),
        ({"video": "/data/local-files/?d=days/one/a%20b.mp4"}, "days/one/a b.mp4"),
        ({"video_url": "https://x.org/v/a.mp4?token=1"}, "/v/a.mp4"),
        ({"text": "hello", "clip": "b.webm"}, "b.webm"),
        ({"video": "abcdef01-a.mp4"}, "abcdef01-a.mp4"),
        ({"text": "hello"}, ""),
    ],
)
def test_names_of_videos(data, name):
    assert media_name(data) == name


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            [{"data": {"video": "a.mp4"}, "annotations": [{"result": [{"value": 3}]}]}],
            "task 1: annotations.0.result",
        ),
        ([task(timeline("x", 2, "a"))], "export.json: actions: ranges.0.start: got 'x', want a number"),
        (
            [{"data": {"video": "a.mp4", "fps": 0.0}, "annotations": [{"result": [timeline(1, 2, "a")]}]}],
            "--fps",
        ),
        ([{"data": {"video": "a.mp4", "fps": -2}, "annotations": []}], "task 1: fps: got '-2'"),
    ],
)
def test_what_is_wrong_is_named(document, message):
    with pytest.raises(ValueError, match=message):
        read_text_as("label-studio", json.dumps(document), "export.json")


def test_a_tag_is_read_alone():
    other = timeline(1, 10, "sun", from_name="weather")
    (video,), _ = read_text_as(
        "label-studio",
        json.dumps([task(timeline(1, 10, "run"), other)]),
        "e.json",
        fps=TEN,
        tiers=["weather"],
    )
    assert labels_of(video) == [(0.0, 1.0, "sun")]
    with pytest.raises(ValueError, match="e.json: no tier 'sky', want one of: 'actions'"):
        read_text_as(
            "label-studio", json.dumps(task(timeline(1, 2, "run"))), "e.json", fps=TEN, tiers=["sky"]
        )


def test_relations_and_annotations_that_are_numbers_are_no_labels():
    relation = {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"}
    full = task(timeline(1, 10, "run"), relation, predictions=[3, 4])
    (video,), report = read_text_as("label-studio", json.dumps([full]), "e.json", fps=TEN)
    assert labels_of(video) == [(0.0, 1.0, "run")]
    assert report.lines("f") == ["f: 1 entry of another kind not carried: they are no stretches of time"]


def test_detections_are_written_as_predictions_and_annotations_as_annotations():
    fps = Fraction(25)
    text, _ = written("label-studio", LabelledVideo("a.mp4", (TimedLabel(1.0, 2.0, "x", 0.5),), fps=fps))
    (made,) = json.loads(text)
    (result,) = made["predictions"][0]["result"]
    assert result["value"] == {"ranges": [{"start": 26, "end": 50}], "timelinelabels": ["x"]}
    assert result["score"] == 0.5 and "annotations" not in made
    text, _ = written("label-studio", LabelledVideo("a.mp4", (TimedLabel(1.0, 1.001, "x"),), fps=fps))
    (made,) = json.loads(text)
    assert made["annotations"][0]["result"][0]["value"]["ranges"] == [{"start": 26, "end": 26}]
    with pytest.raises(ValueError, match="a.mp4: its frame rate is not known"):
        written("label-studio", LabelledVideo("a.mp4", ()))
