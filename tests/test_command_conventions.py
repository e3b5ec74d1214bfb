"""What every command keeps to: help with an example, exit codes, --quiet, --json, nothing overwritten."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import call, refused
from tqdm import tqdm

from tools.cli import COMMANDS
from tools.cli import main as leantad
from tools.make_shards import main as make_shards
from tools.make_synthetic import main as make_synthetic
from train.cli import (
    PATH,
    Command,
    Output,
    check_new,
    check_new_file,
    document_options,
    output_options,
    plain,
)
from train.eval import main as evaluate
from train.main import remove_run, settings_of_run

ROOT = Path(__file__).resolve().parents[1]


def command_of(name: str) -> click.Command:
    return importlib.import_module(COMMANDS[name][0]).main


@pytest.mark.slow
def test_the_help_of_every_command_needs_no_heavy_library():
    """But for benchmarks and the converter of weights, which are about tensors from their first line."""
    light = [name for name in COMMANDS if not name.startswith("bench-") and name != "convert-weights"]
    code = (
        "import sys\n"
        "from tools.cli import main\n"
        f"for name in {light}:\n"
        "    try:\n"
        "        main([name, '--help'], standalone_mode=False)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, name\n"
        "    heavy = {'torch', 'nvidia', 'deepspeed', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "    assert not heavy, name + f' --help imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_file_runs_from_any_folder_without_being_installed(name, tmp_path, monkeypatch, capsys):
    path = ROOT / f"{COMMANDS[name][0].replace('.', '/')}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != ROOT])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0 and f"{path.name} [OPTIONS]" in capsys.readouterr().out
    assert sys.path[0] == str(ROOT)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_an_example_and_the_options_of_all(name):
    command = command_of(name)
    assert isinstance(command, Command), "ValueError and OSError would be tracebacks"
    result = CliRunner().invoke(leantad, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout and "leantad " + name in result.stdout.split("Example")[1]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--quiet", "-q", "--json"} <= options
    flags = [p for p in command.params if set(p.opts) & {"--quiet", "--json", "--force"}]
    assert all(getattr(flag, "is_flag", False) for flag in flags), "a path after --json would be swallowed"
    assert not {"--overwrite", "--output"} & options, "--force and --out are the names"
    undocumented = [
        p.name for p in command.params if isinstance(p, click.Option) and not (p.help or p.hidden)
    ]
    assert len(undocumented) <= 4, undocumented  # such as --codec [vp9|h264], which its choices explain


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_that_leads_to_the_help(name):
    message = refused(leantad, name, "--no-such-option")
    assert "no such option '--no-such-option'" in message and message.endswith(f" See main {name} --help\n")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["train"], "missing option '--out'."),
        (["view"], "missing argument 'DETECTIONS'."),
        (["eval", "x"], "got unexpected extra argument (x)."),
        (["eval", "--from-raw"], "option '--from-raw' requires an argument."),
        (["predict", "x", "--top", "0"], "invalid value for '--top': 0 is not in the range x>=1."),
        (["predict", "x", "--top", "0_2"], "got '0_2', want a number such as 12.5."),
        (["bench-rewire", "--what", "x"], "'x' is not one of 'time', 'error', 'both'."),
        (["evaluate"], "no such command 'evaluate'."),
        (["--no-such-option"], "no such option '--no-such-option'."),
    ],
)
def test_wrong_usage_is_one_line(arguments, wrong):
    assert f"{wrong} See main" in refused(leantad, *arguments)


@click.command(cls=Command)
@output_options
def sample(output: Output) -> None:
    output.remark("a remark")
    with output.others_on_stderr():
        print("a library talks")
    output.say("the table")
    output.document({"map": math.nan, "path": Path("a/b"), "tiou": (0.5, math.inf)})


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        ([], "a library talks\nthe table\n", "a remark\n"),
        (["-q"], "a library talks\n", ""),
        (["--json"], None, "a remark\na library talks\nthe table\n"),
        (["--json", "--quiet"], None, "a library talks\n"),
    ],
)
def test_results_go_to_stdout_and_all_else_to_stderr(options, stdout, stderr):
    result = CliRunner().invoke(sample, options)
    assert result.exit_code == 0 and result.stderr == stderr
    if stdout is not None:
        assert result.stdout == stdout
    else:
        assert json.loads(result.stdout) == {"map": None, "path": "a/b", "tiou": [0.5, None]}


@click.command(cls=Command)
@click.option("--plot", "plot_file", type=PATH)
@document_options
def measuring(output: Output, plot_file: Path | None) -> None:
    output.document({"rows": plot_file})


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_where_a_document_cannot_go_is_said_before_the_work(option, tmp_path):
    assert "make it first" in refused(measuring, option, tmp_path / "no" / "rows.json")
    there = tmp_path / "rows.json"
    there.write_text("mine")
    assert "exists; --force replaces it" in refused(measuring, option, there)
    assert there.read_text() == "mine"
    assert call(measuring, option, there, "--force", "--quiet").exit_code == 0
    assert (there.read_text() == "mine") is (option == "--plot")


def test_an_input_that_failed_is_named_whatever_else_is_quiet(capsys):
    Output(quiet=True).error("a.mp4: the file is empty")
    assert capsys.readouterr().err == "error: a.mp4: the file is empty\n"


def test_a_document_is_written_to_a_file_as_well(tmp_path, capsys):
    Output(as_json=True, out=tmp_path / "d.json").document({"map": math.nan, "path": Path("a")})
    assert capsys.readouterr().out == (tmp_path / "d.json").read_text()
    assert json.loads((tmp_path / "d.json").read_text()) == {"map": None, "path": "a"}


def test_ctrl_c_is_one_line_and_exit_code_130():
    @click.command(cls=Command, interrupted="the same command continues")
    def stopped() -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = CliRunner().invoke(stopped)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command continues\n" and not result.stdout
    assert signal.getsignal(signal.SIGINT) is before
    assert make_shards.interrupted == "the same command continues"


def test_no_import_swallows_a_ctrl_c(tmp_path):
    """Torch's goes on without numpy, if that is where it was."""
    library = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "library.py").write_text(library)
    code = (
        "import click; from train.cli import Command\n"
        "@click.command(cls=Command)\n"
        "def main():\n"
        "    import sys; sys.path.insert(0, sys.argv[1]); import library; print('went on')\n"
        "main([])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


SLOW_TO_STOP = """
import atexit, click, os, signal, time
from train.cli import Command

def press(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)

@click.command(cls=Command)
def main():
    atexit.register(press)  # as a library that cleans up when the process ends
    try:
        {body}
    finally:
        press() if {pressed_within} else None

main([])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "pressed_within", "output"),
    [
        ("press()", False, "interrupted\n"),
        ("press()", True, "interrupted\n"),
        ("raise ValueError('no data')", False, "error: no data\n"),
        ("pass", False, ""),
    ],
    ids=["while it ends", "twice", "after an error", "after the work"],
)
def test_ctrl_c_again_ends_the_process_without_a_traceback(body, pressed_within, output):
    code = SLOW_TO_STOP.format(body=body, pressed_within=pressed_within)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", output)


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(monkeypatch):
    def slow(module: str):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", slow)
    result = CliRunner().invoke(leantad, ["train"])
    assert result.exit_code == 130 and result.stderr == "interrupted\n"


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "errors"),
    [
        ("click.echo('a')", 1, ""),
        ("raise ValueError('what')", 2, "error: what\n"),
        ("click.echo('a', err=True)", 0, "a\n"),
    ],
)
def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word(body, code, errors):
    """As `leantad settings | head -1`, once head has gone; what else is wrong is still said."""
    text = "import click\nfrom train.cli import Command\n@click.command(cls=Command)\n"
    text += f"def main():\n    {body}\nmain()"
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (code, errors)


def test_what_a_compiler_prints_stays_out_of_the_document():
    code = (
        "import subprocess, sys; from train.cli import Output\n"
        "output = Output(as_json=True)\n"
        "with output.others_on_stderr():\n"
        "    subprocess.run(['echo', 'compiling'], check=True)\n"
        "output.document([1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == [1] and done.stderr == "compiling\n"


@pytest.mark.parametrize(("method", "prefix"), [("warn", "warning: "), ("error", "error: "), ("say", "")])
def test_a_line_appears_above_a_live_progress_bar(monkeypatch, method, prefix):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=2, desc="steps") as bar:
        bar.update(1)
        getattr(Output(), method)("the disk is slow")
        bar.update(1)
    line, rest = terminal.getvalue().split("\n", 1)
    assert line.split("\r")[-1] == f"{prefix}the disk is slow", "what a terminal shows of it"
    assert rest.startswith("\rsteps:"), "the bar is drawn again below"


def test_items_pass_a_progress_bar_unchanged(capsys):
    assert list(Output().progress([3, 1, 2], "rendering", unit="video")) == [3, 1, 2]
    assert list(Output(quiet=True).progress(iter("ab"), "rendering", unit="video", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")  # no terminal


def test_numbers_that_json_does_not_have_become_null():
    assert plain({1: [math.nan, -math.inf, 1.5, True, None, "x"]}) == {
        "1": [None, None, 1.5, True, None, "x"]
    }


def test_results_are_new_or_forced(tmp_path):
    check_new(tmp_path / "absent", force=False)
    check_new(tmp_path, force=False)  # an empty folder holds no result
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(ValueError, match="--force replaces it"):
            check_new(path, force=False)
        check_new(path, force=True)
    with pytest.raises(ValueError, match="does not exist; make it first"):
        check_new_file(tmp_path / "no" / "file", force=True)
    with pytest.raises(ValueError, match="is a folder"):
        check_new_file(tmp_path, force=True)


def test_a_result_goes_to_a_file_that_can_be_written():
    for path in (Path("/proc/self/d.json"), Path("/proc/d.json")):
        with pytest.raises(ValueError, match=r"d\.json: cannot be written \(.*\); give another path"):
            check_new_file(path, force=True)
    with pytest.raises(ValueError, match="/dev/null: is no ordinary file"):
        check_new_file(Path("/dev/null"), force=True)


# ---------------------------------------------------------------------------------- no command overwrites


def test_eval_keeps_detections_and_raw_outputs_that_are_there(tmp_path):
    """Refused before anything is read: neither the checkpoint nor the raw file exists."""
    (tmp_path / "d.json").write_text("mine")
    (tmp_path / "r.h5").write_text("mine")
    new = tmp_path / "new.json"
    assert "--force" in refused(evaluate, "--from-raw", "r", "--out", tmp_path / "d.json")
    assert "r.h5" in refused(evaluate, "--checkpoint", "c", "--out", new, "--raw", tmp_path / "r.h5")
    assert "--force" not in refused(evaluate, "--checkpoint", "c", "--out", tmp_path / "d.json", "--force")
    assert (tmp_path / "d.json").read_text() == (tmp_path / "r.h5").read_text() == "mine"


@pytest.mark.slow
def test_make_synthetic_and_make_shards_keep_what_is_there_and_report_in_json(tmp_path):
    small = ["--size", "16", "--shortest", "1", "--longest", "1", "--train", "1", "--val", "1", "--quiet"]
    arguments = ["--out", str(tmp_path / "raw"), *small]
    made = CliRunner().invoke(make_synthetic, [*arguments, "--json"])
    assert made.exit_code == 0 and json.loads(made.stdout)["videos"] == 2
    assert "--force" in refused(make_synthetic, *arguments)
    assert CliRunner().invoke(make_synthetic, [*arguments, "--force"]).stdout == ""

    annotations = json.loads((tmp_path / "raw" / "annotations.json").read_text())
    annotations["database"]["absent"] = {"subset": "training", "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    packing = [str(tmp_path / "raw" / "videos"), str(tmp_path / "a.json"), "--out", str(tmp_path / "shards")]
    packing += ["--copy", "--quiet", "--workers", "1"]
    packed = CliRunner().invoke(make_shards, [*packing, "--json"])
    assert packed.exit_code == 1, "one video has no file, the others are packed"
    document = json.loads(packed.stdout)
    assert document["packed"] == 2 and list(document["rejected"]) == ["absent"]
    again = CliRunner().invoke(make_shards, [*packing, "--json"])
    assert again.exit_code == 1 and json.loads(again.stdout) == document
    assert "--force" in refused(make_shards, *packing, "--shard-size", "1")
    checked = CliRunner().invoke(make_shards, [*packing, "--json", "--check"])
    assert checked.exit_code == 1 and json.loads(checked.stdout)["usable"] == 2


def test_train_keeps_a_complete_run_unless_forced(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"holds a run already; go on with --resume, start anew with --force"
    ):
        settings_of_run(Path("demo"), (), tmp_path, resume=False)
    with pytest.raises(ValueError, match="want one of them"):
        settings_of_run(Path("demo"), (), tmp_path, resume=True, force=True)
    settings_of_run(Path("demo"), (), tmp_path, resume=False, force=True)
    assert (tmp_path / "metrics.json").exists()  # reading settings removes nothing
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    remove_run(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
