"""Checks of the machine that need no large library: Python, disk, versions, compiler, driver.

Each check yields results, and may raise whatever it likes: run.py runs them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from pipeline.text import counted
from train.extensions import cxx_compiler

OK, WARNING, BROKEN = "OK", "WARNING", "BROKEN"
ROOT = Path(__file__).resolve().parents[2]
RUNTIME = (
    *("torch", "nvidia-dali", "webdataset", "deepspeed", "numpy", "click", "h5py", "pydantic", "PyYAML"),
    *("safetensors", "av", "tqdm"),
)
GIB = 2**30


@dataclass(frozen=True)
class CheckResult:
    """One line of what a check found. state: OK, WARNING (training works) or BROKEN; todo: the remedy."""

    state: str
    text: str
    todo: str = ""


def check_python() -> Iterator[CheckResult]:
    """The interpreter and the machine."""
    fits = (3, 10) <= sys.version_info[:2] < (3, 14)
    todo = "" if fits else "make the virtual environment anew with Python 3.10 to 3.13"
    yield CheckResult(
        OK if fits else BROKEN, f"Python {platform.python_version()} on {platform.platform()}", todo
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = "decoding may hold up training; give the job more cores" if cores < 4 else ""
    yield CheckResult(WARNING if todo else OK, f"{counted(cores, 'CPU core')} for this process", todo)


def check_disk() -> Iterator[CheckResult]:
    """Room in the working folder and in shared memory."""
    free = shutil.disk_usage(".").free / GIB
    if not os.access(".", os.W_OK):
        yield CheckResult(WARNING, f"working folder {Path.cwd()}: not writable", "give --out another folder")
    todo = "" if free >= 10 else "checkpoints and shards need room; work in a folder with more"
    yield CheckResult(WARNING if todo else OK, f"working folder {Path.cwd()}: {free:.1f} GiB free", todo)
    shared = Path("/dev/shm")
    if not shared.is_dir():
        todo = "several processes on one machine need shared memory"
        yield CheckResult(WARNING, "/dev/shm: not there", todo)
        return
    free = shutil.disk_usage(shared).free / GIB
    todo = "" if free >= 1 else "several processes exchange data in it: docker run --shm-size=8g"
    yield CheckResult(WARNING if todo else OK, f"/dev/shm: {free:.1f} GiB free", todo)


def check_versions() -> Iterator[CheckResult]:
    """Installed packages against those that the tests ran with."""
    path = ROOT / "constraints.txt"
    wanted = read_constraints(path.read_text()) if path.is_file() else {}
    if not wanted:
        yield CheckResult(WARNING, "constraints.txt: not beside the packages, versions cannot be compared")
    have = {canonical(item.metadata["Name"]): item.version for item in distributions()}
    missing, other, same = [], [], 0
    for name in wanted or dict.fromkeys(RUNTIME, ""):
        is_dali = name.startswith("nvidia-dali")
        installed = have.get(canonical(name))
        if installed is None and is_dali:  # built for another CUDA
            installed = next((have[key] for key in have if key.startswith("nvidia-dali")), None)
        if installed is None:
            missing += [name] if is_dali or name in RUNTIME else []
        elif wanted and installed.partition("+")[0] != wanted[name]:
            other.append(f"{name} {installed} (tested: {wanted[name]})")
        else:
            same += 1
    install = "pip install -c constraints.txt -e ."
    if missing:
        yield CheckResult(BROKEN, f"not installed: {', '.join(missing)}", install)
    if other:
        yield CheckResult(WARNING, f"other versions than the tested: {', '.join(other)}", install)
    yield CheckResult(OK, f"{same} packages " + ("have the tested version" if wanted else "are installed"))


def canonical(name: str) -> str:
    """A package's name as indexes compare it: Py_YAML and py-yaml are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_constraints(text: str) -> dict[str, str]:
    """{package: version} of the lines of a constraints file that apply to this Python."""
    from packaging.requirements import Requirement

    versions = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


def check_compiler() -> Iterator[CheckResult]:
    """What DeepSpeed compiles its extensions with."""
    compiler = cxx_compiler()
    path = shutil.which(compiler)
    needed = WARNING if gpu_driver() else BROKEN  # a GPU needs them for an offloaded optimizer only
    if path is None:
        todo = "Debian, Ubuntu: apt-get install g++ python3-dev"
        text = f"C++ compiler: no {compiler}; DeepSpeed builds its CPU extensions with one"
        yield CheckResult(needed, text, todo)
    else:
        lines = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
        yield CheckResult(OK, f"C++ compiler: {(lines.splitlines() or [path])[0]}")
    beside = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if ninja is None:
        yield CheckResult(needed, "ninja: not found; DeepSpeed builds with it", "pip install ninja")
    else:
        yield CheckResult(OK, f"ninja: {ninja}")


def gpu_driver() -> dict[str, str]:
    """Driver version, name and memory of the first GPU, of nvidia-smi; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    fields = ("driver_version", "name", "memory.total")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode or not done.stdout.strip():
        return {}
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=False))


def in_container() -> bool:
    """Whether this is probably a container: then the runtime decides which driver libraries are there."""
    if any(Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv")):
        return True
    return bool({"KUBERNETES_SERVICE_HOST", "container"} & set(os.environ))


def check_nvdec() -> Iterator[CheckResult]:
    """The library with which a GPU decodes video."""
    name = "libnvcuvid.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        if not (gpu_driver() or Path("/dev/nvidia0").exists()):
            yield CheckResult(OK, f"NVDEC: no {name} and no GPU: videos are decoded on the CPU")
            return
        if in_container():
            todo = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=video,compute,utility"
        else:
            todo = "install the driver's video part (Debian: libnvcuvid1; Ubuntu: libnvidia-decode-NNN)"
        yield CheckResult(BROKEN, f"NVDEC: {error}; the GPU cannot decode video", todo)
        return
    yield CheckResult(OK, f"NVDEC: {name} is there")


def error_text(error: BaseException) -> str:
    """An exception as one line: its type and its message."""
    message = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {message}"[:300]
