"""The processes of a run: rank and world size, collectives, launch variables, and a common end."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

import torch.distributed as dist
from torch import Tensor

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def any_rank(flags: Tensor) -> Tensor:
    """For each flag (0 or 1, on the device of the run) whether it is set on any rank; does not wait for it.

    All ranks call it and get the same answer.
    """
    if world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def complete_launch_variables() -> None:
    """Set the launcher's variables for a single process; without them DeepSpeed looks for MPI and dies."""
    missing = [name for name in LAUNCH_VARIABLES if name not in os.environ]
    if not missing:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"launch: WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} are not set; start "
            "with `deepspeed train/main.py ...` or `torchrun --nproc_per_node N train/main.py ...`"
        )
    single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(single | {"MASTER_PORT": str(_free_port())})


def shut_down(code: int) -> None:
    """End this process together with the others; the last thing it does, and at once if it is not alone.

    A process that just exits can take the others down. Destroying the group is not enough: DeepSpeed keeps
    groups of its own alive, whose gloo threads outlive it and now and then abort the interpreter's exit
    ("terminate called without an active exception") after all the work is done. So several processes exit
    without the interpreter's clean-up; a single one exits normally.
    """
    several = world_size() > 1
    if dist.is_initialized():
        with suppress(RuntimeError):  # all is done: one that was killed by now takes nothing away
            dist.barrier()
            dist.destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
