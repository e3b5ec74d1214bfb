"""eval and predict in the processes of a launcher: the results of one, written once; what they meet in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from painted_video import painted_video
from untrained_run import PACKED, checkpoint

from tools.make_shards import main as make_shards
from train.distributed import LAUNCH_VARIABLES, device_of_rank, gather_json, group_options, shared_work
from train.raw_outputs import read_raw

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
DEEPSPEED = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A run, three videos, one of them with three windows, and their shards; and a file that is no video."""
    folder = tmp_path_factory.mktemp("shared")
    checkpoint(folder / "run", PACKED)
    videos = folder / "videos"
    videos.mkdir()
    for name, frames in (("a", 30), ("b", 150), ("c", 24)):
        (videos / f"{name}.webm").write_bytes(painted_video(frames, size=(48, 36), container="webm", fps=15))
    rows = [f"{name},0.5,1.5,run,validation" for name in "abc"]
    (folder / "own.csv").write_text("\n".join(["video,start,end,label,subset", *rows, ""]))
    packing = [videos, folder / "own.csv", "--out", folder / "shards", "--quiet"]
    packed = CliRunner().invoke(make_shards, [*map(str, packing), "--fps", "10", "--short-side", "24"])
    assert packed.exit_code == 0, packed.output
    (videos / "broken.mp4").write_bytes(b"no video")
    return folder


def launched(launcher: list[str], processes: int, script: str, *arguments) -> subprocess.CompletedProcess:
    """The script in so many processes; in one it is started without a launcher."""
    start = [*launcher, str(processes)] if processes > 1 else [sys.executable]
    env = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    command = [*start, str(ROOT / script), *map(str, arguments)]
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)


def raw_of(path: Path) -> list[tuple]:
    windows = read_raw(path)
    return [(w.key, w.window, w.duration, w.segments.tolist(), w.class_scores.tolist()) for w in windows]


@pytest.mark.ci
@pytest.mark.parametrize(("launcher", "processes"), [(DEEPSPEED, 2), (TORCHRUN, 4)])
def test_processes_of_a_launcher_evaluate_what_one_does(world, tmp_path, launcher, processes):
    """Also where there are more than videos. In another batch a number may be rounded otherwise."""
    batch = ["--set", "optimizer.batch_size=1", "--set", "data.window_seconds=4"]
    source = ["--checkpoint", world / "run", "--shards", world / "shards", "--quiet", *batch]
    outputs = {}
    for count in (1, processes):
        folder = tmp_path / str(count)
        folder.mkdir()
        files = ["--out", folder / "found.json", "--raw", folder / "raw.h5", "--json"]
        done = launched(launcher, count, "train/eval.py", *source, *files)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["found.json", "raw.h5"]
        start, end = done.stdout.index("{"), done.stdout.rindex("}")  # the deepspeed launcher prints, too
        document = json.loads(done.stdout[start : end + 1] if launcher is TORCHRUN else "{}")
        outputs[count] = ((folder / "found.json").read_text(), raw_of(folder / "raw.h5"), document)
    one, several = outputs[1], outputs[processes]
    assert [window[0] for window in one[1]] == ["a", "b", "b", "b", "b", "c"]
    assert one[0] == several[0] and one[1] == several[1]
    assert launcher is DEEPSPEED or one[2] == several[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes",
    [pytest.param(2, marks=pytest.mark.ci), pytest.param(5, id="more than files", marks=pytest.mark.ci)],
)
def test_processes_of_a_launcher_predict_what_one_does(world, tmp_path, processes):
    outputs = {}
    for count in (1, processes):
        out = tmp_path / str(count)
        files = [world / "videos", "--checkpoint", world / "run", "--device", "cpu", "--out", out, "--json"]
        done = launched(TORCHRUN, count, "tools/predict.py", *files)
        assert done.returncode == 1, done.stderr  # one of the files is no video
        assert done.stderr.count("broken.mp4: ") == 1, done.stderr
        document = json.loads(done.stdout) | {"out": None}
        outputs[count] = {path.name: path.read_text() for path in out.iterdir()} | {"document": document}
    assert {"a.srt", "b.srt", "c.srt", "detections.json", "detections.csv"} < outputs[1].keys()
    assert list(outputs[1]["document"]["videos"]) == ["a", "b", "broken", "c"]
    assert outputs[1] == outputs[processes]


@pytest.mark.ci
@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(world, tmp_path):
    """Both find no subset of that name; nothing is written, and nobody waits for anybody."""
    options = ["--checkpoint", world / "run", "--shards", world / "shards", "--subset", "tost"]
    done = launched(TORCHRUN, 2, "train/eval.py", *options, "--out", tmp_path / "found.json")
    assert done.returncode != 0 and "no packed video in subset 'tost'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_alone_there_is_nothing_to_gather_and_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    value = {"a": [0.1, None]}
    with shared_work() as writes:
        assert writes and gather_json(value) == [value]
    assert not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def test_a_process_takes_the_gpu_of_its_rank(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 3) and current == [
        torch.device("cuda:3")
    ]
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda") and len(current) == 1


@pytest.mark.parametrize(
    ("device", "alone"), [("cuda:1", True), ("cuda:1", False), ("cpu", True), ("cpu", False)]
)
def test_a_gpu_has_nccl_and_gloo_and_a_single_process_a_store_of_its_own(monkeypatch, device, alone):
    monkeypatch.setenv("WORLD_SIZE", "1" if alone else "2")
    options = group_options(torch.device(device))
    on_gpu = device != "cpu"
    assert options.pop("backend") == ("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    assert options.pop("timeout").total_seconds() == 1800
    store = options.pop("store", None)
    assert (store is not None) == alone
    if alone:
        kind = torch.distributed.TCPStore if on_gpu else torch.distributed.HashStore
        assert isinstance(store, kind) and (not on_gpu or store.port > 0)
        assert options == {"rank": 0, "world_size": 1}
    else:
        assert options == ({"device_id": torch.device("cuda", 1)} if on_gpu else {})


@pytest.mark.slow
def test_tensors_on_the_cpu_go_through_gloo_beside_the_backend_of_a_gpu():
    """With the store of a single process on a GPU; the backend for GPUs itself needs one."""
    code = """
import torch, torch.distributed as dist
from train.distributed import destroy_process_group, gather_json, group_options, barrier
options = group_options(torch.device("cuda", 0))
dist.init_process_group(**{**options, "backend": options["backend"].replace("cuda:nccl", "cuda:gloo")})
x = torch.ones(3)
dist.all_reduce(x)
barrier()
dist.new_group([0])
destroy_process_group()
assert x.tolist() == [1, 1, 1] and not dist.is_initialized()
destroy_process_group()
"""
    environment = {**os.environ, "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.gpu
def test_on_a_gpu_both_kinds_of_tensors_are_reduced_without_a_complaint():
    code = """
import torch, torch.distributed as dist
from train.engine import start_process_group
device = start_process_group("cuda")
for place in (device, torch.device("cpu")):
    x = torch.ones(3, device=place)
    dist.all_reduce(x)
    assert x.tolist() == [1, 1, 1], place
dist.barrier()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "device" not in done.stderr and "destroy_process_group" not in done.stderr, done.stderr
