"""Licence, packaging, container, hooks and CI agree with what the Makefile and the README do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

import pytest
import yaml
from conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "model", "train", "tools")


def recipe(target: str) -> str:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, f"no target {target}"
    return found[1]


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, in order; continued lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", lines)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [value for name, value in dockerfile() if name == instruction]


def shell_commands() -> list[list[str]]:
    """The commands of all RUN lines, as lists of words, without variables set in front."""
    commands = [shlex.split(command) for run in arguments("RUN") for command in run.split("&&")]
    return [list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)) for words in commands]


def test_the_licence_is_apache_2_with_the_authors_named():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The LeanTAD authors" in text and "[yyyy]" not in text
    assert 'license="Apache-2.0"' in (ROOT / "setup.py").read_text()


@pytest.mark.slow
def test_what_is_installed_without_the_checkout_holds_all_that_a_run_reads(tmp_path):
    copy, built = tmp_path / "checkout", tmp_path / "built"
    copy.mkdir()
    files = ("setup.py", "README.md", "LICENSE", "leantad.py", "settings_group.py", "ds_config.json")
    for name in (*ROOMS, *files):
        (copy / name).symlink_to(ROOT / name)
    build = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(built)]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    for room in ROOMS:
        sources = {path.relative_to(ROOT) for path in (ROOT / room).rglob("*") if path.is_file()}
        wanted = {path for path in sources if path.suffix not in (".pyc", ".sh")}
        assert wanted == {path.relative_to(built) for path in (built / room).rglob("*") if path.is_file()}
    read = "from train.optimizer import read_ds_config as read; print(read()['zero_optimization']['stage'])"
    shown = subprocess.run([sys.executable, "-c", read], cwd=built, env={}, capture_output=True, text=True)
    assert shown.stdout == "1\n", shown.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_typed(room):
    assert (ROOT / room / "py.typed").is_file()


def test_mypy_checks_every_room():
    settings = re.search(r"\[tool\.mypy\]\n(.*?)(?:\n\[|\Z)", (ROOT / "pyproject.toml").read_text(), re.S)[1]
    assert "strict = true" in settings
    folders = re.findall(r'"([\w.]+)"', re.search(r"^files = (.*)$", settings, re.MULTILINE)[1])
    assert folders == ["leantad.py", "settings_group.py", *ROOMS]


def test_the_hooks_run_what_make_check_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    wanted = recipe("check").strip().lstrip("@").replace("$(BIN)", ".venv/bin").split(" && ")
    assert [hook["entry"] for hook in hooks] == wanted
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_the_workflow_calls_the_ci_script_on_each_supported_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    assert job["strategy"]["matrix"]["python"] == classifiers
    for variable in ("PYTHON", "CPU"):  # read by make from the environment
        assert variable in job["env"] and f"\n{variable} ?=" in (ROOT / "Makefile").read_text()


def test_the_ci_script_runs_the_tests_as_the_readme_says():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == ["make test", "make test-ci"]
    assert "\nmake test\n" in (ROOT / "README.md").read_text()


def test_the_container_is_set_up_as_the_readme_says():
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    documented = re.search(r"`apt-get install ([^`]+)`", readme)[1].split()
    commands = shell_commands()
    installed = next(words for words in commands if words[:2] == ["apt-get", "install"])
    assert [word for word in installed[2:] if not word.startswith("-")] == documented
    made = [words for words in commands if words[0] == "make"]
    assert made == [["make", "setup", "PIP_ARGS=--no-cache-dir"]]
    own = {"apt-get", "rm", "useradd", "install", "make"}
    assert {words[0] for words in commands} <= own, (
        "what else does the container need, and why not the README?"
    )


def test_the_container_has_cuda_and_the_video_decoder_and_no_root():
    instructions = dockerfile()
    assert instructions[0][0] == "ARG" and instructions[0][1].startswith("CUDA_IMAGE=nvidia/cuda:13.")
    assert instructions[1] == ("FROM", "${CUDA_IMAGE}")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in arguments("ENV")
    names = [name for name, _ in instructions]
    user, setup = names.index("USER"), instructions.index(("RUN", "make setup PIP_ARGS=--no-cache-dir"))
    assert instructions[user][1] == "leantad" and user < setup
    assert arguments("USER") == ["leantad"]
    assert arguments("ENTRYPOINT") == ['["leantad"]']


def test_the_container_gets_no_local_files():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "data", "runs"} <= set(ignored)


def test_the_files_that_are_begun_first_exist():
    assert not [name for name in LONGEST if not (ROOT / "tests" / f"test_{name}.py").is_file()]
