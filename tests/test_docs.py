"""The manual tells the truth: what it tells people to run, runs. (test_docs_claims.py holds the rest of it.)

Each page is run from top to bottom in a folder of its own, where tiny stand-ins lie under the names that the
page uses (PREPARED). Training, planning and benchmarks are made small (SMALLER, TINY, PLANNED); all else runs
as written. What cannot run here is listed with the reason (NOT_RUN), and its options are parsed.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from documented import LAUNCH_OPTIONS, NAMES, PAGES, ROOT, Block, Documented, blocks, commands
from safetensors.torch import load_file
from stand_ins import TINY, prepare
from tiny_run import make_shards_of, run

from model.backbones import build_backbone
from pipeline.annotations import read_annotations
from tools.cli import COMMANDS
from train.optimizer import check_ds_config
from train.settings import settings_from

# Nothing is left to search for: one estimate a plan, of seconds each.
PLANNED = {
    "data.num_clips": 1,
    "encoder.clip_ratio": 1,
    "encoder.clips_per_forward": 16,
    "optimizer.batch_size": 16,
}
# documented words -> what is run in their place
SMALLER = {
    "--hard --train 320": "--hard --train 4 --val 2 --longest 5 --quiet",
    "--clip 3x16x112x112": "--clip 3x8x32x32",
    "bench-sampling": "bench-sampling --videos 1 --clips 4 --frames 4 --size 16 --draws 2 --steps 0",
    "--backbone r2plus1d_34": "--backbone r2plus1d_tiny",
    "--backbone r2plus1d_18": "--backbone r2plus1d_tiny",
    "--backbone video_swin_t --source torchvision": "--backbone r2plus1d_tiny --source tsp",
    "run.epochs=60": "run.epochs=1",
    "data.num_features=512": "data.num_features=64",
    "data.num_clips=128": "data.num_clips=8",
    "--recipe activitynet_r2plus1d34 --shards data/mine": "--recipe mine.yaml --shards data/mine",
    "--workers 16": "--workers 1",
    "--bootstrap 1000": "--bootstrap 20",
}
# Whole commands. The doctor's other checks are seconds of imports each; tests/test_tools_doctor.py has them.
INSTEAD = {"leantad doctor": "leantad doctor --only python --only disk"}
SEVERAL = (
    "starts other processes or needs GPUs: two processes run in test_train_loop.py, test_train_engine.py"
)
FOREIGN = "needs other libraries: test_tools_rewire.py and test_tools_bench_coverage.py run them"
RELEASED = "needs a released checkpoint: test_tools_weights_released.py converts and runs such"
NAMED = "needs timm: test_model_backbones_named.py does the same with a small stand-in"
NOT_RUN = {
    "leantad convert-weights re2tal_thumos_swin_tiny.pth --classes category_idx.txt "
    "--out detectors/re2tal": RELEASED,
    "leantad predict match.mp4 --checkpoint detectors/re2tal --min-score 0.3": RELEASED,
    "leantad convert-weights etad_anet_snippet0.3.pth.tar --out detectors/etad": RELEASED,
    "leantad eval --checkpoint detectors/etad --shards data/activitynet "
    "--external-scores cuhk_val.json --out etad.json": RELEASED,
    "leantad convert-weights actionformer_thumos_i3d.pth.tar --classes thumos14.json "
    "--out detectors/actionformer": RELEASED,
    "leantad eval --checkpoint detectors/actionformer --shards i3d.h5 --subset test --protocol thumos "
    "--out actionformer.json": RELEASED,
    "leantad import-features i3d_features thumos_gt.json --stride 4 --fps 30 --clip-frames 16 "
    "--out i3d.h5": RELEASED,
    "leantad convert-weights re2tal_anet_slowfast101.pth --out detectors/slowfast "
    "--set post.sigma=0.75": RELEASED,
    "leantad rewire timm:resnet50": FOREIGN,
    "leantad rewire hf:vit": FOREIGN,
    'pip install -c constraints.txt "leantad[timm]"': "installs; setup.py has the extra",
    'pip install -c constraints.txt "leantad[timm]" '
    "--extra-index-url https://download.pytorch.org/whl/cpu": "installs, too",
    "leantad plan --recipe own_videos_timm": NAMED,
    "leantad train --recipe own_videos_timm --out runs/timm": NAMED,
    "leantad convert-weights resnet50.pth --backbone timm:resnet50 --out resnet50.safetensors": NAMED,
    "leantad bench-coverage --rows coverage.jsonl --markdown": FOREIGN,
    "docker build -t leantad .": "needs a daemon: test_release_files.py holds the Dockerfile",
    "docker build --build-arg USER_ID=$(id -u) -t leantad .": "needs a daemon, too",
    'docker run --gpus all --shm-size=8g -v "$PWD:/work" leantad train --recipe mine.yaml --out runs/mine': (
        "needs a daemon and a GPU"
    ),
    "leantad bench-step --backbone r2plus1d_34 --clips 128 --batch 4 --dtype bf16 --zero 1 "
    "--offload optimizer": "is for a GPU; the same page runs a small one",
    "leantad gpu-check --out gpu-check": "needs a GPU; test_tools_gpu_check.py rehearses it",
    "leantad ablate --recipe mine.yaml --vary encoder.frozen=true,false --seeds 3 --out studies/frozen": (
        "six runs in processes of their own; test_tools_ablate.py has the smallest"
    ),
    "leantad ablate --recipe mine.yaml --vary encoder.frozen=true,false --seeds 3 --out studies/real": (
        "six runs in processes of their own; test_tools_ablate.py has the smallest"
    ),
    "leantad ablate --recipe mine.yaml --vary encoder.clip_ratio=0.1,1.0 --out studies/ratio": (
        "two runs in processes of their own; test_tools_ablate.py has the smallest"
    ),
    "leantad eval --checkpoint studies/real/runs/frozen=false-seed0 --set data.shuffle_frames=true "
    "--out shuffled.json": "needs those six runs; test_train_eval.py evaluates one",
    "leantad train --recipe fir.yaml --out runs/fir": "as docs/train-on-your-own-videos.md, other values",
    "leantad eval --checkpoint runs/fir --tiou 0.1,0.2,0.3,0.4,0.5 --out fir.json": "needs that run",
    "make setup": "has made the environment of these tests",
    "make demo": "takes minutes; CI runs it",
    "make test": "is what runs these tests",
    "source .venv/bin/activate": "changes the shell it is typed into",
    "deepspeed --num_gpus 4 train/main.py --recipe mine.yaml --out runs/mine": SEVERAL,
    "deepspeed --num_gpus 4 train/eval.py --checkpoint runs/mine --shards data/mine": SEVERAL,
    "torchrun --standalone --nproc_per_node 4 tools/predict.py recordings --checkpoint runs/mine": SEVERAL,
    "torchrun --standalone --nproc_per_node 4 train/main.py --recipe mine.yaml --out runs/mine": SEVERAL,
    "deepspeed --hostfile hostfile train/main.py --recipe mine.yaml --out runs/mine": SEVERAL,
    "deepspeed --hostfile hostfile --no_ssh --node_rank 0 --master_addr node1 train/main.py "
    "--recipe mine.yaml --out runs/mine": SEVERAL,
    "torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint node1:29500 "
    "train/main.py --recipe mine.yaml --out runs/mine": SEVERAL,
    "DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 train/main.py --recipe mine.yaml --out runs/two "
    "--set run.device=cpu": SEVERAL,
    "deepspeed --num_gpus 1 train/main.py --recipe train/recipes/activitynet_r2plus1d34.yaml "
    "--out runs/anet": SEVERAL,
    "deepspeed --num_gpus 1 train/main.py --recipe train/recipes/thumos_r2plus1d34.yaml "
    "--out runs/thumos": SEVERAL,
    "deepspeed --num_gpus 1 train/main.py --recipe train/recipes/thumos_video_swin_t.yaml "
    "--out runs/thumos_swin --set data.shards=data/thumos256": SEVERAL,
}
# `make test-ci` runs them
LONG_PAGES = (
    "docs/resume.md",
    "docs/memory.md",
    "docs/sampling.md",
    "docs/speed.md",
    "docs/benchmarks.md",
    "docs/choose-settings.md",
    "docs/train-on-your-own-videos.md",
)
# What lies in the folder before a page is run from top to bottom.
PREPARED = {
    "README.md": ["my_videos", "annotations.csv", "match.mp4", "runs/demo"],
    "docs/benchmarks.md": ["anet/videos", "anet/activity_net.v1-3.min.json", "runs/anet", "cuhk_val.json"]
    + ["anet/blocked.json"]
    + ["thumos/videos", "thumos/thumos_gt.json", "runs/thumos"]
    + ["swin3d_t.pth", "r2plus1d_34-tsp_on_activitynet.pth"],
    "docs/train-on-your-own-videos.md": ["my_videos", "annotations.csv", "match.mp4"]
    + ["rgb_imagenet.pt", "label_map.txt"],
    "docs/annotations.md": ["coded.boris", "elan/monday.eaf", "elan/tuesday.eaf", "my_videos"]
    + ["predictions/detections.json"],
    "docs/speed.md": ["recordings", "runs/mine"],
    "docs/predict.md": ["match.mp4", "recordings", "more", "runs/mine", "data/mine"],
    "docs/python.md": ["my_videos", "annotations.csv", "match.mp4", "recordings", "mine.yaml", "runs/mine"],
    "docs/python.ipynb": ["runs/demo", "data/demo", "data/demo-videos/videos"],
    "docs/read-the-report.md": ["runs/demo", "data/demo"],
    "docs/choose-settings.md": ["data/mine", "mine.yaml", "swin3d_t.pth"]
    + ["r2plus1d_34-tsp_on_activitynet.pth", "match.mp4", "rgb_imagenet.pt", "label_map.txt"],
    "docs/features.md": ["data/mine", "mine.yaml", "runs/mine", "r2plus1d_34-tsp_on_activitynet.pth"]
    + ["i3d_features", "annotations.json", "match.mp4"],
    "docs/memory.md": ["data/mine", "mine.yaml"],
    "docs/several-gpus-and-machines.md": ["data/mine", "mine.yaml"],
    "docs/resume.md": ["data/mine", "mine.yaml", "runs/mine", "match.mp4"],
    "docs/troubleshooting.md": ["data/mine"],
}
NOTEBOOK = "docs/python.ipynb"
PLAIN_TOOLS = ("cp", "mkdir")
LAUNCHERS = ("deepspeed", "torchrun")


# ------------------------------------------------------------------------------------------- the stand-ins


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Six videos, packed, and a run trained on them."""
    folder = tmp_path_factory.mktemp("made")
    shards = make_shards_of(folder)
    trained = run(shards, folder / "run", run__epochs=1)
    assert trained.exit_code == 0, trained.output
    return folder


@pytest.fixture
def world(request, made, tmp_path, monkeypatch) -> Path:
    """A folder that looks like a checkout, with the stand-ins of one page."""
    for name in ("train", "tools", "ds_config.json", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in PREPARED.get(request.getfixturevalue("name"), []):
        prepare(name, made, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------ running a page


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The click command that a documented line calls, and its arguments; None if it calls another program."""
    if words[0] == "leantad" and len(words) > 1:
        assert words[1] in COMMANDS, f"no command {words[1]}"
        return importlib.import_module(COMMANDS[words[1]][0]).main, words[2:]
    if words[0] == "python" and words[1].endswith(".py"):
        return importlib.import_module(words[1].removesuffix(".py").replace("/", ".")).main, words[2:]
    return None


def made_small(command: Documented) -> list[str]:
    """The words that are run: with substitutions, and tiny settings that the line's own go before."""
    text = INSTEAD.get(" ".join(command.words), "\n".join(command.words))
    for documented, smaller in SMALLER.items():
        text = text.replace(documented.replace(" ", "\n"), smaller.replace(" ", "\n"))
    words = text.split("\n") if "\n" in text else text.split(" ")
    if "--recipe" in words and words[1] in ("train", "plan"):
        values = TINY | (PLANNED if words[1] == "plan" else {})
        sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        words[2:2] = [*sets, *(["--quiet"] if words[1] == "train" else [])]
    return words


def execute(command: Documented, where: str, monkeypatch) -> None:
    """Run one documented command; it must succeed."""
    if command.words[0] in PLAIN_TOOLS:
        subprocess.run(command.words, check=True)
        return
    found = command_of(made_small(command))
    assert found is not None, f"{where}: nobody runs this: {command.text}"
    with monkeypatch.context() as patch:
        for name, value in command.variables.items():
            patch.setenv(name, value)
        result = CliRunner().invoke(*found)
    said = f"{where}: {command.text}\nexit code {result.exit_code}\n{result.output}"
    assert result.exit_code == 0, f"{said}{result.exception!r}"
    if command.stdout is not None:
        Path(command.stdout).write_text(result.stdout)
        assert not command.stdout.endswith(".json") or json.loads(result.stdout), said


def check_parses(command: Documented, where: str) -> None:
    """A command that is not run: its target, or its options, must exist all the same."""
    first, *rest = command.words
    if first == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
    elif command.words[:2] == ["docker", "run"]:
        found = command_of(rest[rest.index("leantad") :])
        assert found is not None
        found[0].make_context(first, found[1])
    elif first == "leantad":
        found = command_of(command.words)
        assert found is not None
        found[0].make_context(rest[0], found[1])
    elif first in LAUNCHERS:
        script = next(place for place, word in enumerate(rest) if word.endswith(".py"))
        options = {word for word in rest[:script] if word.startswith("--")}
        assert options <= LAUNCH_OPTIONS, f"{where}: {options - LAUNCH_OPTIONS}"
        found = command_of(["python", *rest[script:]])
        assert found is not None
        found[0].make_context(rest[script], found[1])  # parses, and does not run


def code_cells(notebook: Path) -> list[str]:
    """The code of a Jupyter notebook, cell by cell."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_block(block: Block, name: str, space: dict, monkeypatch) -> None:
    """Do what a fenced block says, or check what it shows."""
    where = f"{name}, line {block.line}"
    if block.language == "sh":
        for command in commands(block):
            if command.text in NOT_RUN:
                check_parses(command, f"{name}, line {command.line}")
            else:
                execute(command, f"{name}, line {command.line}", monkeypatch)
    elif block.language == "python":
        exec(compile(block.text, where, "exec"), space)
    elif block.language == "yaml":
        values = yaml.safe_load(block.text)
        settings_from({**values, "data": {"shards": "x", **values.get("data", {})}})
    elif block.language == "json":
        check_ds_config(json.loads(block.text))
    elif block.language == "csv":
        Path("shown.csv").write_text(block.text)
        assert read_annotations("shown.csv")
    else:
        assert not block.language, f"{where}: {block.language!r} is a language that nobody runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.ci) if name in LONG_PAGES else name for name in NAMES]
)
def test_everything_that_a_page_tells_you_to_run_runs(name, world, monkeypatch):
    space = {"__name__": "documented_page"}
    for block in blocks(ROOT / name):
        run_block(block, name, space, monkeypatch)
    if name == "docs/resume.md":
        assert (
            load_file("mine_encoder.safetensors").keys()
            == build_backbone("r2plus1d_tiny").state_dict().keys()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [NOTEBOOK])
def test_the_notebook_runs_where_jupyter_runs_it(name, world, monkeypatch, capsys):
    """In its own folder, cell by cell."""
    (world / "docs").mkdir()
    monkeypatch.chdir(world / "docs")
    space = {"__name__": "__main__"}
    for cell in code_cells(ROOT / name):
        exec(compile(cell, name, "exec"), space)
    printed = capsys.readouterr().out
    assert "slide-left" in printed and "average mAP" in printed
    assert (world / "predictions" / "detections.json").is_file()


def test_the_notebook_has_ten_lines_and_nothing_that_somebody_ran():
    lines = [line for cell in code_cells(ROOT / NOTEBOOK) for line in cell.splitlines() if line.strip()]
    assert len(lines) == 10
    notebook = json.loads((ROOT / NOTEBOOK).read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)  # with an id in each cell
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_documented_script_itself_starts():
    """All other commands run within the tests' process."""
    script = Path(sys.executable).with_name("leantad")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Commands:" in done.stdout, done.stderr
    main = [sys.executable, "train/main.py", "--help"]
    assert subprocess.run(main, capture_output=True, cwd=ROOT).returncode == 0


def all_commands() -> list[Documented]:
    return [c for page in PAGES for block in blocks(page) if block.language == "sh" for c in commands(block)]


def test_the_tables_of_this_file_hold_nothing_that_the_manual_lost():
    texts = {command.text for command in all_commands()}
    assert not NOT_RUN.keys() - texts
    assert not PREPARED.keys() - {*NAMES, NOTEBOOK}
    for documented in SMALLER:
        assert any(documented in text for text in texts), documented
    for documented in INSTEAD:
        assert documented in texts
