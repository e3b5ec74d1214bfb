"""`leantad gpu-check`: rows that hold, fail, die, hang or find no time; what a second call measures again."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import torch
from commands import call

from tools import gpu_check
from tools.gpu_check import main
from tools.gpu_checks import process
from tools.gpu_checks.groups import GROUPS, ROW_NAMES, Group
from tools.gpu_checks.numerics import gradients, small_network, without_drop_path
from tools.gpu_checks.rows import (
    FAILED,
    GROUP_NAMES,
    OK,
    ROWS_FILE,
    SKIPPED,
    CheckContext,
    Row,
    SkipRow,
    append_row,
    read_rows,
    require,
    run_row,
)
from tools.gpu_checks.table import document, markdown

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")

invoke = partial(call, main)


def raising(error: Exception):
    def check(context: CheckContext) -> str:
        raise error

    return check


def test_a_check_holds_fails_or_does_not_apply_and_says_with_which_figures(tmp_path):
    context = CheckContext("cpu", tmp_path)
    for check, state, figures in (
        (lambda context: "1 of 2", OK, "1 of 2"),
        (lambda context: require(False, "3 > 2"), FAILED, "ValueError: 3 > 2"),
        (raising(SkipRow("no encoder")), SKIPPED, "no encoder"),
        (raising(RuntimeError("CUDA error:\nlaunch")), FAILED, "RuntimeError: CUDA error: launch"),
    ):
        row = run_row("name", check, context)
        assert (row.state, row.figures) == (state, figures)


def test_rows_survive_a_kill_in_the_middle_of_a_line_and_the_last_of_a_name_counts(tmp_path):
    path = tmp_path / ROWS_FILE
    assert read_rows(path) == {}
    for row in (Row("a", FAILED, "first"), Row("b", OK, "1"), Row("a", OK, "second")):
        append_row(path, row)
    with path.open("a") as file:
        file.write('{"name": "b", "sta')
    assert {name: row.figures for name, row in read_rows(path).items()} == {"a": "second", "b": "1"}


@pytest.fixture
def groups(monkeypatch):
    """Two groups in place of the real ones, and processes that do what the test says."""
    rows = {"pair": Group({"one": str, "two": str}, 60), "lonely": Group({"three": str}, 60, alone=True)}
    monkeypatch.setattr(process, "GROUPS", rows)

    def with_processes(behaviour):
        monkeypatch.setattr(process, "run_process", behaviour)

    return with_processes


def rows_of(folder, seconds=60.0) -> dict[str, Row]:
    found: dict[str, Row] = {}
    process.run_all(
        ["pair", "lonely"],
        folder,
        "cpu",
        deadline=time.monotonic() + seconds,
        beside=2,
        on_row=lambda row: found.update({row.name: row}),
    )
    return found


def test_a_process_that_dies_fails_its_row_and_skips_those_it_did_not_reach(groups, tmp_path):
    groups(lambda name, folder, device, limit, threads: "the process ended: Segmentation fault")
    rows = rows_of(tmp_path)
    assert (rows["one"].state, rows["two"].state, rows["three"].state) == (FAILED, SKIPPED, FAILED)
    assert "Segmentation fault" in rows["one"].figures and rows["two"].figures.startswith("not reached")


def test_a_second_call_measures_what_failed_and_keeps_what_held(groups, tmp_path):
    path, asked = tmp_path / ROWS_FILE, []

    def run(name, folder, device, limit, threads):
        for row in process.open_names(name, read_rows(path)):
            asked.append(row)
            append_row(path, Row(row, FAILED if row == "two" else OK, "", started=time.time()))
        return "exit code 0"

    groups(run)
    assert rows_of(tmp_path)["two"].state == FAILED and sorted(asked) == ["one", "three", "two"]
    rows_of(tmp_path)
    assert asked[3:] == ["two"]


def test_without_time_a_row_is_skipped_and_not_begun(groups, tmp_path):
    groups(lambda name, folder, device, limit, threads: pytest.fail("begun"))
    rows = rows_of(tmp_path, seconds=-1)
    assert {row.state for row in rows.values()} == {SKIPPED} and "no time left" in rows["one"].figures


def test_a_process_that_hangs_is_ended_at_its_limit(tmp_path):
    start = time.monotonic()
    assert process.run_process("doctor", tmp_path, "cpu", 0.05, threads=1) == "took longer than 0 s"
    assert time.monotonic() - start < 5


def test_processes_beside_each_other_share_the_cores(groups, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(process.os, "cpu_count", lambda: 16)
    groups(lambda name, folder, device, limit, threads: asked.update({name: threads}) or "exit code 0")
    rows_of(tmp_path)
    assert asked == {"pair": 8, "lonely": 16}


@pytest.mark.slow
def test_the_step_that_is_compared_with_the_cpus_draws_nothing():
    """For a CPU and a GPU draw other numbers from one seed."""
    network = without_drop_path(small_network("videomae_s"))
    gradients(network, "cpu")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(after, torch.get_rng_state())


def test_the_table_keeps_its_columns_and_the_document_says_the_same():
    rows = [Row("a", OK, "x | y", 1.2), Row("b", FAILED, "z", 3.7)]
    lines = markdown(rows, {"GPU": "H200"}).splitlines()
    assert "GPU H200" in lines[0] and lines[-2:] == ["| a | OK | x / y | 1 |", "| b | failed | z | 4 |"]
    assert [row["figures"] for row in document(rows, {})["rows"]] == ["x | y", "z"]


def test_every_row_has_one_name_and_one_group():
    assert tuple(GROUPS) == GROUP_NAMES
    assert len(ROW_NAMES) == len(set(ROW_NAMES)) == sum(len(group.checks) for group in GROUPS.values())


@without_gpu
def test_without_a_gpu_it_is_one_line_and_exit_code_2(tmp_path):
    result = invoke("--out", tmp_path / "out")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and "no GPU" in result.stderr
    assert not (tmp_path / "out").exists()


@without_gpu
def test_rows_of_another_machine_are_measured_again(monkeypatch, tmp_path):
    run = partial(invoke, "--out", tmp_path, "--only", "engine", "--rehearse", "--minutes", "0.1")

    def fail(names, folder, device, *, deadline, beside, on_row):
        on_row(Row("ZeRO stages, offload", FAILED, "0.1"))
        append_row(folder / ROWS_FILE, Row("ZeRO stages, offload", FAILED, "0.1"))

    monkeypatch.setattr(process, "run_all", fail)
    first = run()
    assert first.exit_code == 1 and "1 row of 1 failed" in first.stdout
    assert "| ZeRO stages, offload | failed | 0.1 |" in (tmp_path / "gpu-check.md").read_text()
    assert json.loads((tmp_path / "gpu-check.json").read_text())["rows"][0]["state"] == FAILED
    assert "rows that held are kept" in run().stderr
    monkeypatch.setattr(gpu_check, "machine_of", lambda device: {"GPU": "another"})
    assert "measured again" in run().stderr


@without_gpu
@pytest.mark.ci
@pytest.mark.slow
def test_a_rehearsal_runs_the_checks_themselves(tmp_path):
    only = [name for name in GROUP_NAMES if name != "doctor"]  # tests/test_tools_doctor.py has it
    options = [word for name in only for word in ("--only", name)]
    result = invoke("--out", tmp_path, *options, "--rehearse", "--minutes", "10")
    rows = read_rows(tmp_path / ROWS_FILE)
    # of the CPU's own bfloat16, which differs from one to the next; the GPU's is held to its bound
    assert result.exit_code == 0 or rows["step, bfloat16"].state == FAILED, result.output
    assert rows.pop("step, bfloat16").state != SKIPPED
    assert rows.pop("GPU tests").state == SKIPPED
    assert {row.state for row in rows.values()} == {OK} and len(rows) == len(ROW_NAMES) - 3
    assert "48x48 off by 0" in rows["decode vp9"].figures
    assert rows["killed and resumed"].figures == "weights bitwise equal"
    logs = {f"{name}.log" for name in only}
    assert {path.name for path in tmp_path.iterdir()} == logs | {
        "machine.json",
        "rows.jsonl",
        "gpu-check.md",
        "gpu-check.json",
    }
