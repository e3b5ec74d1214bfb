"""A process of a run that hears nothing of another says so and ends, however long a collective would wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event

import pytest
import torch.distributed as dist

from train.distributed import _free_port, lost_connection
from train.heartbeat import heartbeat

LOST_AFTER = 1.0  # seconds


def member(rank: int, port: int, leave: Event, pipe: Connection) -> None:
    """A process of a group: says that it met the others, then that it left them, or whom it lost."""

    def lost(reason: str) -> None:
        pipe.send(reason)
        os._exit(1)

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="3", RANK=str(rank))
    dist.init_process_group("gloo")
    with heartbeat(LOST_AFTER, lost):
        pipe.send("met")
        leave.wait()
        time.sleep(rank / 4)  # one after the other
    dist.barrier()  # as a run's end: nobody goes, and takes the store along, before all have left
    pipe.send("left")
    os._exit(0)


@dataclass
class Member:
    process: ForkServerProcess
    pipe: Connection
    leave: Event

    def says(self) -> str:
        """The next that it says; "nothing" after two minutes."""
        return self.pipe.recv() if self.pipe.poll(120) else "nothing"


@pytest.fixture
def members():
    """Three processes of one group, which end with the test."""
    context, port, started = multiprocessing.get_context("forkserver"), _free_port(), []
    context.set_forkserver_preload([__name__])  # a fork of this process would have threads of others' groups
    leave = context.Event()
    for rank in range(3):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=member, args=(rank, port, leave, sender))
        process.start()
        sender.close()
        started.append(Member(process, receiver, leave))
    assert [one.says() for one in started] == ["met"] * 3
    yield started
    for one in started:
        one.process.kill()
        one.process.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (1, signal.SIGSTOP),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.ci),
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.ci),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.ci),
    ],
)
def test_all_others_end_when_one_is_lost(members, victim, number):
    os.kill(members[victim].process.pid, number)
    for other in members[:victim] + members[victim + 1 :]:
        assert other.says() == f"rank {victim} gives no sign of life (run.lost_after_seconds is 1)"
        other.process.join(10)
        assert other.process.exitcode == 1


@pytest.mark.ci
@pytest.mark.slow
def test_nobody_is_lost_while_all_live_and_leave_one_after_the_other(members):
    time.sleep(3 * LOST_AFTER)
    assert all(one.process.is_alive() for one in members)
    members[0].leave.set()
    assert [one.says() for one in members] == ["left"] * 3


@pytest.mark.ci
@pytest.mark.slow
def test_nobody_is_lost_where_all_stood_still_together(members):
    """As after Ctrl-Z and fg, or in a job that its cluster suspended."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for one in members:
            os.kill(one.process.pid, number)
        time.sleep(2 * LOST_AFTER)
    assert not any(one.pipe.poll() for one in members)
    members[0].leave.set()
    assert [one.says() for one in members] == ["left"] * 3


def test_a_single_process_needs_no_heartbeat():
    with heartbeat(1.0, lambda reason: pytest.fail(reason)):
        pass


GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
    "[127.0.0.1]:41163. This is typically caused by a remote worker crashing."
)


def test_errors_of_a_lost_connection_are_told_from_others():
    assert lost_connection(RuntimeError(GLOO)) == "Connection closed by peer [127.0.0.1]:41163"
    assert lost_connection(RuntimeError("CUDA error: out of memory")) is None
