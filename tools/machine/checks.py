"""The checks of `leantad doctor`: each yields findings, and may raise whatever it likes.

A check that loads a large library (torch, DALI, DeepSpeed) runs in a process of its own: a library that
crashes or hangs then ends its own check only. doctor.py runs them.
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
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

OK, WARNING, BROKEN = "OK", "WARNING", "BROKEN"
ROOT = Path(__file__).resolve().parents[2]
RUNTIME = (
    *("torch", "nvidia-dali", "webdataset", "deepspeed", "numpy", "click", "h5py", "pydantic", "PyYAML"),
    *("safetensors", "av", "tqdm"),
)
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the answer. state: OK, WARNING (training works) or BROKEN; todo: the way out."""

    state: str
    text: str
    todo: str = ""


# --------------------------------------------------------------------------------- without large libraries


def check_python() -> Iterator[Finding]:
    """The interpreter and the machine."""
    fits = (3, 10) <= sys.version_info[:2] < (3, 14)
    todo = "" if fits else "make the virtual environment anew with Python 3.10 to 3.13"
    yield Finding(
        OK if fits else BROKEN, f"Python {platform.python_version()} on {platform.platform()}", todo
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = "decoding may hold up training; give the job more cores" if cores < 4 else ""
    yield Finding(WARNING if todo else OK, f"{cores} CPU core{'s' * (cores != 1)} for this process", todo)


def check_disk() -> Iterator[Finding]:
    """Room in the working folder and in shared memory."""
    free = shutil.disk_usage(".").free / GIB
    if not os.access(".", os.W_OK):
        yield Finding(WARNING, f"working folder {Path.cwd()}: not writable", "give --out another folder")
    todo = "" if free >= 10 else "checkpoints and shards need room; work in a folder with more"
    yield Finding(WARNING if todo else OK, f"working folder {Path.cwd()}: {free:.1f} GiB free", todo)
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield Finding(WARNING, "/dev/shm: not there", "several processes on one machine need shared memory")
        return
    free = shutil.disk_usage(shared).free / GIB
    todo = "" if free >= 1 else "several processes talk through it: docker run --shm-size=8g"
    yield Finding(WARNING if todo else OK, f"/dev/shm: {free:.1f} GiB free", todo)


def check_versions() -> Iterator[Finding]:
    """Installed packages against those that the tests ran with."""
    path = ROOT / "constraints.txt"
    wanted = read_constraints(path.read_text()) if path.is_file() else {}
    if not wanted:
        yield Finding(WARNING, "constraints.txt: not beside the packages, versions cannot be compared")
    have = {canonical(item.metadata["Name"]): item.version for item in distributions()}
    missing, other, same = [], [], 0
    for name in wanted or dict.fromkeys(RUNTIME, ""):
        found = have.get(canonical(name))
        if found is None and name.startswith("nvidia-dali"):  # built for another CUDA
            found = next((have[key] for key in have if key.startswith("nvidia-dali")), None)
        needed = name in RUNTIME or name.startswith("nvidia-dali")
        if found is None:
            missing += [name] if needed else []
        elif wanted and found.partition("+")[0] != wanted[name]:
            other.append(f"{name} {found} (tested: {wanted[name]})")
        else:
            same += 1
    install = "pip install -c constraints.txt -e ."
    if missing:
        yield Finding(BROKEN, f"not installed: {', '.join(missing)}", install)
    if other:
        yield Finding(WARNING, f"other versions than the tested: {', '.join(other)}", install)
    yield Finding(OK, f"{same} packages have the tested version")


def canonical(name: str) -> str:
    """A package's name as indexes compare it: Py_YAML and py-yaml are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_constraints(text: str) -> dict[str, str]:
    """{package: version} of the lines of a constraints file that apply to this Python."""
    from packaging.requirements import Requirement

    found = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def check_compiler() -> Iterator[Finding]:
    """What DeepSpeed compiles its parts with."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    place = shutil.which(compiler)
    needed = WARNING if gpu_driver() else BROKEN  # a GPU needs them for an offloaded optimizer only
    if place is None:
        todo = "Debian, Ubuntu: apt-get install g++ python3-dev"
        yield Finding(needed, f"C++ compiler: no {compiler}; DeepSpeed builds its CPU parts with one", todo)
    else:
        lines = subprocess.run([place, "--version"], capture_output=True, text=True, timeout=10).stdout
        yield Finding(OK, f"C++ compiler: {(lines.splitlines() or [place])[0]}")
    beside = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if ninja is None:
        yield Finding(needed, "ninja: not found; DeepSpeed builds with it", "pip install ninja")
    else:
        yield Finding(OK, f"ninja: {ninja}")


def gpu_driver() -> dict[str, str]:
    """Driver version, name and memory of the first GPU, as nvidia-smi tells; empty without one."""
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
    """Whether this looks like a container: then the runtime decides which driver libraries are there."""
    if any(Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv")):
        return True
    return bool({"KUBERNETES_SERVICE_HOST", "container"} & set(os.environ))


def check_nvdec() -> Iterator[Finding]:
    """The library with which a GPU decodes video."""
    name = "libnvcuvid.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        if not (gpu_driver() or Path("/dev/nvidia0").exists()):
            yield Finding(OK, f"NVDEC: no {name} and no GPU: videos are decoded on the CPU")
            return
        if in_container():
            todo = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=video,compute,utility"
        else:
            todo = "install the driver's video part (Debian: libnvcuvid1; Ubuntu: libnvidia-decode-NNN)"
        yield Finding(BROKEN, f"NVDEC: {error}; the GPU cannot decode video", todo)
        return
    yield Finding(OK, f"NVDEC: {name} is there")


# ------------------------------------------------------------------------------ each in a process of its own


def check_torch() -> Iterator[Finding]:
    """torch, its GPU and whether that computes."""
    import torch

    driver = gpu_driver()
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding(OK, f"torch {torch.__version__} ({cuda}), {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        if driver:
            todo = "install a torch with CUDA" if not torch.version.cuda else "update the driver"
            gpu = f"{driver.get('name', '')}, driver {driver.get('driver_version', '?')}"
            yield Finding(WARNING, f"GPU: {gpu}, but torch does not see it: training runs on the CPU", todo)
        else:
            yield Finding(OK, "GPU: none; training runs on the CPU, for small data")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        x = torch.ones(64, 64, device=f"cuda:{number}")
        if float((x @ x).sum()) != 64.0**3:
            yield Finding(BROKEN, f"GPU {number}: a product of matrices is wrong", "check the driver, reboot")
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(
            OK,
            f"GPU {number}: {facts.name}, {facts.total_memory / GIB:.1f} GiB, compute "
            f"{facts.major}.{facts.minor}, {bf16}, driver {driver.get('driver_version', 'unknown')}",
        )


def check_deepspeed() -> Iterator[Finding]:
    """DeepSpeed, and the parts it compiles."""
    import torch

    from train import engine

    engine._deepspeed()  # imported there and nowhere else, with what it needs in reach
    yield Finding(OK, f"DeepSpeed {installed('deepspeed')}: imported")
    built = built_ops()
    names = {"deepspeed_shm_comm": "communication on a CPU", "cpu_adam": "Adam for an offloaded optimizer"}
    missing = [f"{name} ({use})" for name, use in names.items() if name not in built]
    if missing:
        todo = (
            "built at first use, for a minute or two; now: "
            "python -c 'from train.engine import compile_ops; compile_ops()'"
        )
        yield Finding(WARNING, f"DeepSpeed has not compiled: {', '.join(missing)}", todo)
    else:
        engine.compile_ops()  # loads what is built
        yield Finding(OK, f"DeepSpeed's compiled parts load: {', '.join(names)}")
    if torch.cuda.is_available():
        nvcc = shutil.which("nvcc") or os.environ.get("CUDA_HOME")
        todo = "" if nvcc else "only optimizer offload needs it: install the CUDA toolkit, or cpu_adam: false"
        yield Finding(OK if nvcc else WARNING, f"nvcc: {nvcc or 'not found'}", todo)


def built_ops() -> set[str]:
    """Names of the C++ extensions that torch has built and cached for this Python."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "torch_extensions"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    found = root.glob("**/*.so")
    return {path.stem for path in found if python in str(path) or "TORCH_EXTENSIONS_DIR" in os.environ}


def installed(name: str) -> str:
    """The version of a package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def words(error: BaseException) -> str:
    """An exception as one line: its type and its own words."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text}"[:300]
