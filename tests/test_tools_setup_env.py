"""tools/setup_env.sh: which pip commands it runs, and what it says where something is missing."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Stands in for .venv/bin/python: notes what it is called with; only the look at an index is real.
PYTHON = f"""#!/bin/sh
case "$*" in *urlopen*) exec {sys.executable} "$@" ;; esac
echo "$*" >> "$(dirname "$0")/../../calls"
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the script and an environment whose Python only notes its calls."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup_env.sh", tmp_path / "tools")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def set_up(checkout: Path, *arguments: str, **environment: str) -> tuple[CompletedProcess, list[str]]:
    """Run the script; returns the process and pip's command lines."""
    command = ["bash", str(checkout / "tools" / "setup_env.sh"), *arguments]
    variables = {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    calls = checkout / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done, [line for line in lines if line.startswith("-m pip install")]


@pytest.fixture
def index():
    """The address of a package index on this machine that answers everything with an empty page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_the_ordinary_set_up_is_one_pip_command_and_one_for_tests(checkout):
    done, installed = set_up(checkout, "", "--no-index")
    assert done.returncode == 0, done.stderr
    line, networks = installed
    assert line.endswith("-c constraints.txt --no-index -e .[dev] setuptools")
    assert "--no-index --no-deps" in networks and networks.endswith(".venv/image-networks timm torchvision")
    assert (checkout / ".venv" / "ready").exists()


@pytest.mark.slow
def test_cpu_takes_torch_from_the_index_of_cpu_builds_first(checkout, index):
    done, installed = set_up(checkout, CPU="1", TORCH_CPU_INDEX=index)
    assert done.returncode == 0, done.stderr
    torch, rest, networks = installed
    assert torch.endswith(f"-c constraints.txt --index-url {index} torch")
    assert rest.endswith("-e .[dev] setuptools") and index not in rest + networks


@pytest.mark.slow
def test_cpu_without_that_index_goes_on_with_the_ordinary_one_and_says_so(checkout):
    done, installed = set_up(checkout, CPU="1", TORCH_CPU_INDEX="http://127.0.0.1:1/cpu")
    assert done.returncode == 0, done.stderr
    assert len(installed) == 2
    assert (
        "CPU=1: http://127.0.0.1:1/cpu cannot be reached; torch comes from pip's ordinary index"
        in done.stdout
    )


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (["python2"], {}, "PYTHON=python2 is not a Python 3.10 to 3.13"),
        ([], {"CPU": "yes"}, "CPU=yes: want 1 (torch without CUDA) or nothing"),
    ],
)
def test_wrong_usage_is_one_line(checkout, arguments, environment, message):
    done, installed = set_up(checkout, *arguments, **environment)
    assert done.returncode == 2 and not installed
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
