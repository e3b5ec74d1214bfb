#!/usr/bin/env bash
# Makes .venv with everything LeanTAD needs: [CPU=1] tools/setup_env.sh [PYTHON] [PIP ARGUMENTS...]
# CPU=1 takes torch from PyTorch's index of CPU builds, without 3 GB of CUDA libraries.
# Whatever is missing on the machine is reported in one sentence, with the way out.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:-}
shift || true
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

fail() {
  echo "error: $1" >&2
  exit 2
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

reachable() {
  .venv/bin/python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=10)' "$1" 2>/dev/null
}

install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"; }

python=""
for candidate in $wanted python3 python3.12 python3.11 python3.13 python3.10; do
  if fits "$candidate"; then python=$candidate && break; fi
  [ -z "$wanted" ] || fail "PYTHON=$wanted is not a Python 3.10 to 3.13; name one that is, as in make setup PYTHON=python3.12"
done
[ -n "$python" ] || fail "no Python 3.10 to 3.13 found; install one (Debian: apt-get install python3 python3-venv python3-dev), or name it with PYTHON=..."
command -v c++ >/dev/null || fail "no C++ compiler found; DeepSpeed compiles parts of itself: install one (Debian: apt-get install g++)"
[[ "${CPU:-}" =~ ^[01]?$ ]] || fail "CPU=$CPU: want 1 (torch without CUDA) or nothing, as in make setup CPU=1"

echo "setting up .venv with $("$python" --version); this happens once and takes a few minutes"
if ! [ -x .venv/bin/python ] || ! fits .venv/bin/python; then
  rm -rf .venv
  "$python" -m venv .venv || fail "could not make .venv; install venv (Debian: apt-get install python3-venv)"
fi
if [ "${CPU:-}" = 1 ] && reachable "$TORCH_CPU_INDEX"; then
  install --index-url "$TORCH_CPU_INDEX" torch || fail "installing torch from $TORCH_CPU_INDEX failed (see above); try again, or leave out CPU=1"
elif [ "${CPU:-}" = 1 ]; then
  echo "CPU=1: $TORCH_CPU_INDEX cannot be reached; torch comes from pip's ordinary index, most often with CUDA"
fi
# timm and torchvision, which only tests want, lie apart (tests/image_networks): where transformers finds a
# torchvision, it imports it, and that of pip's ordinary index does not fit a torch without CUDA
if ! install "$@" -e '.[dev]' setuptools ||
  ! install "$@" --no-deps --upgrade --target .venv/image-networks timm torchvision; then
  fail "installing packages failed (see above); with no network, bring wheels and run: make setup PIP_ARGS='--no-index --find-links FOLDER'"
fi
echo "compiling DeepSpeed's CPU parts (once per machine)"
.venv/bin/python -c 'import os; os.environ.setdefault("DS_ACCELERATOR", "cpu"); from train.engine import compile_ops; compile_ops()' || fail "DeepSpeed's C++ parts did not compile (see above); install the headers (Debian: apt-get install g++ python3-dev)"
touch .venv/ready
