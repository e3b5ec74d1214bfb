"""Annotations: the public files read as they are; wrong ones are refused by name and line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import duplicates
from pipeline.annotations import Action, Video, read_annotations, read_classes, repair_actions
from pipeline.duplicates import is_duplicate

ROOT = Path(__file__).resolve().parents[1]


def write_json(path: Path, database: object) -> Path:
    path.write_text(json.dumps({"database": database}))
    return path


def test_an_activitynet_file_is_read_with_numbers_as_text_and_without_a_duration(tmp_path):
    entry = {"subset": "test", "annotations": [{"segment": ["18.6", "24.8"], "label": "HighJump"}]}
    videos = read_annotations(write_json(tmp_path / "a.json", {"v": entry, "w": {"duration": 3.5}}))
    assert videos["v"] == Video("v", "test", None, (Action(18.6, 24.8, "HighJump"),))
    assert videos["w"] == Video("w", "training", 3.5, ())


def test_a_csv_is_read_with_extra_columns_and_videos_without_actions(tmp_path):
    path = tmp_path / "a.csv"
    rows = ["subset,video,label,start,end,note", "val,v,jump,2,3,x", "val,v,run,0,1.5,", "training,w,,,,"]
    path.write_text("\ufeff" + "\r\n".join(rows) + "\r\n\r\n", encoding="utf-8")
    videos = read_annotations(path)
    assert videos["v"] == Video("v", "val", None, (Action(0, 1.5, "run"), Action(2, 3, "jump")))
    assert videos["w"] == Video("w", "training", None, ())
    assert list(read_annotations(path, subset="val")) == ["v"]


def test_the_header_of_a_csv_may_have_capitals_spaces_and_thumos_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Video, Start ,END,type,type_idx\nv,1,2,Diving,3\n")
    assert read_annotations(path)["v"].actions == (Action(1, 2, "Diving"),)
    path.write_text("video,start,end,Label,type\nv,1,2,jump,x\n")
    assert read_annotations(path)["v"].actions == (Action(1, 2, "jump"),)


def test_a_quoted_cell_may_stand_after_a_space(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('video, start, end, "label"\nv, 1, 2, jump\nv, 3, "4", "jump"\nv, 5, 6, "jump, high"\n')
    actions = (Action(1, 2, "jump"), Action(3, 4, "jump"), Action(5, 6, "jump, high"))
    assert read_annotations(path)["v"].actions == actions


def test_the_header_of_a_csv_may_stand_below_empty_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n ,,,\nvideo,start,end,label\n\nv,1,2,jump\n")
    assert read_annotations(path)["v"].actions == (Action(1, 2, "jump"),)


@pytest.mark.parametrize(
    "rows",
    [
        ["video,start,end,label,subset,,,", "v,0.2,0.8,act,val,,,", "w,,,,val,,,", ",,,,,,,"],
        ["video,start,end,label,subset,,", "v,0.2,0.8,act,val", "w,,,,val,,,,"],
        [",video,start,end,label,,subset", "0,v,0.2,0.8,act,,val", "1,w,,,,x,val"],
        ["video,start,end,label,subset, , ", "v,0.2,0.8,act,val,unsure,", "w,,,,val, ,"],
        ["video,start,end,label,subset,note,note", "v,0.2,0.8,act,val,a,b", "w,,,,val,,"],
    ],
)
def test_columns_without_a_name_and_cells_below_them_are_left_out(tmp_path, rows):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([*rows, ""]))
    assert read_annotations(path) == {
        "v": Video("v", "val", None, (Action(0.2, 0.8, "act"),)),
        "w": Video("w", "val", None, ()),
    }


@pytest.mark.parametrize("value", ["0_2", "1_0.5", "\uff11", "infinity", "1e999", "0x1", "1:23"])
@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_a_time_that_is_no_plain_number_is_refused(tmp_path, name, value):
    path = tmp_path / name
    if name == "a.csv":
        path.write_text(f"video,start,end,label,duration\nv,{value},9,a,9\n", encoding="utf-8")
    else:
        write_json(path, {"v": {"annotations": [{"segment": [value, "9"], "label": "a"}]}})
    with pytest.raises(ValueError, match=r"a\.(csv, line 2: start|json: .*segment): got '.*', want a"):
        read_annotations(path)
    (tmp_path / "d.csv").write_text(f"video,start,end,label,duration\nv,1,9,a,{value}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: duration: got"):
        read_annotations(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.json", '{"database": {', "line 1, column 15: not JSON"),
        ("a.json", "[]", 'no "database" object'),
        ("a.json", '{"database": {}}', "no video in it"),
        ("a.json", '{"database": {"v": {}, "v": {}}}', "'v' stands twice in one object"),
        ("a.json", '{"database": {"v": 3}}', "database.v: got 3, want an object"),
        ("a.json", '{"database": {"v": {"subset": 3}}}', "database.v.subset: got 3"),
        ("a.json", '{"database": {"v": {"duration": -1}}}', "database.v.duration: got -1"),
        ("a.json", '{"database": {"v": {"duration": true}}}', "database.v.duration: got True"),
        ("a.json", '{"database": {"v": {"annotations": {}}}}', "database.v.annotations: got {}"),
        ("a.json", '{"database": {"v": {"annotations": [[1, 2]]}}}', "annotations[0]: got [1, 2]"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.csv", "", "line 1: no column 'video' in an empty file"),
        ("a.csv", "video,class,start,end\n", "line 1: no column 'label'"),
        ("a.csv", "\n\nvideo,class,start,end\n", "line 3: no column 'label'"),
        ("a.csv", "\nvideo,start,end,label\n\nv,x,2,a\n", "line 4: start: got 'x'"),
        (
            "a.csv",
            "video,start,end,label\nv,0:10,0:20,a\n",
            "seconds; leantad convert-annotations makes them",
        ),
        ("a.csv", "video;start;end;label\n", "columns are separated by commas, not ';'"),
        ("a.csv", "video\tstart\tend\tlabel\n", "columns are separated by commas, not '\\t'"),
        ("a.csv", '"video";"start";"end";"label"\n', "not ';': leantad convert-annotations makes such"),
        (
            "a.csv",
            "video,start,end,label\nv;1;2;a\n",
            "want 4 (video,start,end,label); columns are separated",
        ),
        ("a.csv", "video,start,end,label,end\n", "line 1: a column stands twice"),
        (
            "a.csv",
            "video,start,end,label,subset\nv,1,2,a,test\nv,1,2,a,\n",
            "line 3: v has subset 'training', further up subset 'test'; want one for a video, or cut it",
        ),
        ("a.csv", "video,start,end,label,,\nv,1,2,a,,,x\n", "line 2: got 7 cells, want 4 (video,start,end,"),
        ("a.csv", "video,start,end,label\nv,1,2,run, fast\n", "label); quote a cell with a separator"),
        ("a.csv", "video,start,end,label\n", "no video in it"),
        ("a.csv", "video,start,end,label\nv,1,2\n", "line 2: got 3 cells, want 4"),
        ("a.csv", "video,start,end,label\nv,1,2,a\nv,x,2,a\n", "line 3: start: got 'x'"),
        ("a.csv", "video,start,end,label\nv,1,nan,a\n", "line 2: end: got 'nan'"),
        ("a.csv", "video,start,end,label\nv,3,2,a\n", "line 2: start 3 s is after end 2 s"),
        ("a.csv", "video,start,end,label\nv,1,2,\n", "line 2: label is ''"),
        ("a.csv", "video,start,end,label\n,1,2,a\n", "line 2: video is empty"),
        ("a.csv", 'video,start,end,label\n"v,1,2,a\n', "not CSV"),
        ("a.csv", "video,start,end,label,subset\nv,1,2,a,x\nv,1,2,a,y\n", "line 3: v has"),
        ("a.txt", "", "got a .txt file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path, name, text, wanted):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_annotations(path)
    message = str(caught.value)
    assert wanted in message and message.startswith(str(path)) and "\n" not in message


def test_bytes_that_are_not_utf_8_are_refused_by_position(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"video,start,end,label\nv,1,2,\xff\n")
    with pytest.raises(ValueError, match="byte 28 is not UTF-8"):
        read_annotations(tmp_path / "a.csv")


def test_an_unknown_subset_is_refused_with_the_known_ones(tmp_path):
    path = write_json(tmp_path / "a.json", {"v": {"subset": "test"}, "w": {"subset": "train"}})
    with pytest.raises(ValueError, match=r"'validation', want one of: test, train"):
        read_annotations(path, subset="validation")


def test_class_files_are_sorted_and_refuse_repeats(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("run\n\njump\n")
    assert read_classes(path) == ("jump", "run")
    path.write_text("run\njump\nrun\n")
    with pytest.raises(ValueError, match="'run' stands there more than once"):
        read_classes(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no class in it"):
        read_classes(path)


def test_repairs_by_hand():
    actions = (
        Action(-1, 2, "a"),
        Action(1, 1, "a"),
        Action(3, 4, "a"),
        Action(3.0005, 4, "a"),
        Action(3, 4, "b"),
        Action(9, 11, "a"),
        Action(10, 12, "a"),
    )
    kept, repairs = repair_actions(Video("v", "s", None, actions), 10.0)
    assert kept == (Action(0, 2, "a"), Action(3, 4, "a"), Action(3, 4, "b"), Action(9, 10, "a"))
    assert [repair.kind for repair in repairs] == [
        "clipped",
        "zero-length",
        "duplicate",
        "clipped",
        "outside",
    ]
    assert repairs[3].detail == "a [9, 11] s became [9, 10] s"


def test_what_clipping_makes_equal_is_a_duplicate_with_a_repair():
    actions = (Action(-2, 3, "a"), Action(-1, 3, "a"), Action(8, 12, "a"), Action(8, 13, "a"))
    kept, repairs = repair_actions(Video("v", "s", None, actions), 10.0)
    assert kept == (Action(0, 3, "a"), Action(8, 10, "a"))
    assert [repair.kind for repair in repairs] == ["clipped", "duplicate"] * 2
    assert repairs[3].detail == "a [8, 13] s dropped"


def test_nothing_is_a_duplicate_of_what_was_dropped_for_its_length_or_lies_outside():
    short = (Action(-1, 0, "a"), Action(-0.9995, 0.0005, "a"), Action(5, 5, "a"), Action(5, 5.0005, "a"))
    kept, repairs = repair_actions(Video("v", "s", None, short), 10.0)
    assert kept == (Action(0, 0.0005, "a"), Action(5, 5.0005, "a"))
    assert [repair.kind for repair in repairs] == ["outside", "clipped", "zero-length"]


SECONDS = st.floats(-5, 25, allow_nan=False)
ACTIONS = st.builds(lambda a, b, c: Action(min(a, b), max(a, b), c), SECONDS, SECONDS, st.sampled_from("xy"))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(ACTIONS, max_size=8), st.none() | st.floats(0.1, 20))
def test_repaired_actions_are_inside_and_repairing_again_changes_nothing(actions, duration):
    by_start = sorted(actions, key=lambda action: (action.start, action.end, action.label))
    video = Video("v", "s", None, tuple(by_start))
    kept, repairs = repair_actions(video, duration)
    limit = float("inf") if duration is None else duration
    assert all(0 <= action.start < action.end <= limit for action in kept)
    dropped = sum(repair.kind != "clipped" for repair in repairs)
    assert len(kept) + dropped == len(actions)
    again, more = repair_actions(replace(video, actions=kept), duration)
    assert (again, more) == (kept, ())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9), st.sampled_from("xy")), max_size=12))
def test_duplicates_are_those_of_comparing_all_with_all(rows):
    """Starts half a millisecond apart: equal, near enough, just too far."""
    actions = tuple(Action(start * 5e-4, 1 + end * 5e-4, label) for start, end, label in sorted(rows))
    kept, _ = repair_actions(Video("v", "s", None, actions), None)
    wanted = [a for i, a in enumerate(actions) if not any(is_duplicate(a, other) for other in actions[:i])]
    assert list(kept) == wanted


def test_comparing_actions_does_not_grow_with_the_square_of_their_number(monkeypatch):
    compared = []
    monkeypatch.setattr(duplicates, "is_duplicate", lambda a, b: compared.append(a))
    actions = tuple(Action(float(number), number + 2.0, "a") for number in range(1000))
    assert repair_actions(Video("v", "s", None, actions), None) == (actions, ())
    assert not compared


@pytest.mark.slow
def test_the_defects_of_activitynet_validation_are_found(shared_real):
    path = shared_real / "annotations" / "anet13" / "anet13_rebuilt_trainval_gt.json"
    videos = read_annotations(path, subset="validation")
    assert len(videos) == 4728 and sum(len(video.actions) for video in videos.values()) == 7293
    results = [repair_actions(video, video.duration) for video in videos.values()]
    kinds = Counter(repair.kind for _, repairs in results for repair in repairs)
    assert kinds == {"zero-length": 3, "duplicate": 19, "clipped": 71}
    # 7271 is what ActivityNet's own notebook prints for this subset
    assert sum(len(actions) for actions, _ in results) == 7271
    assert len(read_annotations(path)) == 14377


def test_actions_with_numbered_classes_are_read_as_multithumos_has_them(tmp_path):
    path = tmp_path / "multithumos.json"
    entry = {"subset": "testing", "duration": 20, "actions": [[12, 1.5, 3], [3, 0, 2]]}
    path.write_text(json.dumps({"a": entry, "b": {"subset": "training", "duration": 5, "actions": []}}))
    videos = read_annotations(path)
    assert videos["a"].actions == (Action(0.0, 2.0, "class 3"), Action(1.5, 3.0, "class 12"))
    assert videos["a"].subset == "testing" and videos["a"].duration == 20 and videos["b"].actions == ()
    path.write_text(json.dumps({"a": {"actions": [[1, 2]]}}))
    with pytest.raises(ValueError, match=r"database.a.annotations\[0\]: got \[1, 2\], want"):
        read_annotations(path)


@pytest.mark.slow
def test_every_public_annotation_file_is_read_or_refused_in_one_line(shared_real):
    counts = {}
    for path in sorted((shared_real / "annotations").rglob("*")):
        if path.suffix in (".json", ".csv"):
            try:
                videos = read_annotations(path)
                counts[path.name] = (len(videos), sum(len(video.actions) for video in videos.values()))
            except ValueError as error:
                message = str(error)
                assert message.startswith(str(path)) and "\n" not in message and "want" in message
    assert counts == {
        "anet13_rebuilt_trainval_gt.json": (14377, 22152),
        "detad_thumos14_test_extra_characteristics.json": (212, 3358),
        "detad_thumos14_val_extra_characteristics.json": (200, 3003),
        "multithumos.json": (413, 38690),
        "test_Annotation.csv": (213, 3457),
        "test_Annotation_ours.csv": (212, 3358),
        "thumos_gt.json": (410, 6318),
        "val_Annotation.csv": (200, 3096),
        "val_Annotation_ours.csv": (200, 3007),
    }


def test_reading_annotations_imports_neither_torch_nor_av_nor_webdataset():
    code = (
        "import sys, pipeline.annotations; print({'torch', 'av', 'webdataset', 'nvidia'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
