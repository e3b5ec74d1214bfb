"""predict: the numbers of evaluation, from plain files; bad files are named, the others go on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from painted_video import painted_video
from untrained_run import PACKED, checkpoint, write_videos

from pipeline.dataset import Dataset
from pipeline.packing.prepare import PreparedFiles
from tools.make_shards import main as make_shards
from tools.predict import main
from tools.prediction import opened
from tools.prediction.detect import SecondsBar, predict
from train.cli import Output
from train.eval import main as evaluate
from train.inference import load_trained
from train.postprocess import RawWindow

COPIED = {"copy": True}
SILENT = Output(quiet=True)
# A network without training scores all much alike; each number still depends on every pixel.
# A batch of more windows may be summed in another order: 1e-8 was seen, float32 resolves 6e-8 of a score.
BATCH_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run"), PACKED)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def predicted(*arguments, code: int = 0) -> dict:
    """The document of `predict ... --json`."""
    result = call(main, *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def packed_and_evaluated(videos: Path, folder: Path, run: Path, *options: str) -> tuple[Path, Path]:
    """The shards of the videos, and what eval detects in them with batches of one window."""
    rows = ["video,start,end,label,subset", "first,0.5,1.5,run,validation", "second,,,,validation"]
    (folder / "own.csv").write_text("\n".join([*rows, ""]))
    shards, out = folder / "shards", folder / "eval.json"
    packing = call(make_shards, videos, folder / "own.csv", "--out", shards, "--quiet", *options)
    assert packing.exit_code == 0, packing.output
    source = ("--checkpoint", run, "--shards", shards)
    done = call(evaluate, *source, "--out", out, "--set", "optimizer.batch_size=1")
    assert done.exit_code == 0, done.output
    done = call(evaluate, *source, "--out", folder / "batched.json", "--set", "optimizer.batch_size=3")
    assert done.exit_code == 0, done.output
    return shards, out


def results(path: Path) -> dict[str, list]:
    return json.loads(path.read_text())["results"]


@pytest.mark.slow
def test_the_numbers_are_those_of_packing_the_file_and_evaluating_it(videos, run, tmp_path):
    options = ("--fps", "10", "--short-side", "24", "--gop", "8")
    shards, evaluated = packed_and_evaluated(videos, tmp_path, run, *options)
    result = call(main, videos, "--checkpoint", run, "--out", tmp_path / "found")
    assert result.exit_code == 0, result.output
    found = results(tmp_path / "found" / "detections.json")
    assert found == results(evaluated)
    assert {key: len(entries) for key, entries in found.items()} == {"first": 100, "second": 100}
    for key, entries in results(tmp_path / "batched.json").items():
        by_segment = {(*entry["segment"], entry["label"]): entry["score"] for entry in entries}
        mine = {(*entry["segment"], entry["label"]): entry["score"] for entry in found[key]}
        assert by_segment == pytest.approx(mine, abs=BATCH_TOLERANCE)

    packed = tmp_path / "packed"  # a file from the shards is encoded like the training data: taken as it is
    packed.mkdir()
    for key in found:
        (packed / f"{key}.mp4").write_bytes(Dataset.open(shards).read(key))
    call(main, packed, "--checkpoint", run, "--out", tmp_path / "again")
    assert results(tmp_path / "again" / "detections.json") == found


@pytest.mark.slow
def test_weights_trained_on_kept_bytes_see_the_bytes_of_the_file(videos, tmp_path):
    run = checkpoint(tmp_path / "run", COPIED)
    _, evaluated = packed_and_evaluated(videos, tmp_path, run, "--copy")
    predicted(videos, "--checkpoint", run, "--out", tmp_path / "found")
    assert results(tmp_path / "found" / "detections.json") == results(evaluated)


@pytest.mark.slow
def test_a_broken_file_is_named_and_the_others_go_on(videos, run, tmp_path):
    broken, out = tmp_path / "broken.mkv", tmp_path / "found"
    broken.write_bytes((videos / "first.mkv").read_bytes()[:600])  # within its first frame
    result = call(main, broken, videos / "second.webm", "--checkpoint", run, "--out", out, "--quiet")
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {broken}: ") and len(line) > len(f"error: {broken}: ")
    found = json.loads((out / "detections.json").read_text())
    assert found["results"]["broken"] == [] and len(found["results"]["second"]) == 100
    assert found["external_data"]["rejected"] == {"broken": line.removeprefix(f"error: {broken}: ")}
    assert sorted(path.name for path in out.iterdir()) == [
        *("detections.csv", "detections.json", "second.srt")
    ]


@pytest.mark.slow
def test_what_is_missing_of_a_file_and_what_was_left_out_is_printed(videos, run, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "cut.mkv").write_bytes((videos / "first.mkv").read_bytes()[:3000])
    (films / "notes.txt").write_text("no video")
    result = call(main, films, "--checkpoint", run, "--out", tmp_path / "found")
    assert result.exit_code == 0, result.output
    assert f"{films / 'cut.mkv'}: the container is damaged: File ended prematurely; " in result.stderr
    assert "left out: 1 file without the ending of a video (.txt 1); name one to try it" in result.stderr
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert len(found["results"]["cut"]) == 100


@pytest.mark.slow
def test_a_window_that_cannot_be_decoded_is_that_files_failure(videos, run, tmp_path, monkeypatch, capsys):
    from pipeline.clip_decoder import ClipDecoder

    start, calls = ClipDecoder.start, []

    def broken_at_first(self, request):
        calls.append(1)
        if len(calls) == 2:  # the second window of first.mkv
            raise ValueError("frame 7 cannot be decoded")
        return start(self, request)

    monkeypatch.setattr(ClipDecoder, "start", broken_at_first)
    trained = load_trained(run, ["run.device=cpu"])
    files = {path.stem: path for path in sorted(videos.iterdir())}
    first, second = predict(trained, files, output=SILENT)
    assert first.reason == "frame 7 cannot be decoded" and first.detections == ()
    assert second.reason is None and len(second.detections) == 100
    assert capsys.readouterr().err == f"error: {videos / 'first.mkv'}: frame 7 cannot be decoded\n"


@pytest.mark.slow
def test_the_options_leave_some_out_and_change_no_number(videos, run, tmp_path):
    everything = predicted(videos, "--checkpoint", run, "--out", tmp_path / "all")["videos"]["first"]
    best = everything["detections"]
    level = best[40]["score"]
    options = ("--min-score", level, "--classes", "run,swim", "--top", 5)
    some = predicted(videos, "--checkpoint", run, "--out", tmp_path / "some", *options)["videos"]["first"]
    wanted = [entry for entry in best if entry["score"] >= level and entry["label"] in ("run", "swim")]
    assert some["detections"] == wanted[:5] and 0 < len(wanted[:5]) < len(best)
    assert some["duration"] == 3.2 and some["file"] == str(videos / "first.mkv")
    hard = ("--set", "post.nms=hard", "--set", "post.nms_tiou=0.3")
    other = predicted(videos, "--checkpoint", run, "--out", tmp_path / "hard", *hard)["videos"]["first"]
    assert other["detections"] != best


@pytest.mark.slow
def test_results_are_not_replaced_without_force_and_that_is_told_at_once(videos, run, tmp_path, monkeypatch):
    arguments = (videos / "second.webm", "--checkpoint", run, "--out", tmp_path)
    (tmp_path / "second.srt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("train.inference.load_trained", None)  # so much as looking at the weights would fail
        assert "second.srt: exists; --force replaces it" in refused(main, *arguments)
    assert (tmp_path / "second.srt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    predicted(*arguments, "--force")
    assert (tmp_path / "second.srt").read_text().startswith("1\n00:00:0")


@pytest.mark.slow
def test_where_nothing_can_be_read_nothing_is_written(videos, run, tmp_path):
    empty, out = tmp_path / "zero.mp4", tmp_path / "found"
    empty.touch()
    result = call(main, empty, "--checkpoint", run, "--out", out)
    assert result.exit_code == 2 and "written to" not in result.stdout and not out.exists()
    assert f"error: {empty}: the file is empty" in result.stderr
    assert "not written, as none of the 1 files could be read" in result.stderr
    empty.write_bytes((videos / "second.webm").read_bytes())
    predicted(empty, "--checkpoint", run, "--out", out)  # no --force: there is nothing to replace


@pytest.mark.slow
def test_names_with_any_letters_lead_to_subtitles_beside_the_video(videos, run, tmp_path):
    names = ["monday morning", "\u00dcbung \u65e5\u672c", 'a "quoted"']
    films = tmp_path / "films"
    films.mkdir()
    for name in names:
        (films / f"{name}.webm").write_bytes((videos / "second.webm").read_bytes())
    found = predicted(films, "--checkpoint", run, "--out", tmp_path / "found")["videos"]
    assert set(found) == set(names)
    assert {path.stem for path in (tmp_path / "found").glob("*.srt")} == set(names)


def test_bad_input_is_one_line(videos, run, tmp_path):
    source = ("--checkpoint", run, "--out", tmp_path / "found")
    assert "no such file or folder" in refused(main, tmp_path / "nowhere.mp4", *source)
    assert "no video in it" in refused(main, tmp_path, *source)
    assert "no model.safetensors" in refused(main, videos, "--checkpoint", tmp_path, *source[2:])
    assert "did you mean 'jump'" in refused(main, videos, *source, "--classes", "jmup")
    assert "unknown setting" in refused(main, videos, *source, "--set", "post.sigmoid=1")
    unsaid = checkpoint(tmp_path / "unsaid", {})
    assert "want copy, or codec" in refused(main, videos, "--checkpoint", unsaid, "--out", tmp_path / "found")
    (unsaid / "checkpoints" / "last" / "packing.json").unlink()
    assert "dataset.json" in refused(main, videos, "--checkpoint", unsaid, "--out", tmp_path / "found")
    assert not (tmp_path / "found").exists() or not list((tmp_path / "found").iterdir())


@pytest.mark.slow
def test_the_next_file_is_decoded_while_the_network_sees_the_last_window(videos, run, tmp_path, monkeypatch):
    events: list[str] = []
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(b"no video")
    files = {"a": videos / "first.mkv", "bad": broken, "b": videos / "second.webm"}
    begin = opened.open_video

    def opening(trained, video, packed, **options):
        events.append(f"decode {video.key}")
        return begin(trained, video, packed, **options)

    trained = load_trained(run)
    seen = trained.network.detector.detect

    def detect(*arguments, **options):
        events.append("network")
        return seen(*arguments, **options)

    monkeypatch.setattr(opened, "open_video", opening)
    monkeypatch.setattr(trained.network.detector, "detect", detect)
    monkeypatch.setattr(PreparedFiles, "is_next_ready", lambda self: self._taken < len(self._jobs))
    found = list(predict(trained, files, output=SILENT))
    assert [video.reason is None for video in found] == [True, False, True]
    windows = events[1 : events.index("decode bad")]
    assert set(windows) <= {"network"} and events.count("network") >= 2
    assert events[0] == "decode a"
    assert events[len(windows) + 1 :][:3] == ["decode bad", "network", "decode b"], "before the last window"


@pytest.mark.slow
def test_ctrl_c_leaves_no_file_and_no_process(videos, run, tmp_path, monkeypatch):
    from train import inference

    detect_in_batches, calls = inference.detect_in_batches, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detect_in_batches(*arguments, **options)

    scratch, out = tmp_path / "scratch", tmp_path / "found"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(inference, "detect_in_batches", interrupted)
    assert call(main, videos, "--checkpoint", run, "--out", out).exit_code == 130
    assert len(calls) == 2 and list(out.iterdir()) == [] and list(scratch.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_the_progress_bar_counts_seconds_of_video(capsys):
    bar = SecondsBar({"a": 10.0, "bad": 6.0, "b": 4.0}, no_bar=False)
    ends = [(0.0, 4.0), (2.0, 6.0), (5.0, 9.0)]
    nothing = np.zeros((0, 2))
    windows = [RawWindow("a", times, 9.0, 4, nothing, nothing, nothing, nothing) for times in ends]
    bar.begin("a", 9.0)  # a second less than its header says
    assert [bar.bar.n for _ in bar.watch(windows)] == [4, 6, 9]
    bar.begin("bad", 0.0)  # not to be read: nothing to wait for
    bar.begin("b", 4.0)
    assert (bar.bar.n, bar.bar.total) == (9, 13)
    list(bar.watch([RawWindow("b", (0.0, 4.0), 4.0, 4, nothing, nothing, nothing, nothing)]))
    assert bar.bar.n == 13
    assert "13/13 s of video" in capsys.readouterr().err


def test_the_help_has_an_example():
    assert "leantad predict match.mp4 --checkpoint runs/demo" in call(main, "--help").output


REAL = {
    "decord_corrupted.mp4": False,
    "decord_video_270.mov": True,
    "torchcodec_av1_video.mkv": True,
    "torchcodec_h265_10bits.mp4": True,
    "torchcodec_testsrc2_mpeg4.avi": True,
    "torchcodec_testsrc2_odd_height_and_width_vp9.mp4": True,
    "torchcodec_testsrc2_vp8.webm": True,
}


@pytest.mark.ci
@pytest.mark.slow
def test_real_files_of_many_kinds_get_an_answer_or_a_reason(shared_real, run, tmp_path):
    paths = [shared_real / "videos" / name for name in REAL]
    found = predicted(*paths, "--checkpoint", run, "--out", tmp_path / "found", code=1)["videos"]
    for (name, readable), video in zip(REAL.items(), found.values(), strict=True):
        assert Path(video["file"]).name == name
        assert bool(video["detections"]) == (video["reason"] is None) == readable
    assert "Invalid data" in found["decord_corrupted"]["reason"]


def peak_mib_of(work) -> float:
    """The most memory that this process held during `work`, above what it held before."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path):
    trained = load_trained(checkpoint(tmp_path / "run", COPIED), ["run.device=cpu", "data.window_seconds=8"])
    peaks = []
    for seconds in (20, 20, 80):  # the first run fills pools and caches
        path = tmp_path / f"{len(peaks)}.mp4"
        path.write_bytes(painted_video(seconds * 10, size=(96, 128), codec="libx264", fps=10))
        peaks.append(peak_mib_of(lambda path=path: list(predict(trained, {"long": path}, output=SILENT))))
    # 80 s decoded are 28 MiB, 20 s 7 MiB; 15 more windows of candidates come to 1 MiB
    assert peaks[2] < peaks[1] + 8, peaks


@pytest.mark.slow
def test_auto_threshold_leaves_out_what_scores_less_than_its_class_needs(run, videos, tmp_path):
    everything = predicted(videos, "--checkpoint", run, "--out", tmp_path / "all")["videos"]
    scores = sorted(d["score"] for video in everything.values() for d in video["detections"])
    middle = {"score": scores[len(scores) // 2], "f1": 0.5}
    copy = tmp_path / "copy"
    shutil.copytree(run / "checkpoints" / "last", copy)
    options = ("--checkpoint", copy, "--auto-threshold", "--out", tmp_path / "some")
    assert "no thresholds; these weights were not validated" in refused(main, videos, *options)
    classes = {"jump": {"score": scores[-1], "f1": 1.0}, "run": {"score": 0.0, "f1": 0.1}}
    thresholds = {"subset": "validation", "overall": middle, "classes": classes}
    (copy / "thresholds.json").write_text(json.dumps(thresholds))
    needed = {"jump": scores[-1], "run": 0.0, "swim": middle["score"]}
    some = predicted(videos, *options)["videos"]
    for key, video in everything.items():
        kept = [d for d in video["detections"] if d["score"] >= needed[d["label"]]]
        assert some[key]["detections"] == kept
    assert 0 < sum(len(video["detections"]) for video in some.values()) < len(scores)
    result = call(main, videos, *options, "--force", "--set", "post.sigma=0.4")
    assert "warning: thresholds were chosen without post.sigma=0.4" in result.stderr
    assert "thresholds of best F1 on 'validation': jump " in result.stderr
    assert "; that of all classes for 'swim', not found there" in result.stderr
    last_weights = ("--force", "--set", "optimizer.ema_decay=0")
    result = call(main, videos, *options, *last_weights)  # there are no others
    assert "were chosen without" not in result.stderr
    shutil.copy(copy / "model.safetensors", copy / "model_ema.safetensors")
    text = (copy / "settings.yaml").read_text()
    (copy / "settings.yaml").write_text(text.replace("ema_decay: 0.0", "ema_decay: 0.9"))
    result = call(main, videos, *options, "--force")
    assert "averaged weights" in result.stderr and "were chosen without" not in result.stderr
    result = call(main, videos, *options, *last_weights)
    assert "warning: thresholds were chosen without optimizer.ema_decay=0" in result.stderr


@pytest.mark.slow
def test_what_was_detected_is_printed_although_the_disk_is_full(run, videos, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tools.predict.write_outputs", full)
    out = tmp_path / "out"
    result = call(main, videos / "second.webm", "--checkpoint", run, "--out", out, "--json")
    assert result.exit_code == 2 and f"error: {out}: detections not written (" in result.stderr, result.output
    assert list(json.loads(result.stdout)["videos"]) == ["second"] and "written to" not in result.stderr


def test_a_second_predict_stays_out_of_the_folder_of_the_first(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    hold = "import sys, time; from pathlib import Path; from pipeline.lock import writing_folder\n"
    hold += "with writing_folder(Path(sys.argv[1]), 'predict'): print('held', flush=True); time.sleep(100)"
    command = [sys.executable, "-c", hold, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        options = ("--checkpoint", tmp_path, "--out", tmp_path / "out", "--force")
        second = call(main, tmp_path / "a.mp4", *options)
        first.kill()
    assert second.exit_code == 2, second.output
    assert f"another predict is writing here (process {first.pid} on" in second.stderr
