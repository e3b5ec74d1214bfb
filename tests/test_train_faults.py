"""Training when the disk is full, when Ctrl-C is pressed twice, when another process of the run dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from full_disk import files_of_at_most
from tiny_run import ROOT, arguments, make_shards_of, run

from pipeline.dataset import Dataset
from train import main
from train.cli import Output
from train.distributed import LAUNCH_VARIABLES, shut_down
from train.loop import Interrupt


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards_of(tmp_path_factory.mktemp("faults"))


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1_000_000, "checkpoints: the next checkpoint could not be written (torch: a file is cut; "),
        (500_000, "checkpoints: the next checkpoint could not be written (Error while serializing: "),
        (2_500, ": File too large; "),  # detections.json
    ],
)
def test_a_full_disk_is_one_line_and_exit_code_2(shards, tmp_path, size, message):
    with files_of_at_most(size):
        stopped = run(shards, tmp_path / "run", run__checkpoint_every=int(size > 10_000), run__eval_every=1)
    assert stopped.exit_code == 2, stopped.output
    assert message in stopped.stderr and stopped.stderr.count("\n") == 1, stopped.stderr
    assert stopped.stderr.endswith("there is no checkpoint to go on from yet\n")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_named_and_the_run_goes_on_without_it(shards, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shards, data)
    key = next(key for key, video in Dataset.open(data).videos.items() if video.subset == "training")
    [tar] = data.glob("*.tar")
    with tarfile.open(tar) as archive:
        member = next(member for member in archive if member.name == f"{key}.mp4")
    with tar.open("r+b") as file:
        file.seek(member.offset_data + member.size // 2)
        file.write(b"damaged")
    stopped = run(data, out)
    assert stopped.exit_code == 2 and stopped.stderr.count("\n") == 1, stopped.output
    assert f"00000.tar: video {key}: " in stopped.stderr
    assert "; to go on without it: --resume --set data.skip_bad=1; there is no checkpoint" in stopped.stderr
    resumed = run(data, out, "--resume", quiet=False, data__skip_bad=1)
    assert resumed.exit_code == 0 and f"video {key}: " in resumed.stderr, resumed.output


LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_accelerators", "2"],
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2"],
}


def ranks_of(out: Path) -> dict[str, int]:
    """The processes that train into `out`, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = dict(
                line.partition(b"=")[::2] for line in (folder / "environ").read_bytes().split(b"\0")
            )
        except OSError:
            continue
        is_worker = len(command) > 2 and command[-2 if command[-1] == b"" else -1] and b"RANK" in environment
        if is_worker and os.fsencode(out) in command and b"launch" not in b" ".join(command[:4]):
            found[environment[b"RANK"].decode()] = int(folder.name)
    return found


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_handlers_that_are_kept_outlive_the_run():
    """Its launcher's SIGTERM must not end a process before it has said that another one is lost."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupt = Interrupt()
        interrupt.keep()
        interrupt.restore()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked and signal.getsignal(signal.SIGTERM) == interrupt._handle
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_a_process_leaves_with_the_others_by_its_exit_code_unless_it_fails_to_say_how_it_ended(
    tmp_path, monkeypatch
):
    """shut_down ends a process with the code that it was given, whatever happened since."""
    at_exit = []
    monkeypatch.setattr(main.atexit, "register", lambda *call: at_exit.append(call))
    monkeypatch.setattr(main, "run_alone", lambda *_, **options: options["resume"])
    options = {"force": False}
    with pytest.raises(FileNotFoundError):  # metrics.json of a complete run
        main.train(None, tmp_path, (), Output(quiet=True), resume=True, **options)
    assert not at_exit
    assert main.train(None, tmp_path, (), Output(quiet=True), resume=False, **options) == 130
    assert at_exit == [(shut_down, 130)]


def test_a_second_ctrl_c_is_no_request_any_more():
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt = Interrupt()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked and signal.getsignal(signal.SIGINT) == former[signal.SIGINT]
    finally:
        interrupt.restore()
    assert {number: signal.getsignal(number) for number in former} == former


def is_gone_after_sigterm(process: Path) -> bool:
    """Whether a process has ended; if not, it gets the signal that its launcher sends, too, at any moment."""
    if not process.exists() or (process / "stat").read_text().rpartition(")")[2][1] == "Z":
        return True
    os.kill(int(process.name), signal.SIGTERM)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "victim"),
    [
        pytest.param("deepspeed", "0", marks=pytest.mark.ci),
        pytest.param("torchrun", "1", marks=pytest.mark.ci),
    ],
)
def test_a_killed_process_ends_the_others_in_one_line(shards, tmp_path, launcher, victim):
    out = tmp_path / "run"
    settings = {"run__checkpoint_every": 1, "run__epochs": 1000, "run__lost_after_seconds": 20}
    script = [str(ROOT / "train" / "main.py"), *arguments(shards, out, optimizer__batch_size=1, **settings)]
    name, *options = LAUNCHERS[launcher]
    command = [str(Path(sys.executable).with_name(name)), *options, *script]
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
    try:
        wait_until(lambda: (out / "checkpoints" / "last").exists() or process.poll() is not None)
        ranks = ranks_of(out)
        assert sorted(ranks) == ["0", "1"], process.communicate()[0]
        other = Path("/proc") / str(ranks.pop("1" if victim == "0" else "0"))
        os.kill(ranks[victim], signal.SIGKILL)
        wait_until(lambda: is_gone_after_sigterm(other), 20)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode != 0
    lines = re.findall("error: rank .*", output)  # what a launcher writes meanwhile may stand before it
    assert len(lines) == 1, output
    line = lines[0]
    assert line.startswith(f"error: rank {1 - int(victim)}: another process of the run has ended (")
    assert f"; its own output says why; --resume goes on from {out / 'checkpoints' / 'step_'}" in line
    assert 'train/main.py", line' not in output  # no traceback of ours
