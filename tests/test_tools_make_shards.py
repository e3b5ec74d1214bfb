"""make-shards: all packed or rejected by name, killed runs continue, bad input is one line, exit code 2."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from packing_cases import numbers_in, write_video

from pipeline.dataset import Dataset
from pipeline.packing import pack_dataset
from pipeline.packing.journal import Journal
from pipeline.packing.probe import probe
from pipeline.packing.video_folder import VideoFolder
from tools.dataset.packing_summary import class_table
from tools.make_shards import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, str(ROOT / "tools" / "make_shards.py")]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """The command in this process: its workers are processes of their own anyway."""
    arguments = [str(argument) for argument in (*arguments, "--workers", 2)]
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def start(*arguments: object) -> subprocess.Popen:
    """The command in a process that can be killed."""
    command = [*COMMAND, *(str(argument) for argument in arguments), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def entry(*actions: tuple[float, float, str], subset: str = "training") -> dict:
    annotations = [{"segment": [start, end], "label": label} for start, end, label in actions]
    return {"subset": subset, "annotations": annotations}


def annotate(path: Path, database: dict) -> Path:
    path.write_text(json.dumps({"database": database}))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "options", "packed"),
    [
        ((320, 180), ("--short-side", 64), (112, 64)),
        ((240, 180), ("--short-side", 64), (80, 64)),
        ((180, 320), ("--short-side", 64), (64, 112)),
        ((180, 100), (), (176, 96)),
        ((180, 100), ("--short-side", 0), (176, 96)),
        ((320, 180), ("--short-side", 60), (106, 60)),
        ((90, 50), ("--copy",), (90, 50)),
    ],
)
def test_sides_are_multiples_of_16_unless_asked_otherwise(tmp_path, source, options, packed):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", range(0, 400, 40), size=source)
    annotations = annotate(tmp_path / "a.json", {"a": entry((0.1, 0.3, "run"))})
    done = run(tmp_path / "videos", annotations, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    (video,) = Dataset.open(tmp_path / "out").videos.values()
    assert (video.width, video.height) == packed
    assert ("no multiple of 16" in done.stderr) == (60 in options)


@pytest.fixture
def videos(tmp_path) -> Path:
    """Three good videos of 1 s, under names with traps."""
    folder = tmp_path / "videos"
    (folder / "part.1").mkdir(parents=True)
    write_video(folder / "v_one.mp4", range(0, 1000, 40))
    write_video(folder / "part.1" / "two.mkv", range(0, 1000, 40))
    write_video(folder / "a name.with dots.mp4", range(0, 1000, 40))
    return folder


@pytest.fixture
def annotations(tmp_path) -> Path:
    database = {
        "one": entry((0, 0.5, "run"), (0.2, 0.2, "run")),
        "two": entry((0.1, 3, "jump"), (0.1, 3, "jump"), subset="validation"),
        "a name.with dots.mp4": entry(subset="validation"),
    }
    return annotate(tmp_path / "annotations.json", database)


@pytest.mark.slow
def test_videos_become_a_data_set(videos, annotations, tmp_path):
    done = run(videos, annotations, "--out", tmp_path / "out", "--shard-size", 2, "--verify")
    assert done.returncode == 0, done.stderr
    assert "packed: 3 of 3 videos" in done.stdout and "verified: 45 frames" in done.stdout
    assert "repairs and remarks (clipped 1, duplicate 1, zero-length 1): 3" in done.stdout
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.classes == ("jump", "run") and sorted(dataset.shards) == ["00000.tar", "00001.tar"]
    assert [video.source for video in dataset.packed("validation")] == ["a name.with dots.mp4", "two"]
    assert dataset.videos["two"].file == "part.1/two.mkv" and dataset.videos["one"].file == "v_one.mp4"
    (action,) = dataset.videos["two"].actions
    assert action.start == 0.1 and 0.96 < action.end <= 1.0
    assert numbers_in(dataset.read("one")) == [k * 25 // 15 for k in range(15)]
    names = set(contents(tmp_path / "out"))
    tars = {"00000.tar", "00001.tar", "00000.idx", "00001.idx"}
    assert names == {*tars, "dataset.json", "rejects.csv"}


@pytest.mark.slow
def test_a_bad_video_among_good_ones_is_a_reject_by_reason(videos, tmp_path):
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("no video")
    good = (videos / "v_one.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(good[: len(good) // 2])
    write_video(videos / "twice.mkv", range(0, 400, 40))
    write_video(videos / "twice.mp4", range(0, 400, 40))
    names = ["one", "empty", "text", "cut", "twice", "absent", "../other", "/etc/passwd"]
    database = {name: entry((0, 0.5, "run")) for name in names} | {"two": entry((50, 60, "run"))}
    done = run(videos, annotate(tmp_path / "a.json", database), "--out", tmp_path / "out", "--strict")
    assert done.returncode == 1, done.stderr
    assert "packed: 1 of 9 videos" in done.stdout and "rejected: 8" in done.stdout
    with open(tmp_path / "out" / "rejects.csv", newline="") as file:
        reasons = {row["video"]: row["reason"] for row in csv.DictReader(file)}
    wanted = {
        "empty": "the file is empty (0 bytes)",
        "text": "not a readable video",
        "cut": "the file breaks off inside a frame",
        "twice": "2 files have this name: twice.mkv, twice.mp4",
        "absent": "no file of this name in the folder",
        "../other": "no file of this name in the folder",
        "/etc/passwd": "no file of this name in the folder",
        "two": "no action overlaps it: it ends at 0.99 s, they begin at 50 s",
    }
    assert set(reasons) == set(wanted)
    assert all(reason in reasons[name] for name, reason in wanted.items()), reasons
    ground_truth = Dataset.open(tmp_path / "out").ground_truth("training")
    assert len(ground_truth) == 9 and all(video.actions for video in ground_truth.values())


def test_a_dangling_link_is_one_reject(videos, tmp_path):
    (videos / "gone.mp4").symlink_to("nowhere.mp4")
    database = {name: entry((0, 0.5, "run")) for name in ("one", "gone")}
    for options in (["--check"], []):
        out = ["--out", tmp_path / "out", *options]
        done = run(videos, annotate(tmp_path / "a.json", database), *out)
        assert done.returncode == 1, done.stderr
        assert "rejected: 1" in done.stdout
        assert "gone: gone.mp4 is a link to nowhere.mp4, which is not there" in done.stdout


@pytest.mark.slow
def test_what_decodes_of_a_cut_file_is_packed_with_a_remark_and_strictly_rejected(videos, tmp_path):
    good = (videos / "v_one.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(good[: len(good) // 2])
    database = {name: entry((0, 0.2, "run"), (0.7, 0.9, "run")) for name in ("cut", "two")}
    path = annotate(tmp_path / "a.json", database)
    done = run(videos, path, "--out", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stderr
    assert "cut: ending: the file breaks off inside a frame; 11 frames, " in done.stdout
    assert "cut: outside: run [0.7, 0.9] s dropped" in done.stdout
    video = Dataset.open(tmp_path / "out").videos["cut"]
    assert video.duration == pytest.approx(0.5, abs=0.1) and len(video.actions) == 1
    assert "strict" not in Dataset.open(tmp_path / "out").packing
    done = run(videos, path, "--out", tmp_path / "strict", "--strict")
    assert done.returncode == 1 and "rejected: 1" in done.stdout
    assert Dataset.open(tmp_path / "strict").packing["strict"] is True
    done = run(videos, path, "--out", tmp_path / "out", "--strict")
    assert done.returncode == 2 and "was begun with strict None, not True" in done.stderr


@pytest.mark.slow
def test_a_data_set_with_other_limits_is_refused_not_found_complete(videos, annotations, tmp_path):
    write_video(videos / "v_one.mp4", range(0, 1200, 40))
    out = ("--out", tmp_path / "out")
    few = run(videos, annotations, *out, "--max-frames", 25)
    assert few.returncode == 1 and "one: it has 30 frames, want at most 25" in few.stderr
    assert Dataset.open(tmp_path / "out").packing["max_frames"] == 25
    assert "already packed" in run(videos, annotations, *out, "--max-frames", 25).stdout
    for options, wanted in ((("--max-frames", 30), 30), ((), None)):
        done = run(videos, annotations, *out, *options)
        assert done.returncode == 2
        assert f"was begun with max_frames 25, not {wanted}; want another --out, or --force" in done.stderr
    assert run(videos, annotations, *out, "--force").returncode == 0
    assert not {"max_frames", "max_pixels", "max_bytes"} & Dataset.open(tmp_path / "out").packing.keys()
    defaults = ("--max-frames", 900_000, "--max-pixels", 36_000_000, "--max-bytes", 2**32)
    assert "already packed" in run(videos, annotations, *out, *defaults).stdout


@pytest.mark.slow
def test_an_action_that_packing_would_lose_names_a_rate_that_keeps_it(videos, tmp_path):
    write_video(videos / "short.mp4", range(0, 200, 40))  # 5 frames; at 4 a second one is packed, for 0.25 s
    write_video(videos / "long.mp4", range(0, 600, 40))
    database = {"short": entry((0.05, 0.05, "run"), (0.17, 0.2, "run")), "two": entry((0, 0.5, "run"))}
    path = annotate(tmp_path / "a.json", database)
    done = run(videos, path, "--out", tmp_path / "out", "--fps", "7")
    reason = "packed at 7 frames a second it ends at 0.1429 s, they begin at 0.17 s; pack with a higher --fps"
    assert done.returncode == 1 and reason in done.stdout, done.stdout
    assert run(videos, path, "--out", tmp_path / "again", "--fps", "15").returncode == 0


@pytest.mark.slow
def test_actions_that_packing_makes_equal_are_one_with_a_repair(videos, tmp_path):
    write_video(videos / "short.mp4", range(0, 200, 40))  # at 7 a second one frame is packed, for 0.143 s
    path = annotate(tmp_path / "a.json", {"short": entry((0.1, 0.16, "run"), (0.1, 0.18, "run"))})
    done = run(videos, path, "--out", tmp_path / "out", "--fps", "7")
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    assert [(action.start, action.end) for action in dataset.videos["short"].actions] == [(0.1, 1 / 7)]
    assert [repair.kind for repair in dataset.repairs] == ["duplicate"]


def test_check_reports_the_same_and_writes_nothing(videos, annotations, tmp_path):
    (videos / "part.1" / "two.mkv").write_bytes(b"")
    before = contents(tmp_path)
    done = run(videos, annotations, "--check", "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "usable: 2 of 3 videos" in done.stdout and "two: the file is empty" in done.stdout
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_csv_a_subset_and_a_class_file(videos, tmp_path):
    (tmp_path / "a.csv").write_text("video,start,end,label,subset\none,0,1,run,train\ntwo,0,1,run,val\n")
    (tmp_path / "classes.txt").write_text("run\nswim\n")
    options = ["--subset", "val", "--classes", tmp_path / "classes.txt", "--codec", "h264", "--fps", "5"]
    done = run(videos, tmp_path / "a.csv", "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    assert list(dataset.videos) == ["two"] and dataset.classes == ("run", "swim")
    assert dataset.videos["two"].codec == "h264" and dataset.videos["two"].fps == 5.0


@pytest.mark.slow
def test_the_end_shows_classes_by_subset_look_alikes_and_files_without_annotations(videos, tmp_path):
    rows = ["one,0,1,right,training", "two,0,0.5,Right,Validation", "two,0.5,1,right,Validation"]
    rows += ["two,0.5,1,right,Validation", "a name.with dots,,,,Validation"]
    (tmp_path / "a.csv").write_text("\n".join(["Video,START, end,label,subset", *rows]) + "\n")
    for number in range(7):
        (videos / f"spare {number}.mp4").write_bytes(b"")
    (videos / "notes.txt").write_text("no video")
    done = run(videos, tmp_path / "a.csv", "--check")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[1:5]]
    assert table[0] == ["actions", "of", "class", "Validation", "training"]
    assert table[1:] == [["Right", "1", "0"], ["right", "1", "1"], ["videos", "2", "1"]]
    for text in (
        "two: duplicate: right",
        "no annotation names, left out: 7 (spare 0.mp4, spare 1.mp4, ",
        ", spare 4.mp4 and 2 more)",
        "warning: subset 'Validation' is not 'validation'",
        "warning: labels 'Right' and 'right' are 2 classes",
    ):
        assert text in done.stdout, text
    packed = run(videos, tmp_path / "a.csv", "--out", tmp_path / "out", "--json")
    again = run(videos, tmp_path / "a.csv", "--out", tmp_path / "out", "--json")
    document = json.loads(packed.stdout)
    assert json.loads(again.stdout) == document and len(document["unnamed"]) == 7
    assert document["per_class"] == {"Right": {"Validation": 1}, "right": {"Validation": 1, "training": 1}}


def test_the_table_of_many_classes_shows_the_rarest():
    per_class = {f"class {number}": {"a": 500 - number} for number in range(200)}
    lines = class_table(per_class, {"a": 9, "b": 1}).splitlines()
    assert lines[1].split() == ["class", "199", "301", "0"] and lines[-1].split() == ["videos", "9", "1"]
    assert len(lines) == 23 and "180 more classes" in lines[-2]
    assert len({len(line) for line in (*lines[:-2], lines[-1])}) == 1


def test_remarks_name_videos_as_the_annotations_do(videos, tmp_path):
    path = annotate(tmp_path / "a.json", {"a name.with dots": entry((0, 0.5, "run"), (0.5, 0.5, "run"))})
    done = run(videos, path, "--out", tmp_path / "out")
    assert "a name.with dots: zero-length" in done.stdout
    dataset = Dataset.open(tmp_path / "out")
    assert list(dataset.videos) == ["a_name_with_dots"]
    assert [repair.video for repair in dataset.repairs] == ["a name.with dots"]


FOUND = {
    "v_one": "v_one.mp4",
    "one": "v_one.mp4",
    "my videos/v_one.mp4": "v_one.mp4",
    "C:\\data\\my videos\\v_one.mp4": "v_one.mp4",
    "part.1\\two.mkv": "part.1/two.mkv",
    "two": "part.1/two.mkv",
    "/data/videos/part.1/two": "part.1/two.mkv",
    "../videos/v_one": "v_one.mp4",
    "Ubung.mp4".replace("U", "\u00dc"): "U\u0308bung.mp4",  # composed in the annotations, decomposed on disk
}
NEAR = {
    "V_One.MP4": "v_one.mp4",
    "v one.mov": "v_one.mp4",
    "val/two.mkv": "part.1/two.mkv",  # the same name in another folder may well be another video
    "../../etc/passwd": None,
    "three": None,
}


def test_a_name_may_be_a_path_from_elsewhere_but_not_another_folder(videos):
    (videos / "U\u0308bung.mp4").write_bytes(b"")
    folder = VideoFolder(videos)
    assert {name: folder.find(name)[0] for name in FOUND} == FOUND
    for name, near in NEAR.items():
        file, reason = folder.find(name)
        hint = f"; is it {near!r}?" if near else ""
        assert file is None and reason == "no file of this name in the folder" + hint, name
    assert folder.unnamed(["two", "one"]) == ("U\u0308bung.mp4", "a name.with dots.mp4")


def test_links_to_folders_are_followed_and_no_file_gets_a_second_name(tmp_path):
    for file in ("disk/far/c.mp4", "disk/b.mp4", "videos/x/own/a.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    links = {"x/train": "disk", "x/val": "disk", "a": "videos/x/own", "x/own/up": "videos", "b": "disk/far"}
    for link, target in links.items():
        (tmp_path / "videos" / link).symlink_to(tmp_path / target)
    (tmp_path / "disk" / "round").symlink_to(".")
    folder = VideoFolder(tmp_path / "videos")
    assert folder.files == ["b/c.mp4", "x/own/a.mp4", "x/train/b.mp4"]
    assert [folder.find(name)[0] for name in ("a", "train/b", "c")] == [
        "x/own/a.mp4",
        "x/train/b.mp4",
        "b/c.mp4",
    ]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "all").symlink_to(tmp_path / "disk")
    assert VideoFolder(tmp_path / "linked").files == ["all/b.mp4", "all/far/c.mp4"]


def test_a_folder_that_is_not_there_is_called_so(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match="vidoes: no such folder, want a folder of videos"):
        VideoFolder(tmp_path / "vidoes")
    with pytest.raises(ValueError, match="a.mp4: is a file, want a folder of videos"):
        VideoFolder(tmp_path / "a.mp4")


def test_two_names_of_one_file_are_refused(videos, tmp_path):
    path = annotate(tmp_path / "a.json", {"one": entry((0, 1, "a")), "v_one.mp4": entry((1, 2, "a"))})
    done = run(videos, path, "--out", tmp_path / "out")
    assert done.returncode == 2 and "'one' and 'v_one.mp4' are both the file 'v_one.mp4'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_subset_without_an_action_gets_a_warning(videos, tmp_path):
    database = {"one": entry((0, 0.5, "run")), "two": entry(subset="validation")}
    done = run(videos, annotate(tmp_path / "a.json", database), "--check")
    assert "warning: subset 'validation' has no action: a run can neither train nor" in done.stdout


@pytest.mark.slow
def test_many_actions_outside_of_their_videos_get_a_warning(videos, tmp_path):
    rows = [f"one,{start},{start + 0.5},run" for start in (0, 25, 50, 75)]
    (tmp_path / "a.csv").write_text("\n".join(["video,start,end,label", *rows]) + "\n")
    done = run(videos, tmp_path / "a.csv", "--check")
    assert "warning: 3 of 4 actions lie outside of their videos and are left out" in done.stdout


def test_a_name_that_is_only_similar_is_found_and_shown(tmp_path):
    folder = tmp_path / "videos"
    for file in ("a.mp4", "c\u00e4fe 1.mp4", "north/day.mp4", "v_b.mp4", "b.mp4"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / file, range(0, 1000, 40))
    wanted = {"v_a": "a.mp4", "cafe_1_mp4": "c\u00e4fe 1.mp4", "north/v_day.MP4": "north/day.mp4"}
    wanted |= {"v_b": "v_b.mp4", "b": "b.mp4", "south/v_day": None}
    database = {name: entry((0, 0.5, "run")) for name in wanted}
    done = run(folder, annotate(tmp_path / "a.json", database), "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    videos = Dataset.open(tmp_path / "out").videos.values()
    assert {video.source: video.file for video in videos} == wanted
    assert "found by a similar file name: 3 (cafe_1_mp4 is c\u00e4fe 1.mp4, north/v_day.MP4 is" in done.stdout
    assert "south/v_day: no file of this name" in done.stdout


def test_a_similar_name_does_not_take_the_file_of_another(tmp_path):
    (tmp_path / "videos").mkdir()
    for file in ("a.mp4", "x y.mp4"):
        write_video(tmp_path / "videos" / file, range(0, 1000, 40))
    folder = VideoFolder(tmp_path / "videos")
    assert folder.find_each(["a", "v_a", "v_a_mp4", "x y", "x_y"]) == {
        "a": ("a.mp4", None),
        "v_a": (None, "no file of this name in the folder"),
        "v_a_mp4": (None, "no file of this name in the folder"),
        "x y": ("x y.mp4", None),
        "x_y": (None, "no file of this name in the folder; is it 'x y.mp4'?"),
    }


@pytest.mark.parametrize("option", [["--fps", "1_5"], ["--fps", "nan"], ["--gop", "3_2"], ["--gop=\u0663"]])
def test_an_option_that_is_no_plain_number_is_refused(tmp_path, option):
    done = run(tmp_path, tmp_path / "a.json", "--out", tmp_path / "out", *option)
    name = option[0].partition("=")[0]
    assert done.returncode == 2 and f"invalid value for '{name}'" in done.stderr, done.stderr


def test_copy_keeps_bytes_and_rejects_what_would_be_shown_wrongly(videos, tmp_path):
    write_video(videos / "turned.mp4", range(0, 1000, 40), rotation=90)
    write_video(videos / "uneven.mp4", [0, 40, 80, 800, 840])
    database = {name: entry((0, 0.5, "run")) for name in ("one", "turned", "uneven")}
    done = run(videos, annotate(tmp_path / "a.json", database), "--out", tmp_path / "out", "--copy")
    assert done.returncode == 1, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.read("one") == (videos / "v_one.mp4").read_bytes()
    assert "turned by 90 degrees" in str(dataset.videos["turned"].reject)
    assert "uneven times" in str(dataset.videos["uneven"].reject)


BAD = {
    "not JSON": (lambda d: (d / "a.json").write_text("{"), [], "not JSON"),
    "no video": (lambda d: annotate(d / "a.json", {}), [], "no video in it"),
    "start after end": (lambda d: annotate(d / "a.json", {"one": entry((2, 1, "a"))}), [], "is after end"),
    "no annotations": (lambda d: (d / "a.json").unlink(), [], "No such file"),
    "unknown subset": (lambda d: None, ["--subset", "test"], "want one of: training, validation"),
    "unknown class": (
        lambda d: (d / "c").write_text("rum\njump"),
        ["--classes", "{d}/c"],
        "did you mean 'rum'?",
    ),
    "odd side": (lambda d: None, ["--short-side", "127"], "want an even number"),
    "copy and fps": (lambda d: None, ["--copy", "--fps", "5"], "--fps has no effect"),
    "out is a file": (lambda d: (d / "out").write_text(""), [], "out"),
    "foreign tars": (lambda d: ((d / "out").mkdir(), (d / "out" / "00000.tar").touch()), [], "--force"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(videos, annotations, tmp_path, case):
    annotations.rename(tmp_path / "a.json")
    prepare, options, message = BAD[case]
    prepare(tmp_path)
    before = contents(tmp_path)
    options = [option.format(d=tmp_path) for option in options]
    done = run(videos, tmp_path / "a.json", "--out", tmp_path / "out", *options)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ") and message in lines[0]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("broken", [b"", b"no video", None])
def test_where_nothing_can_be_packed_there_is_no_data_set(videos, tmp_path, broken):
    if broken is not None:
        (videos / "v_one.mp4").write_bytes(broken)
    path = annotate(tmp_path / "a.json", {"one" if broken is not None else "absent": entry((0, 1, "a"))})
    done = run(videos, path, "--out", tmp_path / "out")
    assert done.returncode == 2 and "none of 1 videos could be packed" in done.stderr
    assert list(contents(tmp_path / "out")) == ["rejects.csv"]
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_folder_of_videos_is_refused(tmp_path, annotations):
    (tmp_path / "none").mkdir()
    for folder in ("none", "nowhere"):
        done = run(tmp_path / folder, annotations, "--out", tmp_path / "out")
        assert done.returncode == 2 and "want a folder of videos" in done.stderr


@pytest.mark.slow
def test_a_finished_data_set_is_left_alone_and_a_cut_shard_is_named(videos, annotations, tmp_path):
    out = tmp_path / "out"
    assert run(videos, annotations, "--out", out).returncode == 0
    before = contents(out)
    done = run(videos, annotations, "--out", out)
    assert done.returncode == 0 and "already packed" in done.stdout and contents(out) == before
    done = run(videos, annotations, "--out", out, "--fps", "5")
    assert done.returncode == 2 and "was begun with fps 15.0, not 5.0" in done.stderr
    (out / "00000.tar").write_bytes(before["00000.tar"][: len(before["00000.tar"]) // 2])
    done = run(videos, annotations, "--out", out, "--verify")
    assert done.returncode == 2 and "00000.tar: has" in done.stderr
    assert run(videos, annotations, "--out", out, "--force").returncode == 0
    assert contents(out) == before


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_file_leaves_nothing(videos, annotations, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_dataset, "remove_folder", killed)
        assert run(videos, annotations, "--out", out).returncode == 130
    assert (out / "dataset.json").exists() and (out / ".work").exists()
    (out / f".{'0' * 16}.{'0' * 8}.1.tmp").mkdir()  # half-removed on another machine, long ago
    os.utime(out / f".{'0' * 16}.{'0' * 8}.1.tmp", (0, 0))
    done = run(videos, annotations, "--out", out)
    assert done.returncode == 0 and "already packed" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == sorted(contents(out))
    assert not any(path.name.startswith(".") for path in out.iterdir())


@pytest.mark.slow
def test_verify_finds_a_changed_byte(videos, annotations, tmp_path):
    assert run(videos, annotations, "--out", tmp_path / "out").returncode == 0
    tar = tmp_path / "out" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    done = run(videos, annotations, "--out", tmp_path / "out", "--verify")
    assert done.returncode == 2 and "sha256 differs" in done.stderr and "Traceback" not in done.stderr


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Eight videos of 2 s, their annotations, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "videos").mkdir()
    for number in range(8):
        path = folder / "videos" / f"k{number}.mp4"
        write_video(path, range(0, 2000, 40), size=(176, 128))
    (folder / "videos" / "k5.mp4").write_bytes(b"")
    path = annotate(folder / "a.json", {f"k{number}": entry((1, 2, "run")) for number in range(8)})
    options = [folder / "videos", path, "--shard-size", 3]
    done = run(*options, "--out", folder / "out")
    assert done.returncode == 1, done.stderr
    return options, contents(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("after", ["videos/*.json", "shards/00000.json"])
def test_a_killed_run_continues_and_gives_the_same_bytes(undisturbed, tmp_path, after):
    options, wanted = undisturbed
    out = tmp_path / "out"
    process = start(*options, "--out", out)
    while not list((out / ".work").glob(after)):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "dataset.json").exists()
    for tar in out.glob("*.tar"):  # what is there under its name is whole
        assert tar.read_bytes() == wanted[tar.name]
    finished = [out / f"{path.stem}.tar" for path in (out / ".work" / "shards").glob("*.json")]
    written = {tar: tar.stat().st_mtime_ns for tar in finished}
    deadline = time.monotonic() + 10
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives the run that started it"
        time.sleep(0.01)
    done = run(*options, "--out", out)
    assert done.returncode == 1, done.stderr
    assert contents(out) == wanted
    assert all(tar.stat().st_mtime_ns == then for tar, then in written.items()), "packed a second time"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["commit_shard", "write_rejects", "write_dataset"])
def test_a_run_that_dies_between_two_steps_continues(undisturbed, tmp_path, monkeypatch, step):
    options, wanted = undisturbed
    owner, calls = Journal if step == "commit_shard" else pack_dataset, []
    original = getattr(owner, step)

    def die(*arguments, **named):
        calls.append(1)
        if len(calls) == (2 if step == "commit_shard" else 1):
            raise SystemError
        return original(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(owner, step, die)
        run(*options, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert run(*options, "--out", tmp_path / "out").returncode == 1
    assert contents(tmp_path / "out") == wanted


@pytest.mark.slow
def test_a_run_with_other_settings_does_not_continue_a_killed_one(undisturbed, tmp_path):
    options, _ = undisturbed
    process = start(*options, "--out", tmp_path / "out")
    while not (tmp_path / "out" / ".work" / "plan.json").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = run(*options, "--out", tmp_path / "out", "--gop", "8")
    assert done.returncode == 2 and "was begun with gop 32, not 8" in done.stderr


@pytest.mark.slow
def test_two_runs_do_not_write_into_one_folder(undisturbed, tmp_path):
    options, wanted = undisturbed
    first = start(*options, "--out", tmp_path / "out")
    while not (tmp_path / "out" / ".work" / "videos").exists():
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    for flags in ((), ("--force",)):
        done = run(*options, "--out", tmp_path / "out", *flags)
        assert done.returncode == 2 and "another make-shards is writing here" in done.stderr
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1 and contents(tmp_path / "out") == wanted


@pytest.mark.slow
@pytest.mark.ci
def test_every_real_file_is_packed_or_rejected(shared_real, tmp_path):
    files = sorted(path.name for path in (shared_real / "videos").iterdir())
    assert len(files) == 29
    path = annotate(tmp_path / "a.json", {name: entry((0, 0.05, "a"), (0, 99, "b")) for name in files})
    done = run(shared_real / "videos", path, "--out", tmp_path / "out", "--shard-size", 8, "--verify")
    assert done.returncode == 1, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    rejected = {video.source: video.reject for video in dataset.videos.values() if video.reject}
    reason = (
        "decoded 29 frames (2.90 s), then: Invalid data found when processing input (h264); more follows, "
    )
    way_out = "so re-encode it to mend it: ffmpeg -i IN -c:v libx264 OUT.mp4"
    assert rejected == {"decord_corrupted.mp4": reason + way_out}
    for video in dataset.packed("training"):
        data, source = dataset.read(video.key), probe(shared_real / "videos" / video.source)
        with av.open(io.BytesIO(data)) as container:
            frames = list(container.decode(video=0))
        assert video.num_frames == len(frames), video.source
        assert video.duration == float((frames[-1].pts + frames[-1].duration) * frames[-1].time_base)
        assert (video.width, video.height) == (frames[0].width, frames[0].height)
        assert abs(video.duration - float(source.duration)) <= 0.5 / video.fps + 1e-9  # float of a fraction
        assert all(0 <= action.start < action.end <= video.duration for action in video.actions)
