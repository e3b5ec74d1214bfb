"""What every test may use: the folder of real data, a GPU gate, a quiet and small number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cpu_info import ask_once

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported anywhere
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: more threads than cores crawl
ask_once()


# Files whose tests take longest; begun first, so that no worker is left alone with one of them at the end.
LONGEST = ("real_video", "train_engine", "tools_planning_deepspeed_memory", "train_loop", "docs")
LONGEST += ("tools_make_shards", "model_rewire_families", "tools_plan")


def started_at(item: pytest.Item) -> int:
    """When the file of a test is begun: its index among LONGEST, or after all of them."""
    name = item.path.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items):
    """GPU tests skip without a GPU; LEANTAD_GPU=1 (the GPU lane) turns that skip into a failure."""
    items.sort(key=started_at)
    for item in items:
        if item.get_closest_marker("gpu") and not os.environ.get("LEANTAD_GPU"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device; LEANTAD_GPU=1 makes this a failure"))


@pytest.fixture(scope="session")
def shared_real() -> Path:
    """The folder of real annotations, results and videos beside the checkout (not part of the project)."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        message = f"{folder} is not here: real annotations, results and videos"
        if os.environ.get("CI") and not os.environ.get("LEANTAD_WITHOUT_REAL_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
