"""The command `view`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from commands import call
from viewer_cases import GROUND_TRUTH, RESULTS

from tools.view import main
from train.detections import VideoDetections, write_outputs


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """detections.json and truth.json."""
    database = {
        key: {
            "subset": "validation",
            "duration": one.duration,
            "annotations": [{"segment": [a.start, a.end], "label": a.label} for a in one.actions],
        }
        for key, one in GROUND_TRUTH.items()
    }
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    (tmp_path / "d.json").write_text(json.dumps({"results": RESULTS}))
    return tmp_path / "d.json", tmp_path / "truth.json"


run = partial(call, main)


@pytest.mark.parametrize("trust", [(), ("--trust",)], ids=["one's own", "a trusted stranger's"])
def test_the_videos_are_those_that_predict_read_whatever_the_folder(tmp_path, monkeypatch, trust):
    for folder in ("mine", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"a video")
    monkeypatch.chdir(tmp_path / "other")
    found = VideoDetections("a", Path("a.mp4"), 8.0, RESULTS["good"])
    write_outputs(tmp_path / "found", [found], metadata={"folder": str(tmp_path / "mine")})
    if trust:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # another account
    result = run(tmp_path / "found", "--out", tmp_path / "view", *trust)
    assert result.exit_code == 0, result.output
    assert '"url":"../../mine/a.mp4"' in (tmp_path / "view" / "videos" / "a.html").read_text()


def test_pages_show_the_name_that_people_gave_a_video_not_its_key(files, tmp_path):
    """A key has no letters but ASCII's: of a Chinese name nothing but a number would be left."""
    document = {"results": RESULTS, "external_data": {"videos": {"good": {"source": "\u6bd4\u8d5b"}}}}
    files[0].write_text(json.dumps(document))
    result = run(files[0], "--ground-truth", files[1], "--out", tmp_path / "view")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "view" / "videos" / "good.html").read_text()
    index = (tmp_path / "view" / "index.html").read_text()
    assert "<title>\u6bd4\u8d5b" in page and '"good"' not in page
    assert json.dumps("\u6bd4\u8d5b") in index and '"good"' not in index and '"bad"' in index


def test_the_command_writes_an_index_and_a_page_per_video(files, tmp_path):
    out = tmp_path / "view"
    result = run(files[0], "--ground-truth", files[1], "--out", out)
    assert result.exit_code == 0 and f"4 pages: open {out / 'index.html'}" in result.output
    assert "Detected classes that have no true action anywhere: 'fly'" in result.stderr
    assert sorted(path.name for path in (out / "videos").iterdir()) == [
        f"{key}.html" for key in sorted(GROUND_TRUTH)
    ]
    text = (out / "videos" / "good.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text) and " src=" not in text
    assert text.count("default-src 'none'") == 1 and not list(out.rglob("*.tmp"))


def test_results_are_not_replaced_without_being_asked(files, tmp_path):
    out = tmp_path / "view"
    assert run(files[0], "--out", out).exit_code == 0
    again = run(files[0], "--out", out)
    assert again.exit_code == 2 and "exists; --force replaces it" in again.stderr
    assert run(files[0], "--out", out, "--force").exit_code == 0


def test_with_json_stdout_is_one_document_and_with_quiet_nothing(files, tmp_path):
    result = run(files[0], "--ground-truth", files[1], "--out", tmp_path / "v", "--json")
    document = json.loads(result.stdout)
    assert list(document["videos"]) == ["bad", "half", "good", "empty"] and document["threshold"] == 0.7
    assert document["videos"]["bad"]["error"] == pytest.approx(2.0)
    quiet = run(files[0], "--out", tmp_path / "q", "--quiet")
    assert quiet.output == "" and quiet.exit_code == 0


def test_a_video_that_cannot_be_embedded_is_an_error_and_the_others_are_done(files, tmp_path):
    (tmp_path / "good.mp4").write_bytes(b"x" * 5000)
    (tmp_path / "half.mp4").write_bytes(b"x")
    videos = ("--videos", tmp_path / "good.mp4", "--videos", tmp_path / "half.mp4")
    result = run(files[0], *videos, "--embed", "--embed-limit", "0.001", "--out", tmp_path / "view")
    assert result.exit_code == 1 and "good.mp4: 0.0 MiB, want at most 0.001" in result.stderr
    pages = tmp_path / "view" / "videos"
    assert "want at most 0.001 to embed it" in (pages / "good.html").read_text()
    assert '"type":"video/mp4"' in (pages / "half.html").read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"results": {}}', "no video in them"),
        ('{"results": {"a": [{"segment": [0, 1]}]}}', "detections of 'a', entry 0"),
        ('{"results": ', "not JSON"),
        ('{"results": {"a": [], "b": []}, "external_data": {"videos": [1], "subset": {}}}', ""),
    ],
)
def test_bad_detections_are_one_line_and_code_2(tmp_path, content, says):
    path = tmp_path / "d.json"
    path.write_text(content)
    result = run(path, "--out", tmp_path / "view", "-q")
    assert result.exit_code == (2 if says else 0)
    assert says in result.stderr and result.stderr.count("\n") == (1 if says else 0)


def test_videos_and_annotations_are_found_however_they_are_spelled(files, tmp_path):
    database = json.loads(files[1].read_text())["database"]
    spelled = {f"v_{key}.mp4": one for key, one in database.items()}
    (tmp_path / "truth.json").write_text(json.dumps({"database": spelled}))
    films = tmp_path / "films"
    films.mkdir()
    (films / "v_good.mp4").write_bytes(b"x")
    source = (files[0], "--ground-truth", tmp_path / "truth.json", "--videos", films)
    result = run(*source, "--out", tmp_path / "view", "--json")
    assert result.exit_code == 0, result.stderr
    assert "4 of 4 videos matched by file name, such as 'good' with 'v_good.mp4'" in result.stderr
    document = json.loads(result.stdout)
    assert document["videos"]["v_bad.mp4"]["error"] == pytest.approx(2.0)
    assert 'films/v_good.mp4"' in Path(document["videos"]["v_good.mp4"]["page"]).read_text()
