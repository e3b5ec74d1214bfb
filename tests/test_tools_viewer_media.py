"""Where the viewer finds videos: files, folders, packed data sets; which it refuses to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.records import PackedVideo
from tools.viewer.build import make_view
from tools.viewer.media import VideoFinder, embedded
from train.detections import DetectionsFile


def test_videos_are_found_in_files_and_folders_by_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("v_a.mp4", "deep/b.webm", "deep/c.mp4", "c.mkv"):
        (tmp_path / name).write_bytes(b"x")
    finder = VideoFinder.open((tmp_path,))
    assert finder.find("a").path == tmp_path / "v_a.mp4"
    assert finder.find("b").path == tmp_path / "deep" / "b.webm"
    assert "2 files have this name" in finder.find("c")
    assert finder.find("d") == "no video of this name was found"
    single = VideoFinder.open((tmp_path / "v_a.mp4",))
    assert single.find("a").path == single.find("v_a").path == single.find("v_a.mp4").path
    with pytest.raises(ValueError, match="not here; --videos wants"):
        VideoFinder.open((tmp_path / "nowhere",))


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """va/x.mp4 and vb/x.mp4, as paths below the folder that is the present one."""
    for name in ("va", "vb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return Path("va/x.mp4"), Path("vb/x.mp4")


def test_single_files_of_one_name_are_told_apart_by_their_folders(twins):
    finder = VideoFinder.open((*twins, twins[0].absolute()))
    finder.match_names(
        {"va/x": ["/other/va/x.mp4"], "vb/x": ["/other/vb/x.mp4"], "y": [r"C:\films\vb\x.mp4"]}
    )
    assert (finder.find("va/x").path, finder.find("vb/x").path) == (twins[0].absolute(), twins[1])
    assert finder.find("y").path == twins[1]
    assert finder.find("vc/x") == "no video of this name was found"
    reason = finder.find("x")  # a long path is shortened in the middle
    assert reason.startswith("2 files have this name: ") and reason.endswith("va/x.mp4, vb/x.mp4")


def test_a_single_file_of_another_folder_is_not_shown(twins, monkeypatch):
    finder = VideoFinder.open((twins[0],))
    finder.match_names({"vb/x": ["/other/vb/x.mp4"], "x": ["/other/vb/x.mp4"], "test/x": ["x"]})
    assert finder.find("vb/x") == "no video of this name was found"
    assert finder.find("x").path == finder.find("test/x").path == twins[0]  # not named with a folder
    monkeypatch.chdir("va")
    inside = VideoFinder.open((Path("x.mp4"),))
    assert inside.find("va/x").path == Path("x.mp4") and isinstance(inside.find("vb/x"), str)


def test_a_name_with_a_suffix_means_that_file_alone(tmp_path):
    files = [tmp_path / "x.avi", tmp_path / "x.mp4"]
    for file in files:
        file.write_bytes(b"x")
    finder = VideoFinder.open(tuple(files))
    finder.match_names({"x_mp4": ["x.mp4"], "x": ["/other/x.avi"], "only": ["x"]})
    assert (finder.find("x_mp4").path, finder.find("x").path) == (files[1], files[0])
    assert finder.find("only").startswith("2 files have this name")


def test_a_name_of_two_files_is_remarked_on(twins, tmp_path):
    finder = VideoFinder.open(twins)
    view = make_view({"x": [], "z": []}, None, tmp_path / "view", title="t", finder=finder)
    assert view.remarks == [
        "1 page without a video, none of this name was found: 'z'",
        "1 page without a video, such as 'x': 2 files have this name: va/x.mp4, vb/x.mp4",
    ]
    assert "2 files have this name: va/x.mp4, vb/x.mp4" in view.page_of("x").read_text()


def test_a_result_file_can_only_name_video_files(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "secret.txt").write_bytes(b"x")
    finder = VideoFinder.open(())
    entries = {"a": {"file": str(tmp_path / "a.mp4")}, "b": {"file": str(tmp_path / "secret.txt")}}
    entries |= {"c": {"file": "\0.mp4"}, "d": 3, "e": {"file": None}}
    finder.add_predicted(DetectionsFile({}, {"videos": entries}).files)
    assert list(finder.files) == ["a"]
    finder.add_predicted(DetectionsFile({}, {"videos": "nonsense"}).files)
    assert list(finder.files) == ["a"]


def test_a_video_too_large_to_embed_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 3000)
    found = VideoFinder.open((path,)).find("a")
    entry, text = embedded(found, 0.003)
    assert entry == {"name": "a.mp4", "type": "video/mp4", "url": None, "begin": 0.0} and len(text) == 4000
    with pytest.raises(
        ValueError, match=r"a\.mp4: 0\.0 MiB, want at most 0\.001 to embed it; raise --embed-limit"
    ):
        embedded(found, 0.001)


def test_videos_of_a_packed_data_set_are_taken_out_of_its_shards(tmp_path):
    metadata = {"fps": 10.0, "num_frames": 10, "width": 8, "height": 8, "codec": "vp9"}
    packed = PackedVideo("a", "validation", 1.0, **metadata, actions=(), shard=None, reject=None, source="a")
    lost = replace(packed, key="b", reject="cut short")
    shards = tmp_path / "shards"
    videos, tars = pack_samples(shards, [(packed, b"the bytes")])
    write_dataset(shards, classes=["run"], videos=[*videos, lost], shards=tars, packing={})
    finder = VideoFinder.open((shards / "dataset.json",))
    finder.match_names({"a": [], "b": []})
    assert finder.rejected() == {"b": "cut short"}
    view = make_view({"a": [], "b": []}, None, tmp_path / "view", title="t", finder=finder)
    assert [path.name for path in (view.out / "media").iterdir()] == ["a.mp4"]
    assert (view.out / "media" / "a.mp4").read_bytes() == b"the bytes"
    assert '"url":"../media/a.mp4"' in view.page_of("a").read_text()
    assert "cut short" in view.page_of("b").read_text() and view.problems == []
    tar = shards / tars[0].file
    tar.write_bytes(tar.read_bytes().replace(b"the bytes", b"other one"))
    damaged = make_view({"a": []}, None, tmp_path / "again", title="t", finder=finder)
    assert (
        "the tar is damaged" in damaged.problems[0]
        and "the tar is damaged" in damaged.page_of("a").read_text()
    )
