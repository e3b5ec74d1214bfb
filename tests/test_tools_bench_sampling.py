"""bench-sampling: its statistics, its rows, which strategy it calls worth it, its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from commands import call, refused

from tools.bench_sampling import main, verdict
from tools.benchmarks.sampling import STRATEGIES, SamplingRow, cost, moments

SMALL = ["--videos", "1", "--clips", "6", "--frames", "4", "--size", "16", "--draws", "4", "--steps", "1"]
SMALL += ["--device", "cpu"]

bench = partial(call, main, *SMALL)


def test_factor_bias_and_noise_are_taken_apart():
    full, across = torch.tensor([3.0, 4.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    noise = torch.tensor([-4.0, 3.0, 0.0]).double() / 5  # neither along the gradient nor across it
    found = moments((2 * full + 0.5 * across + sign * noise for sign in [1, -1] * 2000), full)
    assert found.factor == pytest.approx(2.0)
    assert found.bias == pytest.approx(0.5 / (2 * 5), rel=1e-2)
    assert found.noise == pytest.approx(1 / (2 * 5), rel=1e-2)  # 4,000 draws: n against n - 1
    assert found.cosine == pytest.approx(10 / (100 + 0.25 + 1) ** 0.5, rel=1e-6)


def test_chance_in_the_mean_of_few_draws_is_not_called_bias():
    generator, full = torch.Generator().manual_seed(0), torch.ones(1000, dtype=torch.float64)
    draws = (full + torch.randn(1000, generator=generator, dtype=torch.float64) for _ in range(5))
    found = moments(draws, full)
    assert found.noise == pytest.approx(1.0, rel=0.05)  # 5 draws in 1,000 dimensions
    assert found.bias < 0.15, "the mean of five is off by 0.45"


@pytest.mark.ci
def test_every_strategy_is_a_row_at_every_ratio(tmp_path):
    path = tmp_path / "rows.json"
    result = bench("--ratio", "0.5", "--ratio", "1", "--json", "--out", str(path))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads(path.read_text()) == document
    assert [(row["ratio"], row["strategy"]) for row in document["rows"]] == [
        (ratio, strategy) for ratio in (0.5, 1.0) for strategy in STRATEGIES
    ]
    for row in document["rows"]:
        assert row["kept"] == (3 if row["ratio"] == 0.5 else 6) and row["seconds"] > 0
        if row["ratio"] == 1:  # whatever the strategy; float32 sums of other chunks
            assert row["factor"] == 1 and row["error"] < 1e-3 and row["cosine"] == 1
    assert document["rows"][0]["strategy"] == "random" and document["rows"][0]["cost"] == 1
    assert document["verdicts"][1] == "ratio 1: all clips are kept, every strategy gives the full gradient"
    assert "strategy" in result.stderr and document["verdicts"][0] in result.stderr


def row(strategy: str, noise: float, seconds: float = 1.0, bias: float = 0.0) -> SamplingRow:
    return SamplingRow(strategy, 0.3, 3, 1.0, bias, noise, (bias**2 + noise**2) ** 0.5, 0.9, seconds)


def test_the_verdict_weighs_error_against_time():
    random = row("random", 0.8)
    assert cost(row("dpp", 0.4, 2.0), random) == pytest.approx(0.5)
    worth = verdict([random, row("dpp", 0.4, 2.0), row("importance", 0.7, 1.1)], 0.3)
    assert worth == "ratio 0.3: dpp is worth most without bias: cost 0.50 of random's"
    slow = [random, replace(row("dpp", 0.4), seconds=9.0)]
    assert verdict(slow, 0.3) == "ratio 0.3: none without bias is worth more than random"


def test_the_verdict_says_what_less_error_costs_in_bias():
    rows = [row("random", 0.8, bias=0.2), row("top_gradient", 0.0, bias=0.4), row("uniform", 0.7)]
    assert verdict(rows, 0.3) == (
        "ratio 0.3: uniform is worth most without bias: cost 0.72 of random's; top_gradient has less error "
        "in one step, cost 0.24, but a bias of 0.40, which stays"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratio", "1.5"], "clip sampling ratio: got 1.5"),
        (["--backbone", "r2plus1d_33"], "did you mean 'r2plus1d_34'?"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_measured(options, message):
    assert message in refused(main, *SMALL, *options)
