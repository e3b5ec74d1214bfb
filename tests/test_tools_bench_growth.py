"""By which power costs grow: on known curves, and through every command once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.annotations import read_annotations
from tools.bench_growth import AXES, main
from tools.benchmarks import growth
from tools.benchmarks.growth import (
    COPIES,
    JOBS,
    Cost,
    Sizes,
    costs,
    costs_of_jobs,
    cpu_seconds,
    exponent,
    make_inputs,
)
from tools.benchmarks.growth_plot import plot

FACTORS = (1, 2, 4, 8)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_the_exponent_of_a_curve_is_found_whatever_the_start_costs(power, start):
    assert exponent(FACTORS, [start + 0.7 * x**power for x in FACTORS]) == pytest.approx(power, abs=0.02)


@pytest.mark.slow
def test_noise_of_two_percent_leaves_a_line_below_the_bound():
    rng = np.random.default_rng(0)
    draws = [[(3 + x) * rng.uniform(0.98, 1.02) for x in FACTORS] for _ in range(20)]
    assert np.mean([exponent(FACTORS, seconds) > 1.5 for seconds in draws]) == 0
    assert all(
        exponent(FACTORS, [(3 + x * x) * rng.uniform(0.98, 1.02) for x in FACTORS]) > 1.5 for _ in draws
    )


def test_what_does_not_grow_has_the_exponent_zero():
    assert exponent(FACTORS, [2.0, 2.05, 1.98, 2.1]) == 0.0 and exponent(FACTORS, [2.0] * 4) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_each_axis_makes_the_data_set_larger_in_that_alone(tmp_path, axis):
    base = Sizes(videos=2, seconds=4, classes=3, actions=2)
    for factor in (1, 4):
        make_inputs(tmp_path / str(factor), base.times(axis, factor))
    one, four = (read_annotations(tmp_path / name / "annotations.json") for name in ("1", "4"))

    def sizes(videos) -> tuple[float, ...]:
        labels = {action.label for video in videos.values() for action in video.actions}
        actions = sum(len(video.actions) for video in videos.values()) / len(videos)
        return (len(videos) / 2, max(video.duration for video in videos.values()), len(labels), actions)

    grown = dict(zip(AXES, sizes(four), strict=True))
    expected = dict(zip(AXES, sizes(one), strict=True))
    expected[axis] *= 4
    if axis == "seconds":
        expected["actions"] *= 4
    if axis == "classes":  # those that no action has yet get one each
        assert grown.pop("actions") >= expected.pop("actions")
    assert grown == expected


def test_a_command_that_fails_is_named_with_what_it_said():
    with pytest.raises(RuntimeError, match="exit code 3: no luck"):
        cpu_seconds(["sh", "-c", "echo no luck; exit 3"])


@pytest.mark.ci
def test_every_command_runs_on_what_is_made(tmp_path):
    sizes = [Sizes(videos=2, seconds=8, classes=2, actions=2)]
    measured = costs_of_jobs(costs(tmp_path, sizes, 1), 1)
    assert tuple(measured) == JOBS and all(cost.seconds[0] > 0 == cost.noise for cost in measured.values())
    out = tmp_path / "0" / "turn0"
    found, many = (json.loads((path / "detections.json").read_text()) for path in (out, out / "many"))
    assert found["results"] and len(many["results"]) == COPIES * len(found["results"])
    truth = json.loads((out / "many" / "annotations.json").read_text())["database"]
    assert set(many["results"]) == {key for key, video in truth.items() if video["subset"] == "validation"}


def test_turns_go_over_all_sizes_and_the_least_of_each_counts(monkeypatch, tmp_path):
    """A machine that is slower in the second turn, for whatever is measured then, changes nothing."""
    speeds, calls = (1.0, 5.0, 2.0), []

    def seconds(command):
        turn, number = divmod(len(calls) // len(JOBS), 2)
        calls.append(command)
        return speeds[turn] * (3.0, 4.0)[number]

    monkeypatch.setattr(growth, "make_inputs", lambda folder, size: folder.mkdir())
    monkeypatch.setattr(growth, "multiply", lambda *_: None)
    monkeypatch.setattr(growth, "cpu_seconds", seconds)
    timings = list(costs(tmp_path, [Sizes(), Sizes().times("videos", 2)], len(speeds)))
    assert [number for job, number, _ in timings if job == "pack"] == [0, 1] * 3
    assert costs_of_jobs(timings, 2) == dict.fromkeys(JOBS, Cost([3.0, 4.0], noise=4.0))
    assert costs_of_jobs(timings[: 2 * len(JOBS)], 2) == dict.fromkeys(JOBS, Cost([3.0, 4.0], noise=0.0))


def test_a_growth_within_the_noise_is_none():
    seconds = [3.0, 3.25, 3.5]
    assert exponent([1, 8, 16], seconds, noise=0.25) > 0.5
    assert exponent([1, 8, 16], seconds, noise=0.5) == 0


def test_the_plot_has_a_panel_for_each_axis_and_a_line_for_each_command():
    def row(axis, command, seconds):
        return {"axis": axis, "command": command, "seconds": seconds, "exponent": 1.0}

    rows = [row(axis, job, [2.0, 3.0, 5.0]) for axis in ("videos", "seconds", "classes") for job in JOBS]
    rows += [row("actions", job, [1.0, 0.5, 1.0]) for job in JOBS]  # noise below the first
    image = plot(rows, [1, 2, 4])
    assert image.count("<g transform") == 4 and "times the actions" in image
    assert image.count("<circle") == 4 * len(JOBS) * 3 and "pack 1.00" in image and "nan" not in image


def test_the_table_has_a_row_per_axis_and_command_and_what_is_too_steep_is_named(monkeypatch):
    def made_up(_, sizes, turns):
        for number, of in enumerate(sizes):
            size = of.videos / Sizes().videos * of.classes / Sizes().classes
            yield from [("pack", number, 1 + size), ("mAP", number, 1 + size**2)]

    monkeypatch.setattr(growth, "costs", made_up)
    done = CliRunner().invoke(main, ["--axis", "videos", "--axis", "classes", "--json"])
    rows = json.loads(done.stdout)["rows"]
    assert [(row["axis"], row["command"], row["exponent"]) for row in rows] == [
        ("videos", "pack", 1.0),
        ("videos", "mAP", 2.0),
        ("classes", "pack", 1.0),
        ("classes", "mAP", 2.0),
    ]
    assert done.exit_code == 1
    assert "error: mAP grows with the videos to the 2.0" in done.stderr
    assert CliRunner().invoke(main, ["--axis", "videos", "--most", "2.5", "--quiet"]).exit_code == 0


@pytest.mark.parametrize("factors", ["2,4,8", "1,2", "1,4,2", "1,two,4"])
def test_factors_that_make_no_curve_are_refused(factors):
    done = CliRunner().invoke(main, ["--factors", factors])
    assert done.exit_code == 2 and factors in done.stderr
