"""Builds DeepSpeed's C++ extensions: in this environment's own folder, one process at a time.

PyTorch marks a build under way with a file named `lock` and never asks whether the builder is still alive:
one killed build makes every later process wait for ever, in silence. Here a builder holds a lock that ends
with its process; who holds it knows that a `lock` file it finds is left over, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from train.cli import to_stderr


def use_own_folder() -> None:
    """Build into the virtual environment (environments that share a folder build over each other's files).

    TORCH_EXTENSIONS_DIR, if it is set, wins; without a writable virtual environment PyTorch's default stays.
    """
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Inside, no other process of ours builds extensions under `folder`; left-over `lock` files are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "leantad.lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        for stale in folder.glob("**/lock"):
            stale.unlink(missing_ok=True)
        yield


@contextmanager
def own_ninja() -> Iterator[None]:
    """Inside, PyTorch finds the ninja installed in this environment, whatever else PATH has.

    Each version of ninja takes what another one built for out of date: started with the environment's folder
    in PATH and without it, runs would compile everything anew in turns.
    """
    import ninja

    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path


def ask_cpu_once() -> None:
    """Let py-cpuinfo answer from memory from the second question on.

    DeepSpeed asks what CPU this is twice for the extension of CPU Adam and once for each optimizer; an answer
    takes about a second of computing, and does not change.
    """
    import cpuinfo

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)


def cxx_compiler() -> str:
    """The program that builds them: what CXX names, else c++."""
    return (os.environ.get("CXX", "").split() or ["c++"])[0]


def load_extensions(builders: Sequence[Any]) -> None:
    """Build what is not built yet, a minute or two each, and load it; DeepSpeed then finds it loaded.

    builders: DeepSpeed's OpBuilders. Says on stderr that it builds.
    """
    from torch.utils.cpp_extension import _get_build_directory

    if not os.environ.get("CXX", "").strip():  # PyTorch takes an empty one for the name of a compiler
        os.environ.pop("CXX", None)
    for builder in builders:
        folder = Path(_get_build_directory(builder.name, verbose=False))
        with build_lock(folder.parent), own_ninja():
            if not list(folder.glob("*.so")):
                to_stderr(f"compiling DeepSpeed's {builder.name}: once, a minute or two")
            builder.load(verbose=False)
