"""Precision, TF32 and determinism: what the settings switch on, off again, and where they reach."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from train.numerics import cast_parameters, has_bf16, set_numerics, uses_tf32
from train.run import Run
from train.settings import RunSettings, settings_from

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_switched_for_products_and_convolutions_of_a_gpu(tf32):
    set_numerics(RunSettings(tf32=tf32), GPU)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    assert uses_tf32(RunSettings(tf32=tf32), GPU) is tf32


def test_on_a_cpu_nothing_is_switched():
    """`allow_tf32` sets the precision of products on CPUs, too."""
    before = torch.get_float32_matmul_precision()
    set_numerics(RunSettings(), CPU)
    assert RunSettings().tf32 and torch.get_float32_matmul_precision() == before
    assert not uses_tf32(RunSettings(), CPU) and not has_bf16(CPU)


def test_emulated_bf16_does_not_count(monkeypatch):
    """PyTorch computes bf16 on older GPUs by way of float32: slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16(GPU)


def test_parameters_are_cast_and_statistics_are_not():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    cast_parameters(network, torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert network[1].running_mean.dtype == torch.float32


def test_a_deterministic_run_is_strict_and_the_next_one_is_not(monkeypatch):
    monkeypatch.setattr("os.environ", environment := {})
    set_numerics(RunSettings(deterministic=True), CPU)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_numerics(RunSettings(), CPU)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("deterministic", "cpu_adam"), [(False, True), (True, False)])
def test_the_optimizer_of_a_deterministic_run_resumes_exactly(deterministic, cpu_adam):
    settings = settings_from({"data": {"shards": "x"}, "run": {"deterministic": deterministic}})
    assert Run._optimizer_settings(SimpleNamespace(settings=settings)).cpu_adam is cpu_adam
