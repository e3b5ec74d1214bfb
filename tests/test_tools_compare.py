"""`leantad compare`: the tables, the JSON document, exit codes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from metric_cases import found

from tools.compare import main
from train.evaluation.average_precision import mean_average_precision
from train.evaluation.files import read_ground_truth

CLASSES = [f"c{number:02d}" for number in range(22)]


@pytest.fixture
def files(tmp_path):
    """Ground truth of 44 videos and 22 classes; a.json finds all but one action, b.json every second one."""
    lines = ["video,start,end,label,subset"]
    results = {"a": {}, "b": {}}
    for number in range(44):
        label = CLASSES[number % 22]
        lines.append(f"v{number},0,10,{label},validation")
        right, wrong = found(0, 10, label, 0.5 + number / 100), found(20, 30, label, 0.9)
        results["a"][f"v{number}"] = [wrong if number == 7 else right]
        results["b"][f"v{number}"] = [right if number % 2 else wrong]
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    for name, table in results.items():
        document = {"results": table, "external_data": {"subset": "validation"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def compare(folder, *more):
    names = [str(folder / "a.json"), str(folder / "b.json"), "--ground-truth", str(folder / "truth.csv")]
    return CliRunner().invoke(main, [*names, "--resamples", "60", *more])


def test_the_table_shows_both_the_difference_and_who_wins(files):
    result = compare(files, "--tiou", "0.5,0.75")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    average = next(line for line in lines if line.startswith("average"))
    # 21 classes are perfect; of c07 half is found, behind a miss: precision 1/2
    assert average.split()[1:4] == ["96.59", "50.00", "+46.59"] and "*" in average.split()
    assert any("A is better in 100.0 % of 60 resamples of the videos (seed 0)" in line for line in lines)
    assert sum(line.startswith("c") for line in lines) == 20
    assert "2 classes with smaller differences: see --json" in lines


def test_the_thresholds_are_those_of_the_run_of_a(files):
    document = json.loads((files / "a.json").read_text())
    document["external_data"]["protocol"] = "0.3,0.5"
    (files / "a.json").write_text(json.dumps(document))
    assert json.loads(compare(files, "--json").stdout)["protocol"] == "0.3,0.5"
    assert json.loads(compare(files, "--json", "--protocol", "thumos").stdout)["protocol"] == "thumos"


def test_the_document_holds_every_class_and_the_figures_of_evaluate(files):
    result = compare(files, "--json", "--seed", "3", "--out", str(files / "compared.json"))
    document = json.loads(result.stdout)
    assert document == json.loads((files / "compared.json").read_text())
    ground_truth = read_ground_truth(files / "truth.csv", None).videos
    for side in ("a", "b"):
        metrics = mean_average_precision(
            ground_truth, json.loads((files / f"{side}.json").read_text())["results"]
        )
        assert document["rows"][0][side] == pytest.approx(metrics["average_mAP"], abs=1e-12)
        assert document["classes"]["c07"][side] == pytest.approx(sum(metrics["per_class"]["c07"]) / 10)
    assert sorted(document["classes"]) == CLASSES
    assert (document["subset"], document["seed"], document["num_videos"]) == ("validation", 3, 44)
    low, high = document["rows"][0]["interval"]
    assert 0 < low < document["rows"][0]["difference"] < high
    assert "A is better" in result.stderr


def test_quiet_says_nothing_and_results_are_not_replaced_without_force(files):
    out = files / "compared.json"
    quiet = compare(files, "--quiet", "--out", str(out))
    assert (quiet.exit_code, quiet.output) == (0, "")
    again = compare(files, "--out", str(out))
    assert again.exit_code == 2 and "--force" in again.stderr
    assert compare(files, "--quiet", "--out", str(out), "--force").exit_code == 0


def test_a_file_of_other_videos_is_named(files):
    (files / "b.json").write_text(json.dumps({"results": {"elsewhere": []}}))
    result = compare(files)
    assert result.exit_code == 2
    assert "b.json: detections: none of the 1 videos" in result.stderr


def test_folders_of_runs_are_compared_and_names_are_matched_as_eval_does(files):
    for name in "ab":
        (files / name).mkdir()
        document = json.loads((files / f"{name}.json").read_text())
        document["external_data"]["rejected"] = {"v3": "the file is empty"}
        (files / name / "detections.json").write_text(json.dumps(document))
    names = [str(files / "a"), str(files / "b"), "--ground-truth", str(files / "truth.csv")]
    (files / "truth.csv").write_text((files / "truth.csv").read_text().replace(",0,10", ".mp4,0,10"))
    result = CliRunner().invoke(main, [*names, "--resamples", "20"])
    assert (
        result.exit_code == 1
        and f"error: {files / 'b'}: v3.mp4: not read: the file is empty" in result.stderr
    )
    assert f"{files / 'a'}: 44 of 44 videos matched by file name, such as 'v0' with 'v0.mp4'" in result.stdout
    assert "96.59" in result.stdout


def without_classes(file):
    """The detections of a file become proposals; returns its path."""
    document = json.loads(file.read_text())
    for entries in document["results"].values():
        for entry in entries:
            entry["label"] = "proposal"
    file.write_text(json.dumps(document))
    return file


def test_proposals_are_compared_with_actions_of_any_class(files):
    for name in ("a.json", "b.json"):
        without_classes(files / name)
    result = compare(files, "--json", "--tiou", "0.5")
    assert result.exit_code == 0, result.output
    line = "proposals without classes: all true actions count as one class"
    assert all(f"{files / name}: {line}\n" in result.stderr for name in ("a.json", "b.json"))
    document = json.loads(result.stdout)
    assert list(document["classes"]) == ["proposal"]
    # A: 3 right ones, the miss, 40 right ones; B: 2 right ones, 22 misses, 20 right ones
    assert document["rows"][1]["a"] == pytest.approx(3 / 44 + 40 / 44 * 43 / 44, abs=1e-12)
    assert document["rows"][1]["b"] == pytest.approx(2 / 44 + 20 / 44 * 22 / 44, abs=1e-12)


def test_proposals_are_not_compared_with_detections_that_have_classes(files):
    proposals = without_classes(files / "b.json")
    result = compare(files)
    assert result.exit_code == 2 and result.stderr == (
        f"error: {proposals}: proposals without classes, {files / 'a.json'}: detections with classes; "
        "want two of a kind: evaluate both with the same post.proposals_only\n"
    )
    (files / "a.json").write_text(json.dumps({"results": {"v0": []}}))  # nothing found is of either kind
    assert compare(files).exit_code == 0


def test_videos_that_one_side_lacks_are_named(files):
    document = json.loads((files / "b.json").read_text())
    document["results"] = {key: document["results"][key] for key in list(document["results"])[3:]}
    (files / "b.json").write_text(json.dumps(document))
    result = compare(files, "--drop-duplicates")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    counts = "44 videos with 44 true actions of 22 classes"
    assert lines[2:6] == [
        f"{files / 'a.json'}: {counts}; 44 detections in 44 videos",
        f"{files / 'b.json'}: {counts}; 41 detections in 41 videos",
        f"{files / 'b.json'}: 3 videos have no entry in the detections, count as empty: 'v0', 'v1', 'v2'",
        "44 true actions after --drop-duplicates",
    ]


def test_help_has_an_example():
    assert "leantad compare" in CliRunner().invoke(main, ["--help"]).output
