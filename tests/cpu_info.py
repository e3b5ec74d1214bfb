"""Ask once a process what CPU this is: DeepSpeed asks for each compiled part and CPU Adam, 0.6 s a time."""

from __future__ import annotations

from functools import cache

import cpuinfo


def ask_once() -> None:
    """Let py-cpuinfo answer from memory from the second question on."""
    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
