"""Several raw files fused: means of the same candidates, and a line for files that are of different ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from train.eval import main
from train.fused_outputs import read_fused, read_fused_header
from train.postprocess import PostSettings, RawWindow, postprocess_videos
from train.raw_outputs import ARRAYS, read_raw, write_raw

CLASSES = ("jump", "run")
WINDOWS = (("a", (0.0, 10.0)), ("a", (5.0, 15.0)), ("b", (0.0, 10.0)))
METADATA = {"subset": "validation", "videos": ["a", "b"], "post": {"sigma": 0.2}}


def windows_of(seed: int, count: int = 20) -> list[RawWindow]:
    rng = np.random.default_rng(seed)
    return [
        RawWindow(
            key=key,
            window=window,
            duration=15.0,
            num_steps=10,
            segments=np.sort(rng.uniform(0, 10, (count, 2)), axis=1).astype(np.float32),
            quality=rng.random(count, dtype=np.float32),
            class_scores=rng.random((count, 2), dtype=np.float32),
            boundary=rng.random((2, 10), dtype=np.float32),
        )
        for key, window in WINDOWS
    ]


def written(path: Path, windows: list[RawWindow], classes=CLASSES, metadata=METADATA) -> Path:
    write_raw(path, windows, classes=classes, metadata=metadata)
    return path


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return [written(tmp_path / f"{seed}.h5", windows_of(seed)) for seed in range(3)]


def test_outputs_of_each_candidate_are_averaged(paths):
    for number, fused in enumerate(read_fused(paths)):
        parts = [windows_of(seed)[number] for seed in range(3)]
        assert (fused.key, fused.window, fused.num_steps) == (parts[0].key, parts[0].window, 10)
        for name in ARRAYS:
            want = sum(getattr(part, name).astype(np.float64) for part in parts) / 3
            np.testing.assert_allclose(getattr(fused, name), want, rtol=1e-6)  # float32
    assert number == 2


def test_one_file_and_the_same_file_twice_are_that_file_bit_by_bit(paths):
    for given in (paths[:1], [paths[0]] * 2):
        for fused, alone in zip(read_fused(given), read_raw(paths[0]), strict=True):
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(fused, name), getattr(alone, name))


def eval_of(*paths: Path, out: Path) -> tuple[int, str]:
    arguments = [part for path in paths for part in ("--from-raw", str(path))]
    result = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    return result.exit_code, result.output


def test_the_command_processes_the_means_with_the_settings_of_the_first_file(paths, tmp_path):
    code, output = eval_of(*paths, out=tmp_path / "d.json")
    assert code == 0, output
    document = json.loads((tmp_path / "d.json").read_text())
    want = postprocess_videos(read_fused(paths), CLASSES, PostSettings(sigma=0.2))
    assert document["results"] == want
    assert document["external_data"]["raw"] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:2], "one has more windows than the other"),
        (lambda w: [*w, w[2]], "one has more windows than the other"),
        (lambda w: [w[2], w[0], w[1]], "a window of video 'b' where that has one of 'a'"),
        (
            lambda w: [replace(w[0], window=(0.0, 9.0)), *w[1:]],
            "video 'a' has a window of 0.00 to 9.00 s, there it is 0.00 to 10.00 s",
        ),
        (
            lambda w: [*w[:2], replace(w[2], num_steps=9, boundary=w[2].boundary[:, :9])],
            "a window of video 'b' has 9 steps, there 10",
        ),
        (lambda w: [w[0], w[1], windows_of(0, 19)[2]], "a window of video 'b' has 19 candidates, there 20"),
    ],
)
def test_files_of_other_videos_windows_or_candidates_are_one_line(paths, tmp_path, change, message):
    other = written(tmp_path / "other.h5", change(windows_of(5)))
    code, output = eval_of(paths[0], other, out=tmp_path / "d.json")
    assert code == 2 and not (tmp_path / "d.json").exists()
    assert f"--from-raw {other}: not as {paths[0]}: {message}; fuse runs that differ in seed" in output
    assert output.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("jump", "swim")}, r"other classes than .* \(run, swim\)"),
        ({"classes": ("run", "jump")}, r"other classes than .* \(the order of them\)"),
        ({"metadata": METADATA | {"videos": ["a", "c"]}}, r"other videos than .* \(b, c\)"),
    ],
)
def test_files_of_other_classes_or_data_are_one_line_before_any_work(paths, tmp_path, changes, message):
    other = written(tmp_path / "other.h5", windows_of(5), **changes)
    with pytest.raises(ValueError, match=message) as refused:
        read_fused_header([paths[0], other])
    assert "\n" not in str(refused.value)
