"""The processes of a run: rank and world size, collectives, launch variables, shared work, a common end."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # as DeepSpeed's: how long a rank waits for the others
LONGEST_SHARE = timedelta(days=7)  # how long a process waits for one that has more to do
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


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Give each tensor the mean that it has over all ranks; does not wait for it. All ranks call it.

    A process alone does not ask for the tensors.
    """
    if world_size() == 1 or not (tensors := list(tensors)):
        return
    means = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(means)
    means /= world_size()
    for tensor, mean in zip(tensors, means.split_with_sizes([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather_json(value: Any) -> list[Any]:
    """The values of all ranks, by rank, on rank 0; on the others an empty list. Values that JSON has.

    All ranks call it. Sent as text, so that nothing is unpickled; numbers come as they were.
    """
    if world_size() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(text)]))
    longest = max(int(size) for size in sizes)
    padded = torch.cat([text, text.new_zeros(longest - len(text))])
    texts = [torch.empty_like(padded) for _ in sizes] if rank() == 0 else None
    dist.gather(padded, texts)
    pairs = zip(texts or (), sizes, strict=rank() == 0)
    return [json.loads(one[: int(size)].numpy().tobytes()) for one, size in pairs]


def device_of_rank(device: torch.device) -> torch.device:
    """`cuda:LOCAL_RANK` for "cuda" under a launcher, then the current device; else the device itself."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def lost_connection(error: Exception) -> str | None:
    """What an error says of a connection to another process that is lost; None if it is of another kind."""
    if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
        return None
    text = re.sub(r"^\[[^]]*\] ", "", " ".join(str(error).split()))  # the line of gloo's source
    return text.split(". ")[0][:200]


@contextmanager
def shared_work() -> Iterator[bool]:
    """Inside, the processes of a launcher share work, by `rank` and `world_size`, and meet in `gather_json`.

    For commands that train nothing: CPU tensors alone are sent. Yields whether this process is the one that
    writes and prints; the others have nothing to do after it. Without a launcher it is alone, and does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield rank() == 0
        return
    complete_launch_variables()
    try:
        dist.init_process_group("gloo", timeout=LONGEST_SHARE)
        yield rank() == 0
        dist.barrier()
        dist.destroy_process_group()
    except RuntimeError as error:
        if reason := lost_connection(error):
            raise ValueError(
                f"rank {rank()}: another process has ended ({reason}); its own output says why"
            ) from None
        raise


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


def group_options(device: torch.device) -> dict[str, Any]:
    """What init_process_group gets, under a launcher or alone; its variables are set.

    NCCL for a GPU's tensors, with gloo beside it for those on the CPU. Several ranks are bound to their GPUs,
    else NCCL guesses which is whose; one alone is not, as its groups would then be split from a communicator
    of one rank, which fails on some machines (DeepSpeed's issue 8248). Alone, a port would be of no use on a
    CPU; NCCL gets a store as torchrun's, on a port that the system chooses.
    """
    on_gpu, alone = device.type == "cuda", os.environ["WORLD_SIZE"] == "1"
    options: dict[str, Any] = {"backend": "cpu:gloo,cuda:nccl" if on_gpu else "gloo", "timeout": TIMEOUT}
    if alone:
        store = (
            dist.TCPStore("127.0.0.1", 0, 1, is_master=True) if on_gpu else dist.HashStore()  # type: ignore[attr-defined]
        )
        options |= {"store": store, "rank": 0, "world_size": 1}
    elif on_gpu:
        options["device_id"] = device
    return options


def destroy_process_group() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shut_down(code: int) -> None:
    """End this process together with the others; the last thing it does, and at once if it is not alone.

    A process that just exits can take the others down. Destroying the group is not enough: DeepSpeed keeps
    groups of its own alive, whose gloo threads outlive it and now and then abort the interpreter's exit
    ("terminate called without an active exception") after all the work is done. So several processes exit
    without the interpreter's clean-up; a single one exits normally.
    """
    several = world_size() > 1
    with suppress(RuntimeError):  # all is done: one that was killed by now takes nothing away
        barrier()
        destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
