"""plan's figures against real DeepSpeed steps, and the arithmetic of deepspeed_memory.py by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.benchmarks.trackers import LiveBytes
from tools.planning.deepspeed_memory import OPTIMIZER, DeepSpeedMemoryConfig, moments
from tools.planning.search import with_changes
from tools.planning.step import BUCKETS, FRAMES, GRADIENTS, WEIGHTS, WORKING, Reducer, StepPeak, fake_step
from train.optimizer import read_ds_config
from train.settings import settings_from

WORKER = Path(__file__).with_name("plan_worker.py")
CPU_OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def measured(folder: Path, processes: int, *modes: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Estimate and real peak in bytes by mode and moment, of a tiny network under DeepSpeed."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    result = folder / "peaks.json"
    command = [sys.executable, *launch, str(WORKER), "r2plus1d_tiny", str(result), *modes]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(result.read_text())
    return {(row["mode"], row["moment"]): (row["estimate"], row["real"]) for row in rows}


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "modes"),
    [
        (1, ("zero 1", "zero 3", "zero 2, bf16, offload")),
        pytest.param(2, ("zero 2", "zero 3"), marks=pytest.mark.ci),
    ],
)
def test_the_estimate_is_the_peak_of_a_real_engine(tmp_path, processes, modes):
    found = measured(tmp_path, processes, *modes)
    assert len(found) == 3 * len(modes)
    # gloo's threads let go of a tensor late now and then, on a busy machine: the least of some runs is needed
    for _ in range(3):
        if all(real <= 1.02 * estimate for estimate, real in found.values()):
            break
        again = measured(tmp_path, processes, *modes)
        found = {place: (estimate, min(real, again[place][1])) for place, (estimate, real) in found.items()}
    for place, (estimate, real) in found.items():
        # 10 % is promised; both count the same tensors, of which the smallest part here is some 7 %. Two
        # processes divide the optimizer's state at a number and gradients at a tensor, so one has more.
        assert estimate == pytest.approx(real, rel=0.02), place


@pytest.mark.slow
@pytest.mark.parametrize(("foreach", "buffers"), [(False, 2 + 1), (True, 3)])
def test_torchs_adam_takes_as_many_buffers_as_we_say(foreach, buffers):
    """On a CPU two for a tensor, and one of the tensor before; on a GPU (foreach) one for all the group."""
    weights = [torch.ones(1000, requires_grad=True) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights, foreach=foreach)
    optimizer.step()
    tracker = LiveBytes(part="buffers")
    for weight in weights:
        tracker.include([weight, weight.grad, *optimizer.state[weight].values()], "kept")
    before = tracker.now
    with tracker:
        optimizer.step()
    # besides, a number or two
    assert tracker.peak - before == pytest.approx(4000 * buffers, abs=100)


# ----------------------------------------------------------------------------------------------- by hand

GROUPS = (600, 400)
STEP = StepPeak(
    {WEIGHTS: 4000, GRADIENTS: 4000, WORKING: 9000}, {WEIGHTS: 4000, WORKING: 8000}, GROUPS, (100,) * 10
)
ALWAYS = {FRAMES: 50}


def parts_in(moment: str, zero: dict, processes: int = 1, **where) -> list[int]:
    """Weights, gradients, optimizer, buckets in bytes, for 1,000 parameters in float32."""
    config = {
        "zero_optimization": {"reduce_bucket_size": 10, "stage3_param_persistence_threshold": 0, **zero}
    }
    parts = moments(STEP, DeepSpeedMemoryConfig.from_ds_config(config, processes, **where), ALWAYS)[moment]
    assert parts[FRAMES] == 50
    return [parts[name] for name in (WEIGHTS, GRADIENTS, OPTIMIZER, BUCKETS)]


@pytest.mark.parametrize(
    ("zero", "processes", "parts"),
    [
        ({"stage": 0}, 1, [4000, 4000, 8000, 0]),
        ({"stage": 1}, 1, [4000, 4000, 12000, 40]),
        ({"stage": 2}, 1, [4000, 4000, 12000, 40]),
        ({"stage": 3}, 1, [4000, 8000, 12000, 40]),  # of one process: nothing to gather
        ({"stage": 3}, 4, [5000, 5000, 3000, 40]),
        ({"stage": 2, "overlap_comm": True}, 4, [4000, 4000, 3000, 80]),
        (
            {"stage": 3, "stage3_max_live_parameters": 500, "stage3_max_reuse_distance": 100},
            4,
            [3000, 5000, 3000, 40],
        ),
        ({"stage": 1, **CPU_OFFLOAD}, 1, [4000, 4000, 400, 40]),
        ({"stage": 3, **CPU_OFFLOAD, "offload_param": {"device": "cpu"}}, 2, [4000, 4000, 0, 40]),
    ],
)
def test_what_deepspeed_holds_in_the_backward_pass(zero, processes, parts):
    assert parts_in("the backward pass", zero, processes) == parts


@pytest.mark.parametrize(
    ("zero", "processes", "more"),
    [
        ({"stage": 0}, 1, 4000),
        ({"stage": 2}, 4, 1000),
        ({"stage": 3}, 2, 2000),
        ({"stage": 2, **CPU_OFFLOAD}, 1, 0),
    ],
)
def test_averaged_weights_are_a_float32_copy_of_what_the_optimizer_has_on_the_device(zero, processes, more):
    plain = parts_in("the backward pass", zero, processes)
    averaged = parts_in("the backward pass", zero, processes, averages_weights=True)
    assert [b - a for a, b in zip(plain, averaged, strict=True)] == [0, 0, more, 0]


@pytest.mark.parametrize(
    ("zero", "where", "parts"),
    [
        # the larger group comes first: its gradients flat and Adam's buffers for them, beside all gradients
        ({"stage": 1}, {"device": "cpu"}, [4000, 4000 + 2400, 12000 + 2 * 2400, 0]),
        ({"stage": 1}, {}, [4000, 4000 + 2400, 12000 + 2400, 0]),
        ({"stage": 1, "contiguous_gradients": False}, {}, [4000, 1600 + 2400, 12000 + 2400, 0]),
        ({"stage": 3}, {"device": "cpu"}, [4000, 4000 + 2400, 12000 + 2 * 2400, 40]),
        ({"stage": 0}, {"device": "cpu"}, [4000, 4000, 8000 + 3 * 400, 0]),
        ({"stage": 0}, {}, [4000, 4000, 8000 + 2400, 0]),
        # what is offloaded is still there on a CPU, with float32 gradients and two ways out and one back
        ({"stage": 2, **CPU_OFFLOAD}, {}, [4000, 0, 400, 0]),
        ({"stage": 2, **CPU_OFFLOAD}, {"device": "cpu"}, [4000, 4000, 12000 + 2 * 400 + 4000, 0]),
        (
            {"stage": 2, **CPU_OFFLOAD},
            {"device": "cpu", "cpp_adam": False},
            [4000, 4000, 12000 + 2 * 400 + 4000 + 2 * 2400, 0],
        ),
    ],
)
def test_what_the_optimizer_step_takes(zero, where, parts):
    assert parts_in("the optimizer step", zero, **where) == parts


@pytest.mark.parametrize(
    ("zero", "where", "parts"),
    [
        # a bucket of 10 numbers takes 40 of the 4000 bytes away, and all have a place to stay
        ({"stage": 1}, {}, [4000, 3960 + 4000, 12000, 40]),
        ({"stage": 0}, {}, [4000, 4000, 8000, 4000]),
        ({"stage": 3}, {}, [4000, 4000, 12000, 40 + 40]),
        ({"stage": 3}, {"device": "cpu"}, [4000, 4000, 12000, 40 + 80]),
        ({"stage": 1, **CPU_OFFLOAD}, {}, [4000, 3960 + 800, 400, 40]),
    ],
)
def test_what_the_reduction_takes(zero, where, parts):
    assert parts_in("the reduction of gradients", zero, **where) == parts


def test_weights_come_in_whole_and_small_ones_stay():
    """ZeRO 3 on 4 GPUs: a quarter, all of them gathered, and in the forward pass the tensor they came in."""
    assert parts_in("the forward pass", {"stage": 3}, 4)[0] == 1000 + 4000 + 4000
    assert parts_in("the forward pass", {"stage": 3, "stage3_prefetch_bucket_size": 250}, 4)[0] == 6000
    small = {"stage": 3, "stage3_param_persistence_threshold": 100}
    assert parts_in("the forward pass", small, 4)[0] == 1000 + 4000
    assert parts_in("the reduction of gradients", small, 4)[0] == 1000 + 4000


# ------------------------------------------------------------------------------------ the fake step's share


def small_settings(**optimizer):
    return settings_from(
        {
            "data": {"shards": "none", "num_clips": 3, "clip_frames": 8, "resize": 32, "crop": 32},
            "encoder": {"backbone": "r2plus1d_tiny", "clips_per_forward": 1, "clip_ratio": 0.6},
            "detector": {
                "num_steps": 8,
                "neck_dim": 16,
                "fc_dim": 32,
                "head_dim": 16,
                "regression_tiou": (0.7,),
            },
            "optimizer": {"batch_size": 1, **optimizer},
        }
    )


@pytest.mark.ci
@pytest.mark.slow
def test_under_zero_3_the_last_chunk_moves_its_gradients_into_the_bucket():
    settings = with_changes(small_settings(), {"encoder.clip_ratio": 0.3})  # one chunk, which is the last
    whole = fake_step(settings, 5)
    moved = fake_step(settings, 5, reducer=Reducer(10**9, partitioned=True))
    assert moved.parts.get(GRADIENTS, 0) < whole.parts[GRADIENTS] / 10
    assert BUCKETS not in moved.parts, "which is the engine's, and was there before"
    kept = Reducer(1000, kept_share=0.5)
    assert fake_step(small_settings(), 5, reducer=kept).trainable == pytest.approx(
        2 * kept.kept[0].numel(), abs=1
    )


@pytest.mark.slow
def test_earlier_micro_steps_leave_their_gradients():
    one, several = (fake_step(small_settings(accumulation_steps=n), 5) for n in (1, 2))
    assert several.accumulates and not one.accumulates
    assert several.forward[GRADIENTS] == 4 * several.trainable and GRADIENTS not in one.forward
    assert several.parts[GRADIENTS] > one.parts[GRADIENTS] + 2 * several.trainable


@pytest.mark.parametrize(("device", "bf16", "offloads"), [("cuda", True, True), ("cpu", False, False)])
def test_what_is_auto_is_planned_as_the_run_decides_it(device, bf16, offloads):
    config = DeepSpeedMemoryConfig.from_ds_config(read_ds_config(), 1, device=device)
    assert (config.bf16, config.offloads_optimizer, config.offloads_weights) == (bf16, offloads, False)
