"""bench-coverage: what counts as a block, figures that find errors, rows apart, going on, its errors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from foreign_blocks import Basic
from torch import Tensor, nn

from model.backbones import libraries
from model.rewire import rewired_stages
from tools import bench_coverage
from tools.bench_coverage import main, measured_apart, read_rows, summary, table
from tools.benchmarks import coverage
from tools.benchmarks.coverage import CoverageRow, measure, residual_blocks
from tools.benchmarks.networks import ForeignNetwork, known_networks

ROOT = Path(__file__).resolve().parents[1]
VIT = "hf:ViTModel"


class Double(nn.Module):
    """Adds to what it depends on, with a factor: residual, and not one that can be rewired."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.layer(x), alpha=2)


class Cost(nn.Module):
    """No residual connection: its terms do not depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


@dataclass(frozen=True)
class Own(ForeignNetwork):
    """A network of this file's."""

    blocks: tuple[type[nn.Module], ...] = ()

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), *(block() for block in self.blocks)).train()


def own(*blocks: type[nn.Module]) -> Own:
    return Own("own:network", "own", (3, 8, 8), blocks=blocks)


def test_blocks_are_modules_that_add_to_what_they_depend_on():
    one = own(Basic, Cost, Double)
    assert residual_blocks(one.build(), one.input(0)) == {"1": {"", "1"}, "3": {"", "3"}}


@pytest.mark.slow
def test_a_row_counts_blocks_measures_both_directions_and_says_why_one_is_left():
    row = measure(own(Basic, Basic, Cost, Double))
    assert row.error is None and (row.blocks, row.rewired) == (3, 2)
    assert row.refused.keys() == {"4"} and "factor" in row.refused["4"]
    assert row.beta_0_difference == 0
    assert row.gradient_error < 1e-5 and row.gradient_error_64 < 1e-12  # their roundings
    assert 0 < row.rewired_mib < row.plain_mib
    assert "67%" in table([row], markdown=False)


@pytest.mark.slow
def test_the_row_tells_a_network_that_is_rewired_wrongly(monkeypatch):
    """An inverse that is off by a little, and a beta-0 output that is another."""
    one, original = own(Basic, Basic), coverage.set_beta

    def wrong(network: nn.Module, beta: float) -> None:
        original(network, beta)
        for chain in rewired_stages(network):
            run = chain.run
            chain.run = lambda x, calls, run=run, chain=chain: (
                run(x, calls) * (1.0 if chain.store_activations else 1.01)
            )

    monkeypatch.setattr(coverage, "set_beta", wrong)
    row = measure(one)
    assert row.gradient_error > 1e-3 and row.gradient_error_64 > 1e-3
    monkeypatch.setattr(coverage, "rewire", lambda network, **_: [network[0].weight.data.add_(1)][:0])
    assert measure(one).beta_0_difference > 0


def test_a_network_that_cannot_be_rewired_or_raises_is_a_row_with_the_reason():
    assert "no block is known to be residual" in measure(own(Double)).error
    nothing = measure(own(Cost))
    assert nothing.blocks == 0 and nothing.error is None and summary([nothing])["networks"] == 0
    assert measure(Own("own:x", "own", (5, 8, 8), blocks=(Basic,))).error.startswith("RuntimeError: Given")


def test_every_network_of_the_table_has_a_name_of_its_own():
    names = [one.name for one in known_networks()]
    assert len(names) == len(set(names)) > 140
    assert {name.partition(":")[0] for name in names} == set(libraries.LIBRARIES)


@pytest.mark.slow
@pytest.mark.ci
def test_one_is_measured_in_a_process_of_its_own_and_kept_and_not_measured_again(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    arguments = ["--network", VIT, "--rows", str(rows), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["blocks"], row["rewired"], row["beta_0_difference"], row["error"]) == (4, 4, 0, None)
    assert row["gradient_error_64"] < 1e-12
    rows.write_text(rows.read_text() + '{"network": "cut o')  # a run that was killed while it wrote
    monkeypatch.setattr(bench_coverage, "measured_apart", None)
    again = CliRunner().invoke(main, [*arguments[:-1], "--markdown"])
    assert again.exit_code == 0 and "1 networks are done already" in again.stderr
    assert f"| vit | {VIT} | 4 | 100% |" in again.stdout
    assert "1 of 1 networks have at least 95%" in again.stdout


def test_one_that_hangs_or_crashes_is_a_row(monkeypatch, tmp_path):
    one = next(one for one in known_networks() if one.name == VIT)
    assert measured_apart(one, 0.01).error == "not done after 0.01 s (--timeout)"
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho Fatal: gone >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(bench_coverage.sys, "executable", str(script))
    row = measured_apart(one, 60)
    assert row.error == "ended with code -11: Fatal: gone" and row.family == "vit"


def test_rows_of_another_file_are_refused_and_not_replaced(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("hello\nworld\n")
    result = CliRunner().invoke(main, ["--network", VIT, "--rows", str(other)])
    assert result.exit_code == 2 and "line 1 is no row of bench-coverage" in result.stderr
    assert other.read_text() == "hello\nworld\n"
    assert read_rows(None) == read_rows(tmp_path / "new") == {}


def test_a_line_that_was_cut_off_is_ended_before_the_next(tmp_path):
    rows = tmp_path / "rows.jsonl"
    bench_coverage._append(rows, "{}")
    rows.write_text(rows.read_text() + '{"net')
    whole = json.dumps(vars(CoverageRow("a:b", "c")))
    bench_coverage._append(rows, whole)
    assert rows.read_text() == f"{{}}\n{whole}\n"


def test_an_error_counts_as_a_network_and_one_without_blocks_does_not():
    rows = [CoverageRow("a:a", "a", 20, 19), CoverageRow("a:b", "b", 20, 18), CoverageRow("a:c", "c")]
    rows.append(CoverageRow("a:d", "d", error="gone"))
    assert summary(rows) == {"networks": 3, "enough": 1, "largest_beta_0_difference": None}


def test_without_a_library_one_line_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["--library", "timm"])
    assert result.exit_code == 2 and not result.stdout
    first, second = result.stderr.splitlines()
    missing = 'timm is not installed (in the checkout: pip install -c constraints.txt "leantad[timm]")'
    assert first == f"warning: {missing}: its networks are left out"
    assert second == "error: nothing to measure: install timm, torchvision or transformers"


@pytest.mark.ci
@pytest.mark.slow
def test_networks_of_the_real_libraries_are_rewired_and_right(with_timm):
    """A stem and batch norms, a module that blocks share, video; each in a process of its own."""
    networks = ("timm:mobilenetv3_small_100", "timm:coat_lite_tiny", "torchvision:r3d_18")
    command = [sys.executable, str(ROOT / "tools" / "bench_coverage.py"), "--json", "--quiet"]
    command += [word for name in networks for word in ("--network", name)]
    done = subprocess.run(command, env=with_timm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["network"] for row in rows} == set(networks)
    for row in rows:
        assert row["error"] is None and row["rewired"] == row["blocks"] > 0, row
        assert row["beta_0_difference"] == 0 and row["gradient_error"] <= 1e-5, row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "timm:resnet81"], "--network: got 'timm:resnet81'; did you mean 'timm:resnet18'?"),
        (["--network", VIT, "--rows", "no/where.jsonl"], "no/where.jsonl: folder no does not exist"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
