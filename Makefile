# make demo    set up, then the main job on built-in data: render, pack, train, evaluate, report
# make test    set up, then style checks and all tests
# make check   set up, then style and types
# make fake-gpu   a training step of every kind of network on a GPU that computes nothing; needs no GPU
# Everything lives in .venv; a second call does no work twice. PYTHON=... picks an interpreter,
# CPU=1 takes torch without CUDA (saves 3 GB), PIP_ARGS=... is handed to pip (a mirror, say).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-ci check fake-gpu clean

PYTHON ?=
CPU ?=
PIP_ARGS ?=
BIN := .venv/bin
JOBS ?= 2

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

setup: .venv/ready

.venv/ready: setup.py constraints.txt tools/setup_env.sh
	@CPU="$(CPU)" bash tools/setup_env.sh "$(PYTHON)" $(PIP_ARGS)

data/demo-videos/annotations.json: .venv/ready tools/make_synthetic.py tools/synthetic/scene.py
	@$(BIN)/python tools/make_synthetic.py --out data/demo-videos --force

data/demo/dataset.json: data/demo-videos/annotations.json
	@$(BIN)/python tools/make_shards.py data/demo-videos/videos data/demo-videos/annotations.json --out data/demo --copy --force

demo: data/demo/dataset.json
	@if [ -e runs/demo/metrics.json ]; then \
	  echo "runs/demo is complete: open runs/demo/report.html, or remove runs/demo to train again"; \
	else $(BIN)/python train/main.py --recipe train/recipes/demo.yaml --out runs/demo --resume; fi

check: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: check
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=20 -m "not ci"

test-ci: .venv/ready
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=20 -m ci

fake-gpu: .venv/ready
	@$(BIN)/python -m pytest -q tests/test_train_fake_gpu.py

clean:
	rm -rf data/demo data/demo-videos runs/demo
