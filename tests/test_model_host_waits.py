"""Nothing on the way of a training step makes the host wait for the device, but the reading of its losses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PATH = [
    *("model/encode.py", "model/network.py", "model/reversible.py", "model/rewired_stage.py"),
    *("model/clip_chunks.py", "model/slices.py", "model/gradient_sums.py", "model/partitioned.py"),
    *("model/grid.py", "model/recompute.py", "model/recurrence.py", "model/deterministic.py"),
    "model/sampling.py",
    *("model/encode_backward.py", "model/kept_graphs.py", "model/late_encode.py", "model/late_choice.py"),
    *("model/feature_buffer.py", "model/diversity.py", "model/schedule.py"),
    "model/segments.py",
    *sorted(str(path.relative_to(ROOT)) for room in ("detector", "detector/etad", "backbones")
            for path in (ROOT / "model" / room).glob("*.py")
            if path.name != "described.py"),  # it reads a library's description, when a network is built
    "train/loop.py",
]  # fmt: skip
# Calls that read a tensor's values; `.to(device)` from the host waits, too, unless it is non_blocking.
WAITS = re.compile(
    r"\.(item|cpu|tolist|numpy|nonzero|unique|masked_select)\(|(?<![\w.])(float|int|bool)\((?!\")"
    r"|(?<!\bactions)\.to\([^()]*device\)"  # PaddedActions.to does not wait
)
# Function -> why its calls do not wait: what they read is on the CPU, or no tensor.
ON_THE_HOST = {
    "select_clips": "indices of clips are on the CPU",
    "_second_calls": "the chosen clips are on the CPU",
    "systematic_draw": "probabilities are on the CPU",
    "late_choice": "the generator is on the CPU",
    "scale_balanced_proposals": "candidates and generator are on the CPU",
    "_equal_shares": "the generator is on the CPU",
    "_chunk_clips": "the kept clips are drawn on the CPU",
    "_checked_segments": "ground truth is on the CPU",
    "_checked_labels": "ground truth is on the CPU",
    "ground_truth_in_steps": "ground truth is on the CPU",
    "log_step": "runs after the step",
    "valid_steps": "the shares of videos are on the CPU",
    "hold_last": "the shares of videos are on the CPU",
}
THE_ONLY_WAIT = "read_losses"
# Not by default: clips that features or gradients decide are chosen on the CPU, which waits for these.
WAITS_IF_ASKED_TO = {"choose": "encoder.clip_sampling farthest, dpp, top_gradient or importance"}


def waiting_calls(path: Path) -> dict[str, list[str]]:
    """By function, the lines that may read a tensor's values."""
    text = path.read_text()
    found: dict[str, list[str]] = {}
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef):
            first = function.body[1:] if ast.get_docstring(function) else function.body
            source = "\n".join(ast.get_source_segment(text, node) or "" for node in first)
            lines = [line.strip() for line in source.splitlines() if WAITS.search(line.split("  #")[0])]
            if lines:
                found[function.name] = lines
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", PATH)
def test_no_function_of_the_step_reads_a_tensor(path):
    found = waiting_calls(ROOT / path)
    allowed = {*ON_THE_HOST, *WAITS_IF_ASKED_TO, THE_ONLY_WAIT}
    unknown = {name: lines for name, lines in found.items() if name not in allowed}
    assert not unknown, "each of these would wait for the GPU"


@pytest.mark.slow
def test_every_exception_is_needed():
    names = {name for path in PATH for name in waiting_calls(ROOT / path)}
    assert {*ON_THE_HOST, *WAITS_IF_ASKED_TO, THE_ONLY_WAIT} <= names


def test_the_losses_are_read_at_once():
    lines = waiting_calls(ROOT / "train" / "loop.py")[THE_ONLY_WAIT]
    assert sum(".tolist()" in line for line in lines) == 1
    others = [line for line in lines if ".tolist()" not in line]
    assert all("interrupted" in line or "values[-1]" in line for line in others), "numbers already"


@pytest.mark.parametrize(
    "line",
    ["x.item()", "y = x.cpu()", "if bool(x.any()):", "a.to(b.device)", "x[mask.nonzero()]", "float(loss)"],
)
def test_what_would_wait_is_recognised(tmp_path, line):
    (tmp_path / "new.py").write_text(f"def step(x):\n    {line}{' pass' if line.endswith(':') else ''}\n")
    assert waiting_calls(tmp_path / "new.py")["step"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "backbone", ["r2plus1d_tiny", "slowfast_50", "tsm_r18", "video_swin_t", "videomae_s"]
)
def test_forward_and_backward_on_a_gpu_never_wait(backbone):
    """PyTorch's sync debug mode makes each wait an error; a first step fills the caches of libraries."""
    from test_model_network import GROUND_TRUTH, SMALL

    from model.network import Network
    from model.settings import EncoderSettings
    from train.loop import read_losses

    encoder = EncoderSettings(
        backbone=backbone, clip_ratio=0.5, clips_per_forward=1, steps_per_clip=2, slice_mib=1
    )
    network = Network(encoder, SMALL, num_classes=3).cuda()
    clips = torch.zeros(2, 4, 3, 16, 32, 32, dtype=torch.uint8, device="cuda")
    for mode in ("default", "error"):
        generator = torch.Generator().manual_seed(0)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, parts = network(clips, *GROUND_TRUTH, generator=generator)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with pytest.warns(UserWarning, match="synchronizing") as waits:
        torch.cuda.set_sync_debug_mode("warn")
        read_losses([{"loss": loss.detach(), **parts}], interrupted=False)
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchronizing" in str(wait.message)]) == 1
