"""run.deterministic: what it switches on, that it switches off again, and that it reaches the optimizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from train.numerics import set_numerics
from train.run import Run
from train.settings import RunSettings, settings_from


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def test_a_deterministic_run_is_strict_and_the_next_one_is_not(monkeypatch):
    monkeypatch.setattr("os.environ", environment := {})
    set_numerics(RunSettings(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_numerics(RunSettings())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("deterministic", "cpu_adam"), [(False, True), (True, False)])
def test_the_optimizer_of_a_deterministic_run_resumes_exactly(deterministic, cpu_adam):
    settings = settings_from({"data": {"shards": "x"}, "run": {"deterministic": deterministic}})
    assert Run._optimizer_settings(SimpleNamespace(settings=settings)).cpu_adam is cpu_adam
