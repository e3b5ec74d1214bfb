"""What is set before a GPU is touched, so that PyTorch and NCCL take no memory without a use for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.gpu_memory import ALLOCATOR_VARIABLES, spare_memory

ROOT = Path(__file__).resolve().parents[1]
CHANNELS = "NCCL_MAX_P2P_NCHANNELS"
NAMES = (*ALLOCATOR_VARIABLES, CHANNELS, "WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    """None of the variables set; what a test sets goes with it."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back whatever happens
        monkeypatch.delenv(name)
    return monkeypatch


def set_for(device: str) -> dict[str, str]:
    spare_memory(torch.device(device))
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_process_alone_on_a_gpu_asks_for_growing_segments_and_one_channel(environment):
    assert set_for("cuda") == {"PYTORCH_ALLOC_CONF": "expandable_segments:True", CHANNELS: "1"}


def test_one_of_several_processes_leaves_nccl_its_channels(environment):
    environment.setenv("WORLD_SIZE", "2")
    assert CHANNELS not in set_for("cuda:1")


def test_on_a_cpu_nothing_is_set(environment):
    assert set_for("cpu") == {}


@pytest.mark.parametrize("name", ALLOCATOR_VARIABLES)
def test_what_the_user_has_set_stays(environment, name):
    environment.setenv(name, "max_split_size_mb:64")
    environment.setenv(CHANNELS, "4")
    assert set_for("cuda") == {name: "max_split_size_mb:64", CHANNELS: "4"}


@pytest.mark.slow
def test_pytorch_reads_it_afterwards_though_all_is_imported():
    """For it reads the variables once: a library that made it read them earlier would make them useless."""
    code = """
import torch, train.engine, train.run, train.inference
from train.gpu_memory import spare_memory
spare_memory(torch.device("cuda"))
print(torch._C._accelerator_getAllocatorSettings())
"""
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited, capture_output=True, text=True
    )
    assert done.stdout.split()[-1:] == ["expandable_segments:True"], done.stderr
