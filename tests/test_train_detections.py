"""Subtitles, CSV, JSON and the table of predictions, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train.detection_texts import csv_text, format_detections, subtitles
from train.detections import (
    DetectionsFile,
    Selection,
    VideoDetections,
    check_outputs,
    parse_classes,
    read_detections,
    write_outputs,
)
from train.evaluation.video_names import match_videos


def detection(start: float, end: float, label: str, score: float) -> dict:
    return {"segment": [start, end], "label": label, "score": score}


JUMPS = (
    detection(3661.25, 3663.0, "jump", 0.871),
    detection(1.5, 4.0004, "long\njump", 0.5),
    detection(1.5, 3.0, "run, fast", 0.25),
)
FOUND = [
    VideoDetections("a", Path("in/a.mp4"), 4000.0, JUMPS),
    VideoDetections("bad", Path("in/bad.mp4"), None, (), "the file is empty (0 bytes)"),
    VideoDetections("quiet", Path("in/quiet.mp4"), 2.0, ()),
]


def test_overlapping_detections_are_separate_cues_by_start():
    assert subtitles(JUMPS) == (
        "1\n00:00:01,500 --> 00:00:03,000\nrun, fast 0.25\n\n"
        "2\n00:00:01,500 --> 00:00:04,000\nlong jump 0.50\n\n"
        "3\n01:01:01,250 --> 01:01:03,000\njump 0.87\n"
    )
    assert subtitles([]) == ""


def test_a_cue_lasts_a_millisecond_at_least():
    assert "00:00:59,999 --> 00:01:00,000" in subtitles([detection(59.9991, 59.9993, "jump", 1.0)])


def test_the_csv_has_a_row_per_detection_and_quotes_what_needs_it():
    assert csv_text(FOUND).splitlines()[:3] == [
        "video,start,end,label,score,file",
        "a,3661.25,3663.0,jump,0.871,in/a.mp4",
        'a,1.5,4.0004,"long',
    ]
    assert csv_text(FOUND).endswith('a,1.5,3.0,"run, fast",0.25,in/a.mp4\n')


def test_files_that_were_not_read_have_an_empty_list_a_reason_and_no_subtitles(tmp_path):
    write_outputs(tmp_path, FOUND, metadata={"checkpoint": "runs/demo"})
    assert {path.name for path in tmp_path.iterdir()} == {
        *("detections.json", "detections.csv", "a.srt", "quiet.srt")
    }
    read = read_detections(tmp_path / "detections.json")
    assert read.results == {"a": list(JUMPS), "bad": [], "quiet": []}
    assert read.metadata["checkpoint"] == "runs/demo"
    assert read.metadata["rejected"] == read.rejected == {"bad": "the file is empty (0 bytes)"}
    assert read.metadata["videos"]["a"] == {"file": "in/a.mp4", "duration": 4000.0}
    assert read.durations == {"a": 4000.0, "quiet": 2.0} and read.files["a"] == "in/a.mp4"
    assert (tmp_path / "quiet.srt").read_text() == ""


def test_videos_of_a_feature_file_have_its_names_and_no_signature_of_what_it_names(tmp_path):
    videos = [
        VideoDetections("monday_1", Path("all.h5"), 9.0, JUMPS, source="monday 1"),
        VideoDetections("b", Path("all.h5"), 9.0, JUMPS, source="b.mp4", video_file="in/b.mp4"),
    ]
    write_outputs(tmp_path, videos[:1], metadata={})
    read = read_detections(tmp_path)
    assert read.metadata["videos"] == {"monday_1": {"source": "monday 1", "duration": 9.0}}
    assert read.names == {"monday_1": ["monday 1"]} and read.is_own
    assert match_videos(read.names, {"v_monday 1": ()}) == {"monday_1": "v_monday 1"}
    write_outputs(tmp_path, videos, metadata={})
    read = read_detections(tmp_path)
    assert read.metadata["videos"]["b"] == {"source": "b.mp4", "file": "in/b.mp4", "duration": 9.0}
    assert read.files == {"b": "in/b.mp4"} and not read.is_own
    rows = (tmp_path / "detections.csv").read_text().splitlines()
    assert rows[1] == "monday_1,3661.25,3663.0,jump,0.871," and rows[-1].endswith(",in/b.mp4")


def test_files_are_those_of_the_folder_in_which_they_were_named(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there" / "a.mp4"
    videos = [VideoDetections("b", Path("in/b.mp4"), 9.0, JUMPS), VideoDetections("a", there, 9.0, JUMPS)]
    write_outputs(tmp_path, videos, metadata={"folder": str(here)})
    read = read_detections(tmp_path)
    assert read.files == {"b": "in/b.mp4", "a": str(there)} and read.is_own
    assert read.located_files == {"b": str(here / "in" / "b.mp4"), "a": str(there)}
    moved = DetectionsFile(read.results, {**read.metadata, "folder": str(tmp_path)})
    assert not moved.is_own  # nobody else's folder is searched
    write_outputs(tmp_path, videos, metadata={})  # as earlier versions did
    assert read_detections(tmp_path).is_own
    assert read_detections(tmp_path).located_files == read.files


def test_metadata_of_a_foreign_file_is_left_out_where_it_is_not_ours():
    videos = {"a": {"file": "a.mp4", "source": 3, "duration": "long"}, "b": 3, "c": {"duration": -1.0}}
    foreign = DetectionsFile({"a": [], "b": []}, {"videos": videos, "rejected": ["a"], "subset": {}})
    assert foreign.files == {"a": "a.mp4"} and foreign.names == {"a": ["a.mp4"], "b": []}
    assert foreign.durations == {} and foreign.rejected == {} and foreign.subset is None
    nothing = DetectionsFile({}, {"videos": [1]})
    assert not (nothing.files or nothing.names or nothing.durations)


def test_renamed_videos_keep_what_the_file_states_of_them():
    stated = {"videos": {"a": {"file": "a.mp4"}}, "rejected": {"b": "the file\nis empty"}, "subset": "test"}
    renamed = DetectionsFile({"a": [], "b": []}, stated).renamed({"a": "v_a", "b": "v_b"})
    assert list(renamed.results) == ["v_a", "v_b"] and renamed.files == {"v_a": "a.mp4"}
    assert renamed.rejected == {"v_b": "the file is empty"} and renamed.subset == "test"


@pytest.mark.parametrize("key", ["monday morning", "\u65e5" * 80, "m/day", "..", "x.mp4", "subtitles/x"])
def test_subtitles_are_named_as_the_file_is_and_stay_in_the_folder(tmp_path, key):
    out = tmp_path / "out"
    out.mkdir()
    write_outputs(out, [VideoDetections(key, Path("in/x.mp4"), 1.0, JUMPS)], metadata={})
    assert (out / f"{key}.srt").read_text() == subtitles(JUMPS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sum(path.is_file() for path in out.rglob("*")) == 3
    for name in ("detections.json", "detections.csv"):
        (out / name).unlink()
    with pytest.raises(ValueError, match=r"\.srt: exists; --force replaces it"):
        check_outputs(out, [key], force=False)


def test_what_is_there_is_not_replaced_unless_asked(tmp_path):
    check_outputs(tmp_path / "new", ["a"], force=False)
    (tmp_path / "a.srt").touch()
    check_outputs(tmp_path, ["b"], force=False)
    with pytest.raises(ValueError, match=r"a\.srt: exists; --force replaces it"):
        check_outputs(tmp_path, ["b", "a"], force=False)
    check_outputs(tmp_path, ["b", "a"], force=True)


def test_a_selection_keeps_the_best_of_what_is_left():
    assert Selection().apply(JUMPS) == JUMPS
    assert Selection(min_score=0.5).apply(JUMPS) == JUMPS[:2]
    assert Selection(classes=frozenset({"run, fast", "jump"})).apply(JUMPS) == (JUMPS[0], JUMPS[2])
    assert Selection(classes=frozenset({"run, fast", "jump"}), top=1).apply(JUMPS) == JUMPS[:1]


def test_classes_are_checked_against_those_of_the_checkpoint():
    known = ["jump", "run", "run, fast"]
    assert parse_classes((), known) is None
    assert parse_classes(("run, jump",), known) == {"jump", "run"}
    assert parse_classes(("run, fast",), known) == {"run, fast"}  # a name that has a comma in it
    with pytest.raises(ValueError, match="'jmup' is no class of this checkpoint; did you mean 'jump'"):
        parse_classes(("run,jmup",), known)
    with pytest.raises(ValueError, match="known: jump, run"):
        parse_classes((",",), known)


def test_a_class_with_a_comma_can_be_chosen_beside_others():
    known = ["jump", "run", "run, fast", "sit"]
    assert parse_classes(("run, fast", "jump"), known) == {"run, fast", "jump"}
    assert parse_classes(("jump,sit", "run, fast"), known) == {"jump", "sit", "run, fast"}
    with pytest.raises(
        ValueError, match=r"'fast' is no class .*\(one with a comma wants a --classes of its own"
    ):
        parse_classes(("run, fast,jump",), known)


def test_a_name_with_line_breaks_or_300_letters_keeps_the_table_in_shape():
    label = "pick\nup\r\n " + "very " * 60 + "slowly"
    found = [VideoDetections("day\n1", Path("v"), 1.0, (detection(0, 1, label, 0.5),))]
    lines = format_detections(found).splitlines()
    assert len(lines) == 3 and lines[1].startswith("day 1") and lines[1].split()[-1] == "0.500"
    assert "pick up very" in lines[1] and lines[1].endswith("slowly  0.500") and len(lines[1]) < 80
    assert subtitles(found[0].detections).splitlines()[2].startswith("pick up very")


def test_the_table_shows_the_best_of_each_video_and_what_it_leaves_out():
    lines = format_detections(FOUND).splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["video", "start", "end", "label", "score"],
        ["a", "3661.25", "3663.00", "jump", "0.871"],
    ]
    assert lines[-2].split() == ["quiet", "-", "-", "nothing", "found", "-"]
    assert lines[-1] == "3 detections in 2 of 3 videos; the best 3 of each"
    many = [VideoDetections(f"v{number}", Path("v"), 1.0, JUMPS) for number in range(10)]
    lines = format_detections(many).splitlines()
    assert len(lines) == 22 and lines[-1].endswith("the best 3 of each (10 lines left out)")


def written(folder: Path, entry: object) -> Path:
    path = folder / "d.json"
    path.write_text(json.dumps({"results": {"v": [detection(0, 1, "jump", 0.5), entry]}}))
    return path


def test_numbers_in_quotes_are_read_as_numbers(tmp_path):
    path = written(tmp_path, {"segment": ["0.5", "2"], "label": "jump", "score": "0.25", "id": 7})
    assert read_detections(path).results["v"][1] == detection(0.5, 2.0, "jump", 0.25)


@pytest.mark.parametrize(
    "entry",
    [
        *[detection(0, 1, "jump", score) for score in ("high", None, [1], True, 1e999, 10**400)],
        *[detection(0, end, "jump", 1) for end in (1e999, float("nan"), "0_2", None, {})],
        *[detection(0, 1, label, 1) for label in (5, None, ["jump"])],
        {"segment": [0, 1, 2], "label": "jump", "score": 1},
        {"segment": "01", "label": "jump", "score": 1},
        {"label": "x" * 5000},
        None,
        "x" * 5000,
    ],
)
def test_an_unsound_detection_is_named_by_video_and_number(tmp_path, entry):
    with pytest.raises(ValueError, match=r"d\.json: detections of 'v', entry 1: got .*, want ") as caught:
        read_detections(written(tmp_path, entry))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
