"""Peaks of real DeepSpeed steps beside what plan says; in its own processes, for DeepSpeed keeps state.

    python tests/plan_worker.py r2plus1d_18 "zero 1" "zero 3"                      one process, two of MODES
    python -m torch.distributed.run --nproc_per_node 2 tests/plan_worker.py r2plus1d_18 "zero 3"

Prints estimate and real peak in MiB for each mode and moment; into a file NAME.json, if it is named, go
[{"mode": ..., "moment": ..., "estimate": bytes, "real": bytes}], which
test_tools_planning_deepspeed_memory.py reads.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.network import Network
from tools.benchmarks.trackers import LiveBytes
from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig, moments
from tools.planning.step import fake_step, forward
from train.distributed import rank, shut_down, world_size
from train.engine import build_engine, start_process_group
from train.optimizer import read_ds_config
from train.settings import Settings, settings_from

MIB = 2**20
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
MODES: dict[str, tuple[dict, bool, dict]] = {  # zero_optimization, bf16, optimizer settings
    "zero 0": ({"stage": 0}, False, {}),
    "zero 1": ({"stage": 1}, False, {}),
    "zero 2": ({"stage": 2}, False, {}),
    "zero 3": ({"stage": 3}, False, {}),
    "zero 1, bf16": ({"stage": 1}, True, {}),
    "zero 2, bf16": ({"stage": 2}, True, {}),
    "zero 3, bf16": ({"stage": 3}, True, {}),
    "zero 1, offload": ({"stage": 1, **OFFLOAD}, False, {}),
    "zero 2, offload": ({"stage": 2, **OFFLOAD}, False, {}),
    "zero 3, offload": ({"stage": 3, **OFFLOAD}, False, {}),
    "zero 2, bf16, offload": ({"stage": 2, **OFFLOAD}, True, {}),
    "zero 3, bf16, offload": ({"stage": 3, **OFFLOAD}, True, {}),
    "zero 2, torch's Adam offloaded": ({"stage": 2, **OFFLOAD}, False, {"cpu_adam": False}),
    "zero 1, small bucket": ({"stage": 1, "reduce_bucket_size": 60_000}, False, {}),
    "zero 2, small bucket": ({"stage": 2, "reduce_bucket_size": 60_000}, False, {}),
    "zero 3, small bucket": ({"stage": 3, "reduce_bucket_size": 60_000}, False, {}),
    "zero 1, two buckets": ({"stage": 1, "overlap_comm": True}, False, {}),
    "zero 2, no buckets": ({"stage": 2, "contiguous_gradients": False}, False, {}),
    "zero 3, few weights at once": (
        {"stage": 3, "stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 1000},
        False,
        {},
    ),
    "zero 0, 2 micro steps": ({"stage": 0}, False, {"accumulation_steps": 2}),
    "zero 1, 2 micro steps": ({"stage": 1}, False, {"accumulation_steps": 2}),
    "zero 2, 2 micro steps": ({"stage": 2}, False, {"accumulation_steps": 2}),
    "zero 3, 2 micro steps": ({"stage": 3}, False, {"accumulation_steps": 2}),
}
NUM_CLASSES = 5


def settings_of(backbone: str, optimizer: dict) -> Settings:
    """Small clips, so that what the engine holds is most of the whole; two chunks with a gradient."""
    tiny = backbone == "r2plus1d_tiny"
    frames, size = (4, 16) if tiny else (8, 32)
    return settings_from(
        {
            "data": {"shards": "none", "num_clips": 3, "clip_frames": frames, "resize": size, "crop": size},
            "encoder": {"backbone": backbone, "clips_per_forward": 1, "clip_ratio": 0.6},
            "detector": {
                "num_steps": 8,
                "neck_dim": 16 if tiny else 64,
                "fc_dim": 32 if tiny else 256,
                "head_dim": 16,
                "roi_bins": 8,
                "regression_tiou": (0.7,),
            },
            "optimizer": {"batch_size": 1, **optimizer},
        }
    )


def ds_config(zero: dict, bf16: bool, bucket: int) -> dict:
    """The repository's, in this mode; bucket: elements, unless the mode sets it."""
    config = copy.deepcopy(read_ds_config())
    config["zero_optimization"] |= {"reduce_bucket_size": bucket, **zero}
    config["bf16"]["enabled"] = bf16
    return config


def everything(without: set[int]) -> list[torch.Tensor]:
    """All tensors alive, whoever holds them, but those of storages known before."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.device.type == "cpu"]
    found += [o.grad for o in found if o.is_leaf and o.grad is not None]
    return [tensor for tensor in found if tensor.untyped_storage()._cdata not in without]


def real_peaks(settings: Settings, config: dict) -> dict[str, int]:
    """Bytes at most in forward and backward pass and in the update of a step, after those that warm up."""
    before = {tensor.untyped_storage()._cdata for tensor in everything(set())}
    torch.manual_seed(0)
    network = Network(settings.encoder, settings.detector, num_classes=NUM_CLASSES)
    engine = build_engine(network, settings.optimizer, ds_config=config, total_steps=10)
    engine.train()
    data = settings.data
    shape = (1, data.num_clips, 3, data.clip_frames, data.crop, data.crop)
    clips = torch.zeros(shape, dtype=torch.uint8)
    tracker, peaks = LiveBytes(part="new"), {}

    def micro_step() -> None:
        loss = forward(settings, engine, clips)
        peaks["the forward pass"] = tracker.peak
        tracker.reset_peak()
        engine.backward(loss)
        peaks["the backward pass"] = tracker.peak
        tracker.reset_peak()
        engine.step()
        peaks["the optimizer step"] = tracker.peak

    warm_up = 1 if world_size() == 1 else 3  # ZeRO 3 needs two to learn the order in which it gathers
    for _ in range((warm_up + 1) * settings.optimizer.accumulation_steps - 1):
        micro_step()
    tracker.include(everything(before), "old")
    tracker.reset_peak()
    with tracker:
        micro_step()
    engine.destroy()
    return peaks


def estimates(settings: Settings, config: dict) -> dict[str, int]:
    """Bytes that plan says, at the same moments."""
    deepspeed = DeepSpeedMemoryConfig.from_ds_config(
        config, world_size(), device="cpu", cpp_adam=settings.optimizer.cpu_adam
    )
    peak = fake_step(settings, NUM_CLASSES, dtype=deepspeed.dtype, reducer=deepspeed.reducer)
    found = {moment: parts.total() for moment, parts in moments(peak, deepspeed, {}).items()}
    reduced = found.pop("the reduction of gradients")  # which belongs to engine.backward
    return found | {"the backward pass": max(reduced, found["the backward pass"])}


def main(backbone: str, result_file: Path | None, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    start_process_group("cpu")
    bucket = 200_000 if backbone == "r2plus1d_tiny" else 50_000_000  # more than there is
    runs, rows = [], []
    for mode in chosen or MODES:
        zero, bf16, optimizer = MODES[mode]
        settings, config = settings_of(backbone, optimizer), ds_config(zero, bf16, bucket)
        # all before the first engine: DeepSpeed replaces functions of torch's by some that know no fakes
        runs.append((mode, settings, config, estimates(settings, config)))
    for mode, settings, config, planned in runs:
        for moment, real in real_peaks(settings, config).items():
            rows.append({"mode": mode, "moment": moment, "estimate": planned[moment], "real": real})
            if rank() == 0:
                sizes = f"{planned[moment] / MIB:>9.1f}{real / MIB:>9.1f}{planned[moment] / real - 1:>+8.1%}"
                print(f"{mode:<32}{moment:<20}{sizes}", flush=True)
    if result_file and rank() == 0:
        result_file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    given = sys.argv[2:]
    files = [Path(name) for name in given if name.endswith(".json")]
    main(sys.argv[1], files[0] if files else None, [name for name in given if not name.endswith(".json")])
    shut_down(0)
