"""bench-step: its rows, what they are compared with, and the errors of its options."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from commands import call, refused

from tools.bench_step import main, table
from tools.benchmarks import step
from tools.benchmarks.step import (
    MODES,
    OUT_OF_MEMORY,
    Cost,
    ReferenceNetwork,
    Setup,
    StepNetwork,
    StepOptions,
    StepRow,
    agreement,
    empty_rows,
    kept_clips,
    loss_and_gradient,
    make_clips,
    measure,
)
from tools.benchmarks.step_plot import plot

SMALL = ["--backbone", "r2plus1d_tiny", "--clip", "3x8x16x16", "--device", "cpu"]
OPTIONS = StepOptions(
    backbone="r2plus1d_tiny",
    clip=(3, 8, 16, 16),
    clips=4,
    batch=2,
    ratio=0.5,
    clips_per_forward=2,
    dtypes=("float32",),
    zero=(0,),
    offload=("none",),
    repeats=1,
    device="cpu",
)
ROW = StepRow("cpu", "float32", 0, "none", "plain", 2.0, 1.0, 10.0, 1.0, 0.0, 1e-7)

bench = partial(call, main, *SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_every_mode_has_the_gradient_of_ordinary_autograd(mode):
    loss_off, gradient_off = agreement(OPTIONS, mode, "float32")
    assert loss_off < 1e-6
    # a ReLU at the border of its two branches flips by rounding where activations are recomputed
    assert gradient_off < (2e-3 if mode.reversible else 1e-5)


@pytest.mark.slow
def test_the_full_gradient_modes_of_one_network_agree_with_each_other():
    clips, kept = make_clips(OPTIONS), kept_clips(OPTIONS)
    full = {m.name: loss_and_gradient(StepNetwork(OPTIONS, m), "float32", clips, kept) for m in MODES[:3]}
    loss, gradient = full["plain"]
    for other, of_other in full.values():
        assert other == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(of_other, gradient, rtol=1e-4, atol=1e-6)


def test_the_reference_of_sampled_clips_is_not_the_full_gradient():
    clips, kept = make_clips(OPTIONS), kept_clips(OPTIONS)
    sampled = next(mode for mode in MODES if mode.name == "sampled")
    _, of_kept = loss_and_gradient(ReferenceNetwork(OPTIONS, sampled), "float32", clips, kept)
    _, full = loss_and_gradient(ReferenceNetwork(OPTIONS, MODES[0]), "float32", clips, kept)
    assert (of_kept - full).norm() > 0.01 * full.norm()


def test_setups_are_the_combinations_that_there_are():
    options = replace(OPTIONS, zero=(0, 1, 3), offload=("none", "optimizer", "all"))
    found = [(setup.zero, setup.offload) for setup in options.setups()]
    assert found == [
        (0, "none"),
        *[(1, "none"), (1, "optimizer")],
        *[(3, "none"), (3, "optimizer"), (3, "all")],
    ]
    config = Setup("bf16", 3, "all").ds_config()
    assert config["bf16"]["enabled"] is True and config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert (
        Setup("float32", 1, "none").ds_config()["zero_optimization"]["offload_optimizer"]["device"] == "none"
    )


def test_what_was_not_measured_is_a_dash_and_not_drawn():
    rows = [ROW, replace(ROW, mode="reversible", times_plain=1.5), *empty_rows(Setup("bf16", 1, "none"))]
    lines = table(rows).splitlines()
    assert len(lines) == 3 + len(MODES)
    assert lines[-1].split()[-6:] == ["-"] * 6 and "1.50" in lines[2]
    image = plot(rows)
    assert (
        image.count("<circle") == 2 and "cuda" not in image and "reversible (cpu, float32, ZeRO 0)" in image
    )


def test_what_a_gpu_is_too_small_for_is_a_row_that_says_so(monkeypatch):
    def fits(options, setup, mode):
        if mode.name == "plain":
            raise torch.OutOfMemoryError
        return Cost(seconds=2.0, peak_mib=10.0)

    def agrees(options, mode, dtype):
        if not mode.sampled:
            raise torch.OutOfMemoryError
        return 0.0, 1e-7

    monkeypatch.setattr(step, "cost_alone", fits)
    monkeypatch.setattr(step, "agreement", agrees)
    plain, *others = measure(replace(OPTIONS, device="cuda"), Setup("bf16", 1, "none"))
    assert plain == StepRow("cuda", "bf16", 1, "none", "plain", state=OUT_OF_MEMORY)
    assert {(row.seconds, row.peak_mib, row.times_plain, row.state) for row in others} == {(2, 10, None, "")}
    assert [row.gradient_off for row in others if "sampled" in row.mode] == [1e-7] * 4
    assert "out of memory" in table([plain, *others]) and plot([plain]).count("<circle") == 0


@pytest.mark.ci
def test_rows_hold_every_mode_and_the_savings_show(tmp_path):
    files = tmp_path / "rows.json", tmp_path / "rows.svg"
    result = bench(
        *("--clip", "3x8x32x32", "--clips", "6", "--ratio", "0.34", "--repeats", "1", "--zero", "1"),
        *("--out", str(files[0]), "--plot", str(files[1])),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(files[0].read_text())["rows"]
    here = {row["mode"]: row for row in rows if row["device"] == "cpu"}
    assert list(here) == [mode.name for mode in MODES] and len(rows) == 2 * len(here)
    assert here["plain"]["times_plain"] == here["plain"]["peak_of_plain"] == 1
    peaks = {name: row["peak_mib"] for name, row in here.items()}
    assert all(peak < 0.8 * peaks["plain"] for name, peak in peaks.items() if name != "plain")
    assert peaks["sampled + reversible"] <= min(peaks["sampled"], peaks["reversible"])
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip", "3x16x112"], "--clip: got '3x16x112', want CxLxHxW"),
        (["--backbone", "r2plus1d_33"], "did you mean 'r2plus1d_34'?"),
        (["--ratio", "1.5"], "clip sampling ratio: got 1.5"),
        (["--offload", "all"], "--offload: got no setup"),
        (["--plot", "no/such/folder/rows.svg"], "no/such/folder"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_measured(options, message):
    assert message in refused(main, *SMALL, *options)
