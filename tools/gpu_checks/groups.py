"""Which rows the table has, and which of them share a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tools.gpu_checks import decoding, engine, memory, numerics, runs, speed, suite
from tools.gpu_checks.rows import Check
from tools.machine.decoders import CLIPS


@dataclass(frozen=True)
class Group:
    """Rows of one process. limit: seconds for all; alone: measures time or memory of the whole device."""

    checks: Mapping[str, Check]
    limit: float
    alone: bool = False


def memory_group(name: str) -> Group:
    """A group for each shape: it needs a device that nothing was done on."""
    return Group({f"plan against NVML: {name}": partial(memory.plan_holds, name=name)}, 120, alone=True)


GROUPS: dict[str, Group] = {
    "doctor": Group({"doctor": suite.doctor}, 180),
    "decoding": Group(
        {f"decode {codec}": partial(decoding.decode_codec, codec=codec) for codec in CLIPS}, 180, alone=True
    ),
    "numerics": Group(
        {
            "step, float32": numerics.float32_step,
            "step, TF32": numerics.tf32_step,
            "step, bfloat16": numerics.bfloat16_step,
            "exact states": numerics.exact_states,
        },
        120,
    ),
    "engine": Group({"ZeRO stages, offload": engine.zero_stages}, 180),
    "resume": Group({"killed and resumed": runs.killed_and_resumed}, 180),
    "demo": Group({"demo": runs.demo_road}, 180),
    "tests": Group({"GPU tests": suite.gpu_tests}, 240),
    **{f"memory-{number}": memory_group(name) for number, name in enumerate(memory.SHAPES, 1)},
    "speed": Group(
        {"step time and peak": speed.step_modes, "achieved FLOP/s": speed.achieved_rate}, 120, alone=True
    ),
    "soak": Group({"soak": runs.soak}, 180),
}
ROW_NAMES = [name for group in GROUPS.values() for name in group.checks]
