"""The benchmark of evaluation runs, says what it measured, and its made-up data is what it says."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tools.bench_eval import Sizes, main, make_detections, make_ground_truth

SMALL = ["--videos", "30", "--classes", "5", "--detections", "10", "--proposals", "20", "--keep", "5"]
SMALL += ["--post-videos", "2"]


def test_every_part_is_measured_and_written(tmp_path):
    result = CliRunner().invoke(main, [*SMALL, "--json", "--out", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "rows.json").read_text())
    assert [row["part"] for row in document["rows"]] == [
        *("write detections.json", "read detections.json", "mAP", "AR@AN, AUC, recall at k", "diagnosis"),
        *("bootstrap, 100 resamples", "soft-NMS", "post-processing"),
    ]
    assert all(row["cpu_seconds"] >= 0 for row in document["rows"])
    assert document["videos"] == 30
    assert "post-processing" in result.stderr  # the table


def test_the_data_has_the_size_asked_for_and_follows_the_seed():
    sizes = Sizes(videos=20, classes=3, detections=11, proposals=1, keep=1, post_videos=0, seed=4)
    ground_truth = make_ground_truth(sizes)
    results = make_detections(sizes, ground_truth)
    assert len(ground_truth) == len(results) == 20
    assert {len(entries) for entries in results.values()} == {11}
    assert {action.label for video in ground_truth.values() for action in video.actions} == {
        f"class {i}" for i in range(3)
    }
    assert results == make_detections(sizes, make_ground_truth(sizes))
