"""The Python API: quick to import, the commands' names and numbers, one line where an input is wrong."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, astuple
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_run import SMALL, make_shards_of
from untrained_run import CLASSES, checkpoint, write_videos

import leantad
from tools.make_shards import main as make_shards
from tools.predict import main as predict
from train.eval import main as evaluate
from train.main import main as train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def detector(run) -> leantad.Detector:
    return leantad.load(run, device="cpu", quiet=True)


def called(command, *arguments) -> dict:
    """The document of a command with --json."""
    result = CliRunner().invoke(command, [*(str(argument) for argument in arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_importing_is_quick_and_imports_no_library():
    code = "import sys, time; start = time.perf_counter(); import leantad\n"
    code += "heavy = {'torch', 'av', 'nvidia', 'deepspeed', 'numpy', 'pandas', 'pydantic', 'click'}\n"
    code += "print(heavy & set(sys.modules), time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy, seconds = done.stdout.rsplit(maxsplit=1)
    assert heavy == "set()" and float(seconds) < 1  # 0.02 on an idle machine


def test_help_reads_from_the_example_to_the_last_argument():
    code = "import leantad; help(leantad)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LeanTAD from Python" in done.stdout and 'detector = leantad.load("runs/mine")' in done.stdout
    text = re.sub(
        r"\(\n.*?\n    \)", "(...)", done.stdout, flags=re.DOTALL
    )  # Python 3.13: a line per argument
    assert len(text.splitlines()) < 80
    for function in (leantad.load, leantad.evaluate, leantad.pack, leantad.train):
        assert f"    {function.__name__}(" in done.stdout and inspect.getdoc(function)


@pytest.mark.parametrize(
    ("function", "command", "without"),
    [
        (
            leantad.load,
            predict,
            {"videos", "out", "min_score", "auto_threshold", "top", "classes", "format", "force"},
        ),
        (leantad.evaluate, evaluate, set()),
        (leantad.pack, make_shards, set()),
        (leantad.train, train, set()),
    ],
)
def test_keyword_arguments_are_the_options_with_their_defaults(function, command, without):
    options = {max(p.opts, key=len).strip("-").replace("-", "_"): p for p in command.params}
    arguments = inspect.signature(function).parameters
    assert set(arguments) == set(options) - {"json", "local_rank"} - without
    for name, argument in arguments.items():
        if argument.default is inspect.Parameter.empty or (function, name) == (leantad.evaluate, "out"):
            continue  # required; and Python writes no file that nobody named
        default = options[name].default  # click has an object of its own for "none"
        wanted = default if isinstance(default, (str, float, int)) else None
        assert (argument.default or None) == (wanted or None), name


@pytest.mark.slow
def test_a_detector_gives_the_detections_of_predict(detector, run, videos, tmp_path):
    document = called(predict, videos, "--checkpoint", run, "--out", tmp_path / "found", "--device", "cpu")
    detections = detector(videos)
    assert detector.classes == tuple(CLASSES) and detections.videos == ("first", "second")
    assert detections.durations == {"first": 3.2, "second": 2.0} and detections.rejected == {}
    wanted = [
        leantad.Detection(key, entry["label"], *entry["segment"], entry["score"])
        for key, video in document["videos"].items()
        for entry in video["detections"]
    ]
    assert list(detections) == wanted and len(wanted) == 200
    assert detections.save(tmp_path / "saved") == tmp_path / "saved"
    for name in ("detections.json", "detections.csv", "first.srt", "second.srt"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "found" / name).read_bytes(), name


@pytest.mark.slow
def test_files_folders_and_globs_are_taken_as_predict_takes_them(detector, videos):
    one = detector(videos / "first.mkv", top=3)
    assert one.videos == ("first",) and len(one) == 3
    both = detector(str(videos / "*.mkv"), videos, top=2, classes=["run", "swim"])
    assert both.videos == ("first", "second") and {detection.label for detection in both} <= {"run", "swim"}
    listed = detector([videos / "first.mkv"], (str(videos / name) for name in ("second.webm",)), top=1)
    assert listed.videos == ("first", "second")
    level = one[1].score
    assert list(detector(videos / "first.mkv", min_score=level)) == list(one[:2])


@pytest.mark.slow
def test_detections_are_a_sequence_of_frozen_objects(detector, videos):
    detections = detector(videos / "first.mkv", top=5)
    assert {type(value) for value in astuple(detections[0])} == {str, float}  # not NumPy's
    assert detections[-1] == list(detections)[4] and detections[1:3] == tuple(detections)[1:3]
    assert repr(detections) == "<Detections: 5 in 1 videos>"
    with pytest.raises(FrozenInstanceError):
        detections[0].score = 1.0
    assert repr(detector).startswith("<Detector: ") and "jump, run, swim" in repr(detector)


@pytest.mark.slow
def test_a_table_of_detections(detector, videos, monkeypatch):
    table = detector(videos, top=2).to_pandas()
    assert list(table) == ["video", "label", "start", "end", "score"] and len(table) == 4
    assert list(table.video) == ["first", "first", "second", "second"]
    empty = detector(videos, min_score=1e9).to_pandas()
    assert list(empty) == list(table) and len(empty) == 0
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"^to_pandas: pandas is not installed; pip install pandas$"):
        detector(videos, top=1).to_pandas()


@pytest.mark.slow
def test_a_broken_file_is_named_and_the_others_go_on(detector, videos, tmp_path, capsys):
    (tmp_path / "zero.mp4").touch()
    detections = detector(tmp_path / "zero.mp4", videos / "second.webm", top=1)
    assert len(detections) == 1 and "the file is empty" in detections.rejected["zero"]
    assert detections.videos == ("zero", "second") and "1 not read" in repr(detections)
    assert capsys.readouterr().err == f"error: {tmp_path / 'zero.mp4'}: the file is empty (0 bytes)\n"
    with pytest.raises(ValueError, match=r"none of the 1 files could be read; .*zero.mp4: the file is empty"):
        detector(tmp_path / "zero.mp4")


@pytest.mark.slow
def test_nothing_is_printed_and_results_are_not_replaced(detector, videos, tmp_path, capsys):
    detector(videos / "second.webm", top=1).save(tmp_path)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "detections.json").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        detector(videos / "second.webm", top=1).save(tmp_path)
    assert (tmp_path / "detections.json").read_text() == "mine"
    detector(videos / "second.webm", top=1).save(tmp_path, force=True)
    assert (tmp_path / "detections.json").read_text() != "mine"


def one_line(work) -> str:
    """The message of the ValueError that `work` raises."""
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("error")
        work()
    message = str(caught.value)
    assert message and "\n" not in message, message
    return message


@pytest.mark.slow
def test_thresholds_of_other_settings_give_the_warning_of_the_command(run, videos, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(run / "checkpoints" / "last", folder)
    overall = {"score": 0.0, "f1": 0.5}
    thresholds = {"subset": "validation", "overall": overall, "classes": {"jump": overall}}
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    for changed, warnings_wanted in ({}, 0), ({"post.sigma": 0.4}, 1):
        leantad.load(folder, device="cpu", set=changed)(videos / "second.webm", auto_threshold=True)
        said = capsys.readouterr().err
        assert said.count("warning: thresholds were chosen without post.sigma=0.4") == warnings_wanted, said


@pytest.mark.slow
def test_detections_state_the_protocol_and_the_thresholds_of_their_run(run, videos, tmp_path):
    folder, truth = tmp_path / "checkpoint", tmp_path / "truth.csv"
    shutil.copytree(run / "checkpoints" / "last", folder)
    overall = {"score": 0.0, "f1": 0.5}
    thresholds = {"subset": "validation", "overall": overall, "classes": {}}
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    truth.write_text("video,start,end,label,subset\nsecond,0.5,1.5,run,validation\n")
    protocol = {"run.protocol": "thumos"}
    detector = leantad.load(folder, device="cpu", set=protocol, quiet=True)
    found = detector(videos / "second.webm", auto_threshold=True)
    assert leantad.evaluate(detections=found, ground_truth=truth)["protocol"] == "thumos"
    source = (videos / "second.webm", "--checkpoint", folder, "--device", "cpu", "--auto-threshold")
    called(predict, *source, "--set", "run.protocol=thumos", "--out", tmp_path / "found")
    assert leantad.evaluate(detections=tmp_path / "found", ground_truth=truth)["protocol"] == "thumos"
    found.save(tmp_path / "saved")
    saved, written = ((tmp_path / name / "detections.json").read_bytes() for name in ("saved", "found"))
    assert saved == written and b'"thresholds"' in saved


@pytest.mark.slow
def test_what_is_wrong_is_one_line(detector, run, videos, tmp_path):
    found = detector(videos / "second.webm", top=1)
    assert "no model.safetensors" in one_line(lambda: leantad.load(tmp_path))
    assert "device" in one_line(lambda: leantad.load(run, device="tpu"))
    assert "unknown setting" in one_line(lambda: leantad.load(run, set={"post.sigmoid": 1}))
    assert "sigma" in one_line(lambda: leantad.load(run, set={"post.sigma": -1}))
    assert "no such file or folder" in one_line(lambda: detector(tmp_path / "nowhere.mp4"))
    assert "no video given" in one_line(lambda: detector())
    assert "did you mean 'jump'" in one_line(lambda: detector(videos, classes=["jmup"]))
    assert "min_score: got -1" in one_line(lambda: detector(videos, min_score=-1))
    assert "top: got 0" in one_line(lambda: detector(videos, top=0))
    assert "top: got 2.5" in one_line(lambda: detector(videos, top=2.5))
    assert "top: got '3'" in one_line(lambda: detector(videos, top="3"))
    assert "min_score: got '0.3'" in one_line(lambda: detector(videos, min_score="0.3"))
    assert "got no source" in one_line(lambda: leantad.evaluate())
    assert "--ground-truth" in one_line(lambda: leantad.evaluate(detections=found))
    kept = {"ground_truth": videos / "truth.csv", "out": tmp_path / "kept.json"}
    assert "--out: has no meaning with" in one_line(lambda: leantad.evaluate(detections=found, **kept))
    with pytest.raises(OSError, match="nowhere.json"):
        leantad.evaluate(detections=tmp_path / "nowhere.json", ground_truth=videos / "truth.csv")
    assert "protocol" in one_line(lambda: leantad.evaluate(run, protocol="mine"))
    assert "nothing to compare with" in one_line(lambda: leantad.evaluate(from_raw=tmp_path / "raw.h5"))
    assert "codec" in one_line(lambda: leantad.pack(videos, tmp_path / "a.csv", codec="mp3"))
    assert "shard_size" in one_line(lambda: leantad.pack(videos, tmp_path / "a.csv", shard_size=0))
    assert "--fps" in one_line(lambda: leantad.pack(videos, tmp_path / "a.csv", copy=True, fps=5))
    assert "--recipe" in one_line(lambda: leantad.train(out=tmp_path / "run"))


@pytest.mark.slow
def test_packing_training_and_evaluating_give_what_the_commands_give(tmp_path, capsys):
    shards = make_shards_of(tmp_path)
    raw = tmp_path / "raw"
    options = {"copy": True, "workers": 1, "quiet": True}
    summary = leantad.pack(raw / "videos", raw / "annotations.json", out=tmp_path / "again", **options)
    assert summary["packed"] == 6 and summary["rejected"] == {}
    assert (tmp_path / "again" / "00000.tar").read_bytes() == (shards / "00000.tar").read_bytes()

    settings = {**SMALL, "data.shards": str(shards), "run.epochs": 1}
    result = leantad.train("demo", out=tmp_path / "run", set=settings, quiet=True)
    assert result.complete and result.out == tmp_path / "run"
    assert result.metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    with pytest.raises(ValueError, match="holds a run already"):
        leantad.train("demo", out=tmp_path / "run", set=settings, quiet=True)
    too_high = {**settings, "optimizer.encoder_lr": 1e30, "optimizer.detector_lr": 1e30}
    with pytest.raises(RuntimeError, match=r"^loss is .* or lower optimizer\.encoder_lr"):
        leantad.train("demo", out=tmp_path / "diverged", set=too_high, quiet=True)

    capsys.readouterr()
    metrics = leantad.evaluate(tmp_path / "run", quiet=True, out=tmp_path / "python.json", diagnose=True)
    assert capsys.readouterr().out == ""
    source = ("--checkpoint", tmp_path / "run", "--out", tmp_path / "command.json", "--diagnose")
    assert json.loads(json.dumps(metrics)) == called(evaluate, *source)
    assert (tmp_path / "python.json").read_bytes() == (tmp_path / "command.json").read_bytes()
    assert metrics["average_mAP"] == pytest.approx(result.metrics["average_mAP"], abs=1e-6)  # batch sizes

    detections = leantad.load(tmp_path / "run", quiet=True)(raw / "videos")
    truth = raw / "annotations.json"
    of_files = leantad.evaluate(detections=detections, ground_truth=truth, subset="validation", quiet=True)
    detections.save(tmp_path / "found")
    command = ("--detections", tmp_path / "found", "--ground-truth", truth, "--subset", "validation")
    assert json.loads(json.dumps(of_files)) == called(evaluate, *command)
