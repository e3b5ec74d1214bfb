"""Files on disk: which are meant, what they are called, and how they are encoded."""

from __future__ import annotations

import os
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import pytest
from odd_video import numbers_shown, remuxed, video
from painted_video import painted_video

from pipeline.packing.pack_video import pack_video
from pipeline.packing.prepare import encoding_spec_of, find_videos, left_out, prepare, stated_seconds
from pipeline.packing.rates import exact_rate
from pipeline.packing.transcode import EncodingSpec, has_encoding, transcode
from pipeline.packing.video_folder import VideoFolder
from tools.make_shards import packing_of

SPEC = EncodingSpec(fps=Fraction(10), short_side=32, gop=4)


@pytest.fixture(scope="module")
def source() -> bytes:
    return painted_video(30, size=(48, 64), codec="libx264", fps=15)


@pytest.mark.parametrize("fps", [15.0, 0.0, 29.97, 12.5])
def test_the_encoding_comes_back_from_what_make_shards_writes(fps):
    spec = EncodingSpec(fps=exact_rate(fps), short_side=64, upscale=True, codec="h264", gop=7)
    assert encoding_spec_of(packing_of(spec, 64, ())) == spec
    assert encoding_spec_of(packing_of(None, 64, ())) is None


def test_what_former_versions_packed_is_encoded_as_then():
    packing = packing_of(EncodingSpec(side_multiple=16), 64, ())
    assert encoding_spec_of(packing).side_multiple == 16
    del packing["side_multiple"]
    assert encoding_spec_of(packing) == EncodingSpec()
    assert transcode(painted_video(2, size=(90, 160)), encoding_spec_of(packing))[2].width == 160


@pytest.mark.parametrize("packing", [{}, {"copy": False}, {"codec": "vp9", "fps": "fast"}])
def test_settings_that_do_not_say_the_encoding_are_refused(packing):
    with pytest.raises(ValueError, match="want copy, or codec, fps, short_side"):
        encoding_spec_of(packing)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_folders_and_globs_are_found_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "b.mp4", "in/deep/c.MKV", "in/a.webm", "in/notes.txt", "in/.hidden/x.mp4", "in/.y.mp4")
    touch(tmp_path, "odd.bin", "br[1].mp4")
    found = find_videos(["odd.bin", "in", "*.mp4", "./b.mp4", "br[1].mp4"])
    assert {key: str(path) for key, path in found.items()} == {
        "odd": "odd.bin",
        "a": "in/a.webm",
        "c": "in/deep/c.MKV",
        "b": "b.mp4",
        "br[1]": "br[1].mp4",
    }
    assert list(find_videos(["in/**/*.MKV"])) == ["c"]
    assert list(find_videos(["i?"])) == ["a", "c"]  # a glob that matches a folder means the videos in it


def test_linked_folders_are_searched_and_hidden_ones_are_not_by_all_commands(tmp_path):
    touch(tmp_path, "disk/sub/b.mp4", "in/c.mp4", "in/.trash/c.mp4")
    (tmp_path / "in" / "footage").symlink_to("../disk")
    (tmp_path / "in" / "round").symlink_to("..")
    assert list(find_videos([str(tmp_path / "in")])) == ["c", "b"]
    assert VideoFolder(tmp_path / "in").files == ["c.mp4", "footage/sub/b.mp4"]


def test_names_differ_in_more_than_the_case_of_letters_where_folders_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "mon/cam.MP4", "tue/cam.mp4", "tue/End.mp4", "tue/end.mp4")
    assert list(find_videos(["mon", "tue"])) == ["mon/cam", "End", "tue/cam", "end"]


# encoder, FFmpeg's name of the container, pixel format: what is under endings that no camera writes
ENDINGS = {
    ".gif": ("gif", "gif", "rgb8"),
    ".mxf": ("mpeg2video", "mxf", None),
    ".vob": ("mpeg2video", "vob", None),
    ".asf": ("wmv2", "asf", None),
    ".dv": ("dvvideo", "dv", "yuv420p"),
    ".y4m": ("wrapped_avframe", "yuv4mpegpipe", None),
    ".h264": ("libx264", "h264", None),
    ".hevc": ("libx265", "hevc", None),
    ".m2ts": ("libx264", "mpegts", None),
    ".m2v": ("mpeg2video", "mpeg2video", None),
    ".ivf": ("libvpx-vp9", "ivf", None),
    ".f4v": ("libx264", "mp4", None),
    ".nut": ("mpeg4", "nut", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ffmpeg_reads_is_taken_from_folders_and_packed(tmp_path, ending):
    codec, container, pix_fmt = ENDINGS[ending]
    films = tmp_path / "films"
    films.mkdir()
    size = (576, 720) if ending == ".dv" else (64, 64)
    film = video(tmp_path, codec, container, pix_fmt=pix_fmt, stamps=range(25), size=size)
    (films / f"film{ending}").write_bytes(film)
    files = find_videos([str(films)])
    assert list(files) == ["film"] and VideoFolder(films).find("film") == (f"film{ending}", None)
    spec = EncodingSpec(fps=Fraction(5), short_side=32)
    ((packed, numbers),) = ((one, numbers_shown(path)) for one, path in prepare(files, spec, workers=1))
    assert packed.reject is None and numbers == [0, 5, 10, 15, 20]


def test_files_that_are_no_videos_by_their_ending_are_counted(tmp_path):
    touch(tmp_path, "a.mp4", "notes.txt", "b/more.TXT", "b/sound.mp3", "b/README", ".hidden.txt", "out.bin")
    text = left_out([str(tmp_path / "*"), str(tmp_path), str(tmp_path / "out.bin")])
    number, listed = text.split(" without the ending of a video (")
    assert number == "left out: 5 files" and listed.endswith("); name one to try it")
    assert set(listed.split(")")[0].split(", ")) == {".txt 2", ".mp3 1", "none 1", ".bin 1"}
    assert left_out([str(tmp_path / "a.mp4"), str(tmp_path / "b" / "sound.mp3")]) == ""


def test_a_name_without_ending_means_the_video_and_not_its_preview(tmp_path):
    touch(tmp_path, "film.gif", "film.mp4", "film.h264", "alone.gif")
    folder = VideoFolder(tmp_path)
    assert folder.find("film") == ("film.mp4", None) and folder.find("film.gif") == ("film.gif", None)
    assert folder.find("alone") == ("alone.gif", None)


@pytest.mark.slow
def test_a_link_to_what_is_not_there_is_that_videos_reject(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "gone.mp4").symlink_to("elsewhere.mp4")
    (tmp_path / "round.mp4").symlink_to("round.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    folder = VideoFolder(tmp_path)
    assert folder.find("gone") == (None, "gone.mp4 is a link to elsewhere.mp4, which is not there")
    assert folder.find("round") == (None, "round.mp4 is a link to round.mp4, which is not there")
    assert folder.find("pipe") == (None, "pipe.mp4 is neither a file nor a link to one")
    files = find_videos([str(tmp_path)])
    assert list(files) == ["a", "gone", "round"]
    results = {one.key: one.reject for one, _ in prepare(files, SPEC, workers=1)}
    assert results["gone"] == "No such file or directory" and "symbolic links" in results["round"]


def test_a_name_with_a_colon_is_prepared(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("2024-01-01T12:30:45.mp4").write_bytes(source)
    ((packed, exists),) = (
        (one, path.exists())
        for one, path in prepare(find_videos(["2024-01-01T12:30:45.mp4"]), SPEC, workers=1)
    )
    assert packed.reject is None and packed.num_frames == 20 and exists
    assert stated_seconds(Path("2024-01-01T12:30:45.mp4")) == pytest.approx(2.0, abs=1e-3)


def test_what_is_out_of_the_ordinary_is_reported_with_the_key(tmp_path):
    (tmp_path / "cut.ts").write_bytes(remuxed(video(tmp_path, container="mpegts"), "mpegts", skip=5))
    remarks = []
    files = {"cut": tmp_path / "cut.ts"}
    for _ in prepare(files, SPEC, workers=1, on_remark=lambda *both: remarks.append(both)):
        pass
    assert [(key, repair.kind) for key, repair in remarks] == [("cut", "leading"), ("cut", "begin")]


def test_files_of_one_name_keep_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "x.mp4", "x.avi", "m/day.mp4", "n/day.mp4", "alone.mp4")
    assert set(find_videos(["."])) == {"x.mp4", "x.avi", "m/day", "n/day", "alone"}
    assert list(find_videos(["m"])) == ["day"]  # others matter only where names collide


def test_a_name_is_the_files_own_whatever_letters_it_has(tmp_path):
    touch(tmp_path, "\u65e5\u672c.webm", 'a "quoted".avi', "\u00dcbung 1.mp4", "x.mp4", "x.avi", "x.mp4.avi")
    touch(tmp_path, "...mp4", "new\nline.mkv")
    found = find_videos([str(path) for path in tmp_path.iterdir()])
    whole = str(tmp_path / "x.mp4")[1:]  # all that is shorter could be another file's
    names = {"\u65e5\u672c", 'a "quoted"', "\u00dcbung 1", whole, "x.avi", "x.mp4.avi", "..", "new\nline"}
    assert set(found) == names and found[whole] == tmp_path / "x.mp4"


@pytest.mark.parametrize("argument", ["nowhere.mp4", "empty", "*.mp4"])
def test_an_argument_that_leads_to_no_video_is_refused_by_name(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "empty/notes.txt")
    with pytest.raises(ValueError, match=r"no (such file|video in it)") as error:
        find_videos([argument])
    assert str(error.value).startswith(argument)


def test_the_stated_length_is_read_and_damage_is_no_error(tmp_path, source):
    (tmp_path / "whole.mp4").write_bytes(source)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert stated_seconds(tmp_path / "whole.mp4") == pytest.approx(2.0, abs=1e-3)  # the header's clock
    assert stated_seconds(tmp_path / "broken.mp4") == stated_seconds(tmp_path / "absent.mp4") == 0.0


@pytest.mark.slow
def test_files_become_what_packing_makes_of_them_in_order_and_leave_nothing(tmp_path, source, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / f"{name}.mp4").write_bytes(source if name != "two" else source[: len(source) // 2])
    files = {name: tmp_path / f"{name}.mp4" for name in names}
    data, _, metadata = transcode(source, SPEC)
    with closing(prepare(files, SPEC, workers=2)) as prepared:
        videos = [(video, path.read_bytes() if path.exists() else b"") for video, path in prepared]
    (one, first), (two, nothing), (_, last) = videos
    assert first == last == data
    assert (one.key, one.fps, one.num_frames, one.height) == ("one", 10.0, metadata.num_frames, 32)
    assert one.duration == float(metadata.duration) and one.reject is None
    assert nothing == b"" and two.num_frames == 0 and two.reject
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_file_is_there_until_the_next_but_one_and_whether_the_next_is_ready_is_known(tmp_path, source):
    path = tmp_path / "v.mp4"
    path.write_bytes(source)
    with closing(prepare(dict.fromkeys("abc", path), SPEC, workers=1)) as prepared:
        assert not prepared.is_next_ready(), "nobody has begun"
        (_, a), (_, b) = next(prepared), next(prepared)
        assert a.exists() and b.exists()
        while not prepared.is_next_ready():
            time.sleep(0.01)
        _, c = next(prepared)
        assert not a.exists() and b.exists() and c.exists()
        assert not prepared.is_next_ready(), "there is no other"


@pytest.mark.slow
def test_who_stops_early_leaves_no_process_and_no_file(tmp_path, source, monkeypatch):
    import multiprocessing

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = tmp_path / "v.mp4"
    path.write_bytes(source)
    prepared = prepare({f"v{number}": path for number in range(4)}, SPEC, workers=2)
    next(prepared)
    prepared.close()
    assert multiprocessing.active_children() == [] and list(scratch.iterdir()) == []


@pytest.mark.slow
def test_an_error_of_the_decoder_is_that_files_own(tmp_path, source, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(source)

    def fail_once(job):
        if job.key == "bad":
            raise RuntimeError("unheard of")
        return pack_video(job)

    monkeypatch.setattr("pipeline.packing.prepare.pack_video", fail_once)
    bad, good = prepare({"bad": path, "good": path}, SPEC, workers=1)
    assert bad[0].reject == "RuntimeError: unheard of" and good[0].reject is None


@pytest.mark.slow
def test_a_file_that_is_encoded_so_already_is_not_encoded_again(tmp_path, source):
    data, _, _ = transcode(source, SPEC)
    path = tmp_path / "packed.mp4"
    path.write_bytes(data)
    ((video, kept),) = ((video, file.read_bytes()) for video, file in prepare({"v": path}, SPEC, workers=1))
    assert kept == data and video.codec == "vp9"
    other = EncodingSpec(fps=Fraction(10), short_side=32, gop=5)
    (again,) = (file.read_bytes() for _, file in prepare({"v": path}, other, workers=1))
    assert again != data


def test_a_mark_that_outlived_an_editor_is_not_believed(tmp_path, source):
    data, _, _ = transcode(source, SPEC)
    (tmp_path / "packed.mp4").write_bytes(data)
    with av.open(str(tmp_path / "packed.mp4")) as packed, av.open(str(tmp_path / "cut.mp4"), "w") as output:
        output.metadata.update(packed.metadata)
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 42, 32, "yuv420p"
        for frame in packed.decode(video=0):
            frame.pict_type = 0
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with av.open(str(tmp_path / "cut.mp4")) as edited:
        assert edited.metadata["comment"].startswith("leantad vp9 fps 10")
    assert has_encoding(data, SPEC) and not has_encoding(tmp_path / "cut.mp4", SPEC)
    assert not has_encoding(source, SPEC) and not has_encoding(b"no video", SPEC)
