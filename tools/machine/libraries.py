"""Checks of torch, its GPUs and DeepSpeed: each runs in a process of its own, for it may crash or hang."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.machine.checks import BROKEN, GIB, OK, WARNING, CheckResult, gpu_driver


def check_torch() -> Iterator[CheckResult]:
    """torch, its GPUs and whether they compute."""
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield CheckResult(OK, f"torch {torch.__version__} ({cuda}), {torch.get_num_threads()} threads")
    driver = gpu_driver()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield check_gpu(number, driver.get("driver_version", "unknown"))
    elif driver:
        todo = "install a torch with CUDA" if not torch.version.cuda else "update the driver"
        gpu = f"{driver.get('name', '')}, driver {driver.get('driver_version', '?')}"
        text = f"GPU: {gpu}, but torch does not see it: training runs on the CPU"
        yield CheckResult(WARNING, text, todo)
    else:
        yield CheckResult(OK, "GPU: none; training runs on the CPU, for small data")


def check_gpu(number: int, driver: str) -> CheckResult:
    """What one GPU is, and whether it computes. driver: its version."""
    import torch

    x = torch.ones(64, 64, device=f"cuda:{number}")
    if float((x @ x).sum()) != 64.0**3:
        text = f"GPU {number}: a product of matrices is wrong"
        return CheckResult(BROKEN, text, "check the driver, reboot")
    gpu = torch.cuda.get_device_properties(number)
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    size, compute = f"{gpu.total_memory / GIB:.1f} GiB", f"compute {gpu.major}.{gpu.minor}"
    return CheckResult(OK, f"GPU {number}: {gpu.name}, {size}, {compute}, {bf16}, driver {driver}")


def check_deepspeed() -> Iterator[CheckResult]:
    """DeepSpeed, and the extensions it compiles."""
    import torch

    from train import engine

    deepspeed = engine._deepspeed()  # imported there and nowhere else, with what it needs in reach
    yield CheckResult(OK, f"DeepSpeed {deepspeed.__version__}: imported")
    compiled = compiled_extensions()
    names = {"deepspeed_shm_comm": "communication on a CPU", "cpu_adam": "Adam for an offloaded optimizer"}
    missing = [f"{name} ({use})" for name, use in names.items() if name not in compiled]
    if missing:
        todo = (
            "built at first use, for a minute or two; now: "
            "python -c 'from train.engine import compile_ops; compile_ops()'"
        )
        yield CheckResult(WARNING, f"DeepSpeed has not compiled: {', '.join(missing)}", todo)
    else:
        engine.compile_ops()  # loads what is built
        yield CheckResult(OK, f"DeepSpeed's compiled extensions load: {', '.join(names)}")
    if torch.cuda.is_available():
        nvcc = shutil.which("nvcc") or os.environ.get("CUDA_HOME")
        todo = "" if nvcc else "only optimizer offload needs it: install the CUDA toolkit, or cpu_adam: false"
        yield CheckResult(OK if nvcc else WARNING, f"nvcc: {nvcc or 'not found'}", todo)


def compiled_extensions() -> set[str]:
    """Names of the C++ extensions that torch has built and cached for this Python."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "torch_extensions"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    found = root.glob("**/*.so")
    return {path.stem for path in found if python in str(path) or "TORCH_EXTENSIONS_DIR" in os.environ}
