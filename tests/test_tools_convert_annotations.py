"""leantad convert-annotations: files in, files out, a line for what is lost, code 2 for what is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import call
from commands import refused as refused_by
from test_tools_labels_boris import AGGREGATED, project
from test_tools_labels_elan import SAMPLE as ELAN
from test_tools_labels_via import PROJECT as VIA

from pipeline.annotations import Action, Video, read_annotations
from tools.convert_annotations import main as convert
from tools.labels.formats import WRITABLE
from tools.make_shards import main as make_shards

CSV = "video,start,end,label,subset\na.mp4,1.5,3,jump,training\na.mp4,2,4,run,training\nb.mp4,,,,validation\n"
SRT = "1\n00:00:01,000 --> 00:00:02,000\njump\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


run = partial(call, convert)


def refused(*arguments: object) -> str:
    line = refused_by(convert, *arguments)
    assert len(line) <= 500
    return line


def left(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_export_becomes_annotations_that_make_shards_reads(folder):
    (folder / "coded.boris").write_text(json.dumps(project()))
    result = run("coded.boris")
    assert result.exit_code == 0, result.output
    videos = read_annotations("annotations.csv")
    assert [(key, video.duration, len(video.actions)) for key, video in videos.items()] == [
        ("a.mp4", 10.0, 2),
        ("b.mp4", 20.0, 0),
        ("live", None, 1),
    ]
    assert "warning: coded.boris: 1 point event not carried: a moment has no duration\n" in result.stderr
    assert "coded.boris  BORIS project       3       3" in result.stdout
    assert "written to annotations.csv: 3 videos, 3 labels of 1 class, annotations (CSV)" in result.stdout


def test_many_files_become_one_table_and_are_recognised_one_by_one(folder):
    (folder / "mon").mkdir()
    (folder / "mon" / "cam.srt").write_text(SRT)
    (folder / "tue.txt").write_text("1\t2\trun\n")
    (folder / "talk.eaf").write_text(ELAN)
    (folder / "via.json").write_text(json.dumps(VIA))
    result = run(
        *("mon/cam.srt", "tue.txt", "talk.eaf", "via.json", "./tue.txt"), "--subset", "validation", "--json"
    )
    assert result.exit_code == 0, result.output
    videos = read_annotations("annotations.csv", subset="validation")
    assert list(videos) == ["cam", "tue", "talk ä.mp4", "day1.mp4", "day2.mp4"]
    document = json.loads(result.stdout)
    assert [each["format"] for each in document["read"]] == ["srt", "audacity", "elan", "via"]
    assert {"what": "deleted entries", "number": 1, "reason": "somebody deleted them in VIA"} in document[
        "not_carried"
    ]
    assert document["files"] == ["annotations.csv"] and document["labels"] == 14


def test_one_video_a_file_makes_a_folder_or_a_file(folder):
    (folder / "a.csv").write_text(CSV)
    result = run("a.csv", "--to", "elan", "--out", "elan")
    assert result.exit_code == 0 and left(folder / "elan") == {"a.eaf", "b.eaf"}
    assert "there are 2; name a folder" in refused("a.csv", "--out", "all.eaf")
    assert run("elan/a.eaf", "--out", "a.vtt").exit_code == 0
    assert (folder / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:01.500 --> 00:00:03.000\njump\n")
    assert run("a.csv", "--to", "srt").exit_code == 0
    assert left(folder / "annotations") == {"a.srt", "b.srt"}


def test_a_file_without_labels_says_that_nothing_happens_in_its_video(folder):
    (folder / "quiet.srt").write_text("")
    assert run("quiet.srt").exit_code == 0
    assert read_annotations("annotations.csv")["quiet"].actions == ()


def test_detections_are_converted_with_their_scores(folder):
    detections = [
        {"segment": [1, 2], "label": "run", "score": 0.9},
        {"segment": [3, 4], "label": "run", "score": 0.1},
    ]
    videos = {"a": {"file": "/v/a.mp4", "duration": 9.5}}
    document = {"version": "x", "external_data": {"videos": videos}, "results": {"a": detections}}
    (folder / "detections.json").write_text(json.dumps(document))
    result = run(
        "detections.json", "--min-score", "0.3", "--fps", "10", "--to", "label-studio", "--out", "ls.json"
    )
    assert result.exit_code == 0, result.output
    (task,) = json.loads((folder / "ls.json").read_text())
    assert [each["score"] for each in task["predictions"][0]["result"]] == [0.9]
    assert run("detections.json", "--out", "back.json").exit_code == 0
    assert read_annotations("back.json")["/v/a.mp4"].duration == 9.5


def test_detections_of_a_run_keep_the_subset_and_the_names_of_the_annotations(folder):
    detection = {"segment": [1, 2], "label": "run", "score": 0.9}
    videos = {
        "mp4-1f": {"source": "видео 1.mp4", "duration": 60.0},
        "both": {"source": "s", "file": "in/b.mp4"},
    }
    external = {"subset": "validation", "videos": videos}
    document = {"external_data": external, "results": dict.fromkeys((*videos, "bare"), [detection])}
    (folder / "detections.json").write_text(json.dumps(document))
    assert run("detections.json").exit_code == 0
    read = read_annotations("annotations.csv")
    assert list(read) == ["видео 1.mp4", "in/b.mp4", "bare"] and read["видео 1.mp4"].duration == 60.0
    assert {video.subset for video in read.values()} == {"validation"}
    assert run("detections.json", "--subset", "test", "--out", "a.json").exit_code == 0
    assert {video.subset for video in read_annotations("a.json").values()} == {"test"}


SUBSET_LOST = "subset of a video not carried: no field for them; give --subset when reading the file\n"


@pytest.mark.parametrize("target", [name for name in WRITABLE if name not in ("csv", "activitynet")])
def test_subsets_are_counted_where_a_format_has_no_field_for_them(folder, target):
    (folder / "a.csv").write_text(CSV)
    result = run("a.csv", "--to", target, "--out", "out", "--fps", "25")
    assert result.exit_code == 0 and f"1 {SUBSET_LOST}" in result.stderr, result.output
    (folder / "a.csv").write_text(CSV.replace("validation", "training"))
    assert SUBSET_LOST not in run("a.csv", "--to", target, "--out", "out", "--fps", "25", "--force").stderr


def test_results_are_replaced_only_by_force(folder):
    (folder / "a.csv").write_text(CSV)
    (folder / "out.json").write_text("mine")
    (folder / "elan").mkdir()
    (folder / "elan" / "b.eaf").write_text("mine")
    assert "--force replaces it" in refused("a.csv", "--out", "out.json")
    assert "elan/b.eaf: exists; --force" in refused("a.csv", "--to", "elan", "--out", "elan")
    assert (folder / "out.json").read_text() == "mine" and left(folder / "elan") == {"b.eaf"}
    assert run("a.csv", "--out", "out.json", "--force", "--quiet").output == ""
    assert "folder no does not exist" in refused("a.csv", "--out", "no/out.json")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.bin", b"\x00\x01\x02", [], "zero bytes"),
        (
            "a.csv",
            b"one,two\n1,2\n",
            [],
            "a table wants the header video,start,end,label; --from says which it is: csv",
        ),
        ("a.bin", b"one,two", [], "in none of the formats; --from says which it is: csv, activitynet"),
        (
            "a.csv",
            "Vid\u00e9o;D\u00e9but\n".encode(),
            ["--from", "csv"],
            "names of columns; want video,start,end",
        ),
        ("a.csv", "Vid\u00e9o".encode("cp1252"), [], "save the file as UTF-8 (in Excel: CSV UTF-8)"),
        ("a.eaf", b"<!DOCTYPE a [<!ENTITY x 'y'>]><a/>", [], "has a document type"),
        ("a.xml", b"<annotations/>", [], "--fps says how many frames"),
        ("a.xml", b"<annotations/>", ["--fps", "fast"], "--fps: got 'fast'"),
        ("a.json", b"{", [], "a.json, line 1, column 2: not JSON"),
        ("a.json", b"[" * 100_000, [], "a.json: nested too deeply"),
        ("a.boris", b"{}", [], "a.boris: behaviors_conf: Field required"),
        ("a.boris", b"[]", [], "a.boris: the whole: "),
        ("a.boris.gz", b"\x1f\x8b", [], "is packed, or a spreadsheet; unpack it, or save it as CSV"),
        ("cvat.zip", b"PK\x03\x04\x14", [], "is packed, or a spreadsheet"),
        ("a.txt", b"1\t1\tclick\n", [], "no label with a start and an end, only 1 point event; nothing"),
        ("a.txt", b"1\t2\tx\n", ["--tier", "x"], "--tier: Audacity labels has no tiers"),
        ("a.txt", b"1\t2\tx\n", ["--out", "a.odt"], "a.odt: its ending is no format's; --to says which"),
        ("a.txt", b"1\t2\tx\n", ["--to", "frames"], "a: its frame rate is not known"),
        ("a.txt", b"hello\n", ["--from", "via"], "a.txt, line 1, column 1: not JSON"),
        ("a.json", b'{"view": {}, "file": {}, "metadata": {}}', [], "a.json: no video in it"),
        (
            "a.json",
            b'[{"data": {"video": 1}, "annotations": []}]',
            [],
            "no video in it; label-studio: 1 task",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_nothing_is_written(folder, name, content, options, message):
    (folder / name).write_bytes(content)
    assert message in refused(name, *options)
    assert left(folder) == {name}


def test_a_folder_and_an_unknown_format_are_refused(folder):
    (folder / "elan").mkdir()
    assert "is a folder, want files, such as elan/*.eaf" in refused("elan")
    (folder / "a.csv").write_text(CSV)
    result = run("a.csv", "--to", "pptx")
    assert result.exit_code == 2 and "'pptx' is not one of" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("talk.eaf", ELAN, "ELAN"),
        ("coded.boris", json.dumps(project()), "BORIS project"),
        ("events.csv", AGGREGATED, "BORIS events"),
        ("via project.json", json.dumps(VIA), "VIA 3 project"),
        ("match.srt", SRT, "SubRip subtitles"),
        ("frames.csv", "video,label,start_frame,end_frame\na,b,1,2\n", "frame numbers (CSV)"),
    ],
)
def test_make_shards_names_the_converter_for_a_file_of_a_labelling_tool(folder, name, text, title):
    (folder / name).write_text(text)
    (folder / "videos").mkdir()
    (folder / "videos" / "a.mp4").write_bytes(b"x")
    result = CliRunner().invoke(make_shards, ["videos", name, "--out", "shards"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    quoted = f"'{name}'" if " " in name else name
    assert f"({title}); leantad convert-annotations {quoted} --out annotations.csv makes" in result.stderr
    assert (
        "columns are separated by commas"
        in CliRunner().invoke(make_shards, ["videos", _semicolons(folder), "--out", "shards"]).stderr
    )


@pytest.mark.parametrize(
    "text",
    [
        "Video;Start;End;Label;Subset;Duration\r\na.mp4;4,5;0:06;run, jump;x;9,5\r\n",
        "sep=;\r\nvideo;start;end;label;subset;duration\r\na.mp4;4,5;6;run, jump;x;9,5\r\n",
        'video\tstart\tend\ttype\tsubset\tduration\na.mp4\t4.5\t0:00:06\t"run, jump"\tx\t9.5\n',
        'video,start,end,label,subset,duration\na.mp4,"4,5",6.0,"run, jump",x,"9,5"\n',
    ],
    ids=["semicolons", "the separator above", "tabs", "decimal commas"],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_as_a_spreadsheet_saves_it_becomes_one_for_make_shards(folder, text, encoding):
    (folder / "table.csv").write_text(text, encoding=encoding, newline="")
    run("table.csv", "--out", "made.csv")
    wanted = Video("a.mp4", "x", 9.5, (Action(4.5, 6.0, "run, jump"),))
    assert read_annotations("made.csv") == {"a.mp4": wanted}


def test_lines_count_from_that_of_the_separator(folder):
    (folder / "table.csv").write_text("sep=;\nvideo;start;end;label\na.mp4;now;6;run\n")
    assert "line 3: start: got 'now'" in refused("table.csv")


def test_a_comma_that_may_part_thousands_of_seconds_or_frames_is_refused(folder):
    (folder / "table.csv").write_text('video,start,end,label\na.mp4,"1,234","1,300",run\n')
    assert "line 2: start: got '1,234', whose comma may part thousands" in refused("table.csv")
    (folder / "table.csv").write_text("video\tstart\tend\tlabel\na.mp4\t7\t1,300\trun\n")
    assert "line 2: end: got '1,300', whose comma may part thousands" in refused("table.csv")
    (folder / "frames.csv").write_text('video,label,start frame,end frame\na,run,25,"1,300"\n')
    assert "line 2: end frame: got '1,300', whose" in refused("frames.csv", "--fps", 25)


def _semicolons(folder: Path) -> str:
    """A table of our own whose separator is wrong: the message is that of the reader."""
    (folder / "own.csv").write_text(CSV.replace(",", ";"))
    return "own.csv"
