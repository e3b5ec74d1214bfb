"""The eval command: sources, ground truths, what it says aloud, and what it refuses."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused

from train.detections import DetectionsFile, read_detections, write_detections
from train.eval import main
from train.evaluation.blocked import read_blocked, without_blocked
from train.evaluation.external_scores import read_external_scores
from train.evaluation.files import read_ground_truth
from train.evaluation.sources import packing_differences
from train.postprocess import RawWindow, postprocess_video
from train.raw_outputs import write_raw

ROOT = Path(__file__).resolve().parents[1]
TRUTH = {
    "database": {
        "a": {"subset": "validation", "annotations": [{"segment": [0, 10], "label": "jump"}]},
        "b": {"subset": "validation", "annotations": [{"segment": [5, 9], "label": "run"}]},
        "t": {"subset": "training", "annotations": [{"segment": [5, 9], "label": "run"}]},
    }
}
RESULTS = {"a": [{"segment": [0, 10], "label": "jump", "score": 0.9}], "b": []}


@pytest.fixture
def truth(tmp_path) -> Path:
    return written(tmp_path / "truth.json", TRUTH)


def written(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


def run(*arguments) -> tuple[int, str]:
    result = call(main, *arguments)
    return result.exit_code, result.output


def measured(*arguments) -> dict:
    """The metrics: the one JSON document on stdout of a call with --json."""
    result = call(main, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_detections_and_ground_truth_give_the_published_thumos_table(shared_real):
    folder = shared_real / "results" / "autoloc"
    code, output = run(
        *("--detections", folder / "TH14_result.json", "--ground-truth", folder / "TH14_gt.json"),
        *("--tiou", "0.1:0.1:0.9"),
    )
    assert code == 0
    row = "46.67 41.71 35.77 29.02 21.21 13.40 5.80 1.56 0.21 21.70"
    table = next(line for line in output.splitlines() if line.startswith("mAP %"))
    assert table.split() == ["mAP", "%", *row.split()]
    assert "3 detected videos are not in the ground truth" in output
    metrics = measured(
        *("--detections", folder / "TH14_result.json", "--ground-truth", folder / "TH14_gt.json"),
        *("--tiou", "0.1:0.1:0.9"),
    )
    assert list(metrics) == [
        *("protocol", "tiou", "mAP", "average_mAP", "per_class", "num_videos", "num_truth", "num_detections"),
        "recall",
    ]
    assert (metrics["num_videos"], metrics["num_truth"], metrics["num_detections"]) == (210, 3234, 20763)
    assert metrics["average_mAP"] == pytest.approx(0.21703455258465643, abs=1e-6)
    assert len(metrics["per_class"]) == 20 and metrics["protocol"] == "0.1:0.1:0.9"


@pytest.mark.slow
def test_a_file_of_detections_is_measured_without_torch_or_dali(truth, tmp_path):
    results = written(tmp_path / "d.json", {"results": RESULTS, "external_data": {"subset": "validation"}})
    code = (
        "import sys; from train.eval import main\n"
        f"main(['--detections', {str(results)!r}, '--ground-truth', {str(truth)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'nvidia', 'deepspeed', 'webdataset', 'pandas', 'av'}\n"
        "heavy &= {module.split('.')[0] for module in sys.modules}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "average" in done.stdout


@pytest.mark.slow
def test_the_file_runs_as_a_script(truth, tmp_path):
    results = written(tmp_path / "d.json", {"results": RESULTS})
    arguments = ["--detections", results, "--ground-truth", truth, "--subset", "validation", "--tiou", "0.5"]
    done = subprocess.run(
        [sys.executable, ROOT / "train" / "eval.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "50.00" in done.stdout


def test_a_csv_is_a_ground_truth_too(tmp_path):
    csv = tmp_path / "truth.csv"
    csv.write_text("video,start,end,label\na,0,10,jump\nb,5,9,run\n")
    results = written(tmp_path / "d.json", {"results": RESULTS})
    code, output = run("--detections", results, "--ground-truth", csv, "--tiou", "0.5")
    assert code == 0 and "50.00" in output


def test_what_does_not_fit_is_printed(truth, tmp_path):
    strange = {
        "a": [*RESULTS["a"], {"segment": [9, 3], "label": "jump", "score": 0.1}],
        "z": [{"segment": [0, 1], "label": "fly", "score": 0.5}],
    }
    results = written(tmp_path / "d.json", {"results": strange})
    code, output = run("--detections", results, "--ground-truth", truth, "--subset", "validation")
    assert code == 0
    assert "2 videos with 2 true actions of 2 classes; 3 detections in 2 videos" in output
    assert "1 videos have no entry in the detections, count as empty: 'b'" in output
    assert "1 detected videos are not in the ground truth: 'z'; their 1 detections are false" in output
    assert "1 detected classes have no true action: 'fly'" in output
    assert "1 detections end before they last any time" in output


def test_repeated_and_empty_true_actions_are_printed(tmp_path):
    actions = [{"segment": [0, 10], "label": "jump"}] * 2 + [{"segment": [3, 3], "label": "jump"}]
    truth = written(tmp_path / "truth.json", {"database": {"a": {"annotations": actions}}})
    results = written(tmp_path / "d.json", {"results": RESULTS})
    arguments = ("--detections", results, "--ground-truth", truth, "--tiou", "0.5")
    code, output = run(*arguments)
    assert "1 true actions have no length" in output and "1 true actions repeat another one" in output
    assert "33.33" in output
    code, output = run(*arguments, "--drop-duplicates")
    assert "1 true actions after --drop-duplicates" in output and "100.00" in output


def test_the_subset_is_the_one_asked_for_or_the_detections_own_but_never_a_guess(truth, tmp_path):
    plain = written(tmp_path / "d.json", {"results": RESULTS})
    own = written(tmp_path / "o.json", {"results": RESULTS, "external_data": {"subset": "validation"}})
    message = refused(main, "--detections", plain, "--ground-truth", truth)
    assert "has the subsets training (1 videos), validation (2 videos); choose one with --subset" in message
    assert "2 videos with 2 true" in run("--detections", own, "--ground-truth", truth)[1]
    assert "no video of subset 'test'" in refused(
        main, "--detections", own, "--ground-truth", truth, "--subset", "test"
    )


def test_thresholds_are_those_of_the_detections_run_unless_others_are_asked_for(truth, tmp_path):
    def protocol(stated, *options):
        document = {"results": RESULTS, "external_data": {"subset": "validation", "protocol": stated}}
        detections = written(tmp_path / "d.json", document)
        metrics = measured("--detections", detections, "--ground-truth", truth, "--diagnose", *options)
        return metrics["protocol"], metrics["tiou"][0], metrics["diagnosis"]["characteristics"]

    activitynet, thumos = protocol(None), protocol("thumos")
    assert activitynet[:2] == ("activitynet", 0.5) and thumos[:2] == ("thumos", 0.3)
    assert activitynet[2]["length"]["scheme"] != thumos[2]["length"]["scheme"]
    assert protocol("0.1:0.1:0.9")[:2] == ("0.1:0.1:0.9", 0.1)
    assert protocol("thumos", "--protocol", "activitynet") == protocol("what others state") == activitynet
    assert protocol("thumos", "--tiou", "0.7")[:2] == ("0.7", 0.7)


def test_detections_of_other_videos_are_refused(truth, tmp_path):
    results = written(tmp_path / "d.json", {"results": {"c": RESULTS["a"]}})
    message = refused(main, "--detections", results, "--ground-truth", truth, "--subset", "validation")
    assert "none of the 1 videos ('c', ...) is in the ground truth" in message and "right file" in message
    results = written(tmp_path / "d.json", {"results": {"t.mp4": RESULTS["a"]}})
    message = refused(main, "--detections", results, "--ground-truth", truth, "--subset", "validation")
    assert "of another subset, choose it with --subset" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"results": {"a": [', "line 1, column 20: not JSON"),
        ("[]", 'no "results" object'),
        ('{"results": {"a": 3}}', "results of 'a': got 3, want a list"),
        ('{"results": {"a": [], "a": []}}', "'a' stands twice in one object"),
        ('{"results": {"a": [{"segment": [0, 1], "label": "x", "score": NaN}]}}', "entry 0: got"),
        ("\xff", "is not UTF-8 text"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_detections_are_one_line_and_code_2(truth, tmp_path, text, says):
    path = tmp_path / "d.json"
    path.write_bytes(text.encode("latin-1"))
    assert says in refused(main, "--detections", path, "--ground-truth", truth, "--subset", "validation")


def test_a_missing_file_is_one_line_and_code_2(truth, tmp_path):
    assert "nowhere.json: No such file" in refused(
        main, "--detections", tmp_path / "nowhere.json", "--ground-truth", truth
    )
    assert "no model.safetensors" in refused(main, "--checkpoint", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "got no source, want one of --checkpoint, --from-raw, --detections"),
        (("--detections", "d", "--checkpoint", "c"), "got --checkpoint and --detections"),
        (("--detections", "d"), "want --ground-truth too"),
        (("--detections", "d", "--ground-truth", "g", "--raw", "r"), "--raw: has no meaning"),
        (("--detections", "d", "--ground-truth", "g", "--out", "o"), "--out: has no meaning"),
        (("--detections", "d", "--ground-truth", "g", "--set", "post.sigma=1"), "--set: has no meaning"),
        (("--from-raw", "r", "--raw", "r"), "--raw: keeps what the model says"),
        (("--detections", "d", "--ground-truth", "g", "--tiou", "half"), "tiou: got 'half'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, says):
    assert says in refused(main, *arguments)


# --- raw outputs --------------------------------------------------------------------------------------------


def random_windows() -> list[RawWindow]:
    """Video a in two windows, b in one; 20 proposals, two classes, ten steps."""
    rng = np.random.default_rng(0)
    return [
        RawWindow(
            key=key,
            window=span,
            duration=15.0,
            num_steps=10,
            segments=np.sort(rng.uniform(0, 10, (20, 2)), axis=1).astype(np.float32),
            quality=rng.random(20, dtype=np.float32),
            class_scores=rng.random((20, 2), dtype=np.float32),
            boundary=rng.random((2, 10), dtype=np.float32),
        )
        for key, span in (("a", (0.0, 10.0)), ("a", (5.0, 15.0)), ("b", (0.0, 10.0)))
    ]


@pytest.fixture
def raw(tmp_path) -> Path:
    meta = {"subset": "validation", "post": {"sigma": 0.2}, "videos": ["a", "b", "rejected"]}
    write_raw(tmp_path / "raw.h5", random_windows(), classes=["jump", "run"], metadata=meta)
    return tmp_path / "raw.h5"


def test_raw_outputs_are_processed_anew_as_they_were_in_the_run(raw, truth, tmp_path):
    from train.postprocess import PostSettings

    code, output = run("--from-raw", raw, "--ground-truth", truth, "--out", tmp_path / "d.json")
    assert code == 0, output
    windows = random_windows()
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["results"] == {
        "a": postprocess_video(windows[:2], ["jump", "run"], PostSettings(sigma=0.2)),
        "b": postprocess_video(windows[2:], ["jump", "run"], PostSettings(sigma=0.2)),
        "rejected": [],
    }
    assert document["external_data"]["subset"] == "validation"
    assert "2 videos with 2 true actions" in output


def test_post_processing_can_be_changed_without_the_model(raw, tmp_path):
    code, output = run("--from-raw", raw, "--set", "post.max_detections=3", "--out", tmp_path / "d.json")
    assert code == 0 and "no mAP" in output
    results = json.loads((tmp_path / "d.json").read_text())["results"]
    assert [len(entries) for entries in results.values()] == [3, 3, 0]
    assert "with --from-raw, want post.NAME=value" in refused(main, "--from-raw", raw, "--set", "seed=1")
    assert "post.sigma: Input should be greater than 0 (got -1); width of" in refused(
        main, "--from-raw", raw, "--set", "post.sigma=-1"
    )
    assert "post.sigm: unknown setting; did you mean 'sigma'?" in refused(
        main, "--from-raw", raw, "--set", "post.sigm=1"
    )
    assert "post.top_k: renamed; write post.max_detections instead" in refused(
        main, "--from-raw", raw, "--set", "post.top_k=3"
    )


@pytest.mark.parametrize(
    "layout",
    [
        {"a": {"swim": 0.5, "ski": 0.25, "cook": 0.1}},
        {"results": {"a": [{"label": "ski", "score": 0.25}, {"label": "swim", "score": 0.5}]}},
        {"class": ["cook", "ski", "swim"], "results": {"a": [0.1, 0.25, 0.5]}},
        {"classes": ["cook", "ski", "swim"], "results": {"a": [[0.1, 0.25, 0.5]]}},
    ],
)
def test_external_scores_are_read_in_all_layouts(raw, tmp_path, layout):
    path = written(tmp_path / "scores.json", layout)
    assert read_external_scores(path)["a"]["swim"] == 0.5
    message = refused(main, "--from-raw", raw, "--external-scores", path, "--out", tmp_path / "d.json")
    assert "external scores: none for video 'b'" in message


def test_external_scores_replace_the_class_scores(raw, tmp_path):
    scores = written(tmp_path / "s.json", {key: {"swim": 0.5, "ski": 0.25, "cook": 0.1} for key in "ab"})
    code, output = run("--from-raw", raw, "--external-scores", scores, "--out", tmp_path / "d.json")
    assert code == 0, output
    entries = json.loads((tmp_path / "d.json").read_text())["results"]["b"]
    assert {entry["label"] for entry in entries} == {"swim", "ski"}
    assert entries[0]["score"] == pytest.approx(0.5 * float(random_windows()[2].quality.max()))


@pytest.mark.parametrize("option", ["--out", "--raw", "--ground-truth"])
def test_what_cannot_be_written_or_read_is_refused_before_the_model_runs(truth, tmp_path, option):
    paths = {"--out": tmp_path / "d.json", "--raw": tmp_path / "raw.h5", "--ground-truth": truth}
    paths[option] = Path("/proc/self") / paths[option].name
    names = [part for pair in paths.items() for part in pair]
    message = refused(main, "--checkpoint", tmp_path / "no checkpoint here", *names)
    wanted = "No such file" if option == "--ground-truth" else "cannot be written"
    assert f"{paths[option]}: {wanted}" in message and not (tmp_path / "d.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_metrics_are_printed_although_the_disk_is_full(raw, truth, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "d.json"))

    monkeypatch.setattr("train.eval.write_detections", full)
    options = ("--from-raw", raw, "--ground-truth", truth, "--out", tmp_path / "d.json")
    code, output = run(*options)
    assert code == 2 and "average" in output
    assert f"error: {tmp_path / 'd.json'}: detections not written (" in output and "No space left" in output
    assert not list(tmp_path.glob(".*"))


def test_two_evaluations_do_not_write_the_same_file(raw, truth, tmp_path):
    hold = "import sys, time; from pathlib import Path; from pipeline.lock import writing_file\n"
    hold += "with writing_file(Path(sys.argv[1]), 'eval'): print('held', flush=True); time.sleep(100)"
    command = [sys.executable, "-c", hold, str(tmp_path / "d.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        message = refused(main, "--from-raw", raw, "--ground-truth", truth, "--out", tmp_path / "d.json")
        first.kill()
    assert f"another eval is writing here (process {first.pid} on" in message


def test_external_scores_may_name_the_videos_otherwise(raw, tmp_path):
    scores = {f"v_{key}.mp4": {"swim": "0.5", "ski": 0.25, "cook": 0.1} for key in "abc"}
    code, output = run(
        *("--from-raw", raw, "--out", tmp_path / "d.json"),
        *("--external-scores", written(tmp_path / "s.json", scores)),
    )
    assert code == 0, output
    entries = json.loads((tmp_path / "d.json").read_text())["results"]["b"]
    assert {entry["label"] for entry in entries} == {"swim", "ski"}


@pytest.mark.parametrize("entry", [{}, [], {"ski": float("nan")}, {"ski": -1}, [0.1, 0.2], "ski", 3])
def test_external_scores_that_make_no_sense_are_named(tmp_path, entry):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"a": entry}))
    with pytest.raises(ValueError, match=r"scores\.json: a: got .*, want"):
        read_external_scores(path)


def test_a_packed_data_set_is_a_ground_truth_with_its_rejected_videos(tmp_path):
    def entry(subset: str, reject: str | None, actions: list) -> dict:
        fields = {"source": "x.mp4", "fps": 10.0, "num_frames": 100, "width": 8, "height": 8, "codec": "vp9"}
        return {
            **fields,
            **{"subset": subset, "duration": 10.0, "sha256": "0" * 64, "actions": actions},
            **{"shard": None if reject else "00000.tar", "reject": reject},
        }

    action = {"segment": [0, 10], "label": "jump"}
    videos = {
        "a": entry("validation", None, [action]),
        "bad": entry("validation", "cut short", [action]),
        "t": entry("training", None, [action]),
    }
    shard = {"file": "00000.tar", "index": "00000.idx", "sha256": "0" * 64, "bytes": 1, "samples": 2}
    document = {"format": "leantad-dataset", "version": 1, "classes": ["jump"], "subsets": {}, "settings": {}}
    path = written(
        tmp_path / "dataset.json", {**document, "shards": [shard], "videos": videos, "repairs": []}
    )
    for location in (path, tmp_path):
        truth = read_ground_truth(location, None, hint="validation")
        assert truth.subset == "validation" and set(truth.videos) == {"a", "bad"}
    write_detections(tmp_path / "d.json", {"a": RESULTS["a"]}, metadata={"subset": "validation"})
    code, output = run("--detections", tmp_path / "d.json", "--ground-truth", path, "--tiou", "0.5")
    assert code == 0 and "50.00" in output


@pytest.mark.parametrize("names", [("a.mp4", "b c.mov"), ("v_a", "v_b c"), ("in/a.mp4", "in\\b c.mov")])
def test_a_video_is_found_however_the_ground_truth_spells_it(tmp_path, names):
    rows = [
        "video,start,end,label,subset",
        f"{names[0]},0,10,jump,validation",
        f"{names[1]},5,9,run,training",
    ]
    (tmp_path / "truth.csv").write_text("\n".join([*rows, ""]))
    videos = {"a": {"file": "in/a.mp4"}, "b c": {"file": "in/b c.mov"}}
    results = {"a": RESULTS["a"], "b c": RESULTS["a"]}
    written(tmp_path / "detections.json", {"results": results, "external_data": {"videos": videos}})
    source = ("--detections", tmp_path, "--ground-truth", tmp_path / "truth.csv", "--tiou", "0.5")
    code, output = run(*source, "--subset", "validation")
    assert code == 0 and "100.00" in output
    assert f"2 of 2 videos matched by file name, such as 'a' with {names[0]!r}" in output
    assert "their 1 detections are false positives (1 videos are of another subset)" in output


def test_videos_that_were_not_read_are_named_count_as_missed_and_make_the_exit_code_1(truth, tmp_path):
    meta = {
        "subset": "validation",
        "rejected": {"b": "the file\nis empty", **{f"x{i}": "?" for i in range(30)}},
    }
    path = written(tmp_path / "d.json", {"results": RESULTS, "external_data": meta})
    result = call(main, "--detections", path, "--ground-truth", truth, "--tiou", "0.5", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["average_mAP"] == 0.5
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: b: not read: the file is empty" and len(errors) == 21
    assert errors[-1] == "error: 11 more videos were not read"
    assert "1 detections in 1 videos; 1 more could not be read" in result.stderr


def test_a_folder_without_detections_is_refused(truth, tmp_path):
    assert "no detections.json in it" in refused(main, "--detections", tmp_path, "--ground-truth", truth)


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        ({"fps": 15.0, "gop": 8, "plan": "a"}, {"fps": 15.0, "gop": 8, "plan": "b"}, ""),
        ({"fps": 30.0, "gop": 8}, {"fps": 15.0, "gop": 8}, "fps 30.0 here, 15.0 there"),
        ({"copy": True}, {"copy": False, "fps": 15.0}, "copy True here, False there"),
        ({"copy": True}, {"copy": True}, ""),
    ],
)
def test_packing_is_compared_where_it_decides_the_pixels(here, there, says):
    assert packing_differences(here, there) == says


@pytest.mark.slow
def test_a_checkpoint_its_raw_file_and_its_detections_give_one_map(tmp_path):
    """Untrained weights, two videos in overlapping windows; the encoder's first weights file is long gone."""
    from tiny_run import SMALL, make_shards_of

    from train.build_network import build_network
    from train.checkpoint import write_weights
    from train.settings import load_settings

    shards = make_shards_of(tmp_path)
    changes = {**SMALL, "data.shards": shards, "data.window_seconds": 1.5, "encoder.weights": "null"}
    changes["run.protocol"] = '"0.1,0.3"'
    settings = load_settings(Path("demo"), [f"{name}={value}" for name, value in changes.items()])
    classes = json.loads((shards / "dataset.json").read_text())["classes"]
    checkpoint = tmp_path / "weights"
    checkpoint.mkdir()
    plain = settings.model_dump(mode="json")
    plain["encoder"]["weights"] = str(tmp_path / "gone.safetensors")
    state = build_network(settings, len(classes)).state_dict()
    write_weights(checkpoint, state=state, settings=plain, classes=classes)

    def outputs(name: str) -> tuple:
        return ("--out", tmp_path / f"{name}.d.json")

    raw = tmp_path / "raw.h5"
    once = measured("--checkpoint", checkpoint, "--shards", shards, "--raw", raw, *outputs("model"))
    again = measured("--from-raw", raw, "--shards", shards, *outputs("raw"))
    detections = tmp_path / "model.d.json"
    truth = shards / "dataset.json"
    third = measured("--detections", detections, "--ground-truth", truth)
    assert once == again == third and once["tiou"] == [0.1, 0.3]
    assert once["num_videos"] == 2 and once["num_detections"] > 0
    results = [json.loads((tmp_path / f"{name}.d.json").read_text())["results"] for name in ("model", "raw")]
    assert results[0] == results[1]
    elsewhere = ("--out", tmp_path / "none.d.json")
    message = refused(main, "--checkpoint", checkpoint, "--shards", shards, "--subset", "nowhere", *elsewhere)
    assert "nowhere" in message and "validation" in message

    document = json.loads(truth.read_text())
    rejected = next(key for key, video in document["videos"].items() if video["subset"] == "validation")
    document["videos"][rejected] |= {"reject": "cut short", "shard": None}
    document["classes"] += ["zoom"]
    truth.write_text(json.dumps(document))
    (checkpoint / "packing.json").write_text(json.dumps(document["settings"] | {"copy": False, "fps": 7.0}))
    other = call(main, "--checkpoint", checkpoint, "--shards", shards, "--out", tmp_path / "o.json")
    assert other.exit_code == 1 and f"error: {rejected}: not read: cut short" in other.stderr
    assert f"warning: {shards}: packed otherwise than what the weights were trained on (" in other.stderr
    assert f"warning: {shards}: the checkpoint does not know 1 of the " in other.stderr
    assert read_detections(tmp_path / "o.json").rejected == {rejected: "cut short"}


def test_blocked_videos_count_nowhere(truth, tmp_path):
    own = written(tmp_path / "o.json", {"results": RESULTS, "external_data": {"subset": "validation"}})
    database = json.loads(truth.read_text())["database"]
    keys = [key for key, video in database.items() if video["subset"] == "validation"]
    blocked = written(tmp_path / "blocked.json", [f"v_{keys[0]}.mp4", "never heard of"])
    arguments = ("--detections", own, "--ground-truth", truth, "--subset", "validation")
    without = {key: entries for key, entries in RESULTS.items() if key != keys[0]}
    cut = written(tmp_path / "cut.json", {"results": without})
    rest = {key: video for key, video in database.items() if key != keys[0]}
    smaller = written(tmp_path / "smaller.json", {"database": rest})
    by_hand = measured("--detections", cut, "--ground-truth", smaller, "--subset", "validation")
    assert measured(*arguments, "--blocked", blocked) == by_hand
    assert by_hand["num_videos"] == len(keys) - 1
    code, output = run(*arguments, "--blocked", blocked)
    assert code == 0 and f"1 of {len(keys)} videos left out" in output


def test_a_list_of_blocked_videos_that_makes_no_sense_is_refused(raw, truth, tmp_path):
    own = written(tmp_path / "o.json", {"results": RESULTS})
    for content, message in (
        ({"a": 1}, "want a JSON list"),
        ([1], "want a JSON list"),
        ([], "names no video"),
        (["never heard of"], "none of its 1 videos is in the ground truth"),
        (list(json.loads(truth.read_text())["database"]), "blocks all"),
    ):
        path = written(tmp_path / "blocked.json", content)
        arguments = ("--detections", own, "--ground-truth", truth, "--subset", "validation")
        assert message in refused(main, *arguments, "--blocked", path)
    assert "nothing to compare with" in refused(
        main,
        *("--from-raw", raw, "--out", tmp_path / "d.json"),
        "--blocked",
        written(tmp_path / "b.json", ["a"]),
    )


@pytest.mark.slow
def test_activitynets_blocked_videos_are_found_in_its_annotations(shared_real):
    folder = shared_real / "annotations" / "anet13"
    ground_truth = read_ground_truth(folder / "anet13_rebuilt_trainval_gt.json", "validation")
    blocked = read_blocked(folder / "blocked.json")
    empty = DetectionsFile({key: [] for key in ground_truth.videos}, {})
    kept, left, line = without_blocked(empty, ground_truth, blocked, where=folder / "blocked.json")
    assert len(blocked) == 79 and line.startswith("31 of 4728 videos left out")
    assert kept.results.keys() == left.videos.keys() and not left.videos.keys() & set(blocked)


def test_rows_with_a_negative_score_are_logits_in_all_of_the_file(tmp_path):
    results = {"a": [[0.0, np.log(3.0)]], "b": [[-1.0, -1.0]]}
    found = read_external_scores(written(tmp_path / "h.json", {"class": ["x", "y"], "results": results}))
    assert found["a"] == pytest.approx({"x": 0.25, "y": 0.75}) and found["b"] == {"x": 0.5, "y": 0.5}


def test_untrimmednets_rows_are_the_test_videos_of_thumos(tmp_path):
    table = np.zeros((1574, 101), dtype=np.float32)
    table[269, 6], table[269, 96] = 0.25, 0.5
    np.save(tmp_path / "uNet_test.npy", table)
    found = read_external_scores(tmp_path / "uNet_test.npy")
    assert len(found) == 1574 and len(found["video_test_0000270"]) == 20
    scores = {label: score for label, score in found["video_test_0000270"].items() if score}
    assert scores == {"BaseballPitch": 0.25, "VolleyballSpiking": 0.5}


def test_an_array_that_would_be_unpickled_or_is_of_other_classes_is_refused(tmp_path):
    path = tmp_path / "s.npy"
    for content, message in (
        (np.array([{"a": 1}], dtype=object), "no pickle"),
        (np.zeros((4, 20)), "got 20 columns, want 101"),
        (np.zeros(101), "want a table of numbers"),
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            read_external_scores(path)


@pytest.mark.parametrize("text", ["video,label,score\na,x,0.5\na,y,0.25\n", "video,x,y\na,0.5,0.25\n"])
def test_external_scores_as_csv(tmp_path, text):
    (tmp_path / "s.csv").write_text(text)
    assert read_external_scores(tmp_path / "s.csv") == {"a": {"x": 0.5, "y": 0.25}}


@pytest.mark.parametrize("text", ["", "name,x\na,1\n", "video,x\na\n", "video,x\na,b\n", "video,x\n"])
def test_a_csv_that_makes_no_sense_is_one_line(tmp_path, text):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ValueError, match=r"s\.csv: "):
        read_external_scores(tmp_path / "s.csv")


@pytest.mark.parametrize(("count", "labels"), [(1, {"swim"}), (3, {"swim", "ski", "cook"})])
def test_how_many_external_labels_count_is_a_setting(raw, tmp_path, count, labels):
    scores = written(tmp_path / "s.json", {key: {"swim": 0.5, "ski": 0.25, "cook": 0.1} for key in "ab"})
    options = ("--external-scores", scores, "--set", f"post.external_labels={count}")
    assert run("--from-raw", raw, *options, "--out", tmp_path / "d.json")[0] == 0
    entries = json.loads((tmp_path / "d.json").read_text())["results"]["b"]
    assert {entry["label"] for entry in entries} == labels
