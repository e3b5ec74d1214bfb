"""train/checkpoint.py: whole or absent, pruned, and refused by another network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from full_disk import files_of_at_most
from torch import Tensor, nn

from pipeline import files
from train import checkpoint, distributed
from train.changes import measured_otherwise
from train.checkpoint import (
    check_classes,
    finish_validation,
    last_checkpoint,
    load_weights,
    prune,
    read_classes,
    read_packing,
    read_progress,
    read_weights,
    remove_half_written,
    restate_measure,
    restore_links,
    weights_folder,
    write_checkpoint,
)
from train.cli import Output
from train.evaluation.class_thresholds import ClassThresholds, Threshold
from train.main import prepare_folder, remove_run
from train.settings import Settings

SETTINGS = {"seed": 3, "optimizer": {"encoder_lr": 5e-7, "betas": [0.9, 0.999]}}
CLASSES = ["diving", "long jump", "shot put"]
THRESHOLDS = ClassThresholds(subset="validation", overall=Threshold(score=0.5, f1=0.6), classes={})
PACKING = {"copy": False, "codec": "vp9", "fps": 15.0}


class Killed(Exception):
    """Stands for a process that dies at this point."""


def network(width: int = 4, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def save_some(folder: Path) -> None:
    (folder / "part").write_text("state")
    (folder / "state.json").write_text("{}")


def write(
    run: Path, step: int, *, seed: int = 0, is_best: bool = False, due: bool = False, save=save_some
) -> Path:
    """A checkpoint, whose validation, if it is the best, is finished, too."""
    progress = {"step": step, "best": 0.5, "validation_due": due or is_best}
    folder = write_checkpoint(
        run,
        step,
        state=network(seed=seed).state_dict(),
        settings=SETTINGS,
        classes=CLASSES,
        packing=PACKING,
        progress=progress,
        save_resume=save,
    )
    if is_best:
        progress |= {"validation_due": False}
        finish_validation(folder, settings=SETTINGS, progress=progress, thresholds=None, is_best=True)
    return folder


@contextmanager
def killed_at(point: str, monkeypatch) -> Iterator[None]:
    """What is done inside ends before the file or link of this name is written, or at "prune"."""

    def dying(function):
        def die(path, *arguments):
            if point in (path.name, "prune" if function is prune else ""):
                raise Killed
            function(path, *arguments)

        return die

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for function in (checkpoint.write_text, checkpoint._set_link, prune):
            patch.setattr(checkpoint, function.__name__, dying(function))
        yield


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_reads_back_as_written(tmp_path):
    write(tmp_path, 12, seed=5, is_best=True)
    assert names(tmp_path) == ["best", "last", "step_000012"]
    for link in ("last", "best"):
        folder = tmp_path / "checkpoints" / link
        assert folder.is_symlink() and not os.path.isabs(os.readlink(folder))
        assert same(read_weights(folder), network(seed=5).state_dict())
        assert yaml.safe_load((folder / "settings.yaml").read_text()) == SETTINGS
        assert read_classes(folder) == CLASSES
        assert read_packing(folder) == PACKING
        assert read_progress(folder) == {"step": 12, "best": 0.5, "validation_due": False}
        assert (folder / "resume" / "part").read_text() == "state"


def test_loading_makes_another_network_the_same(tmp_path):
    write(tmp_path, 1, seed=5)
    other = network(seed=6)
    load_weights(other, tmp_path / "checkpoints" / "last")
    assert same(other.state_dict(), network(seed=5).state_dict())


def test_only_the_last_and_the_best_are_kept(tmp_path):
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        write(tmp_path, step, is_best=is_best)
    assert names(tmp_path) == ["best", "last", "step_000003", "step_000005"]
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step_000003"
    assert os.readlink(tmp_path / "checkpoints" / "last") == "step_000005"


@pytest.mark.parametrize("form", ["step_000001/", "./step_000001", "{folder}"])
def test_a_best_that_somebody_chose_by_a_link_of_his_own_is_kept(tmp_path, form):
    folder = write(tmp_path, 1)
    (tmp_path / "checkpoints" / "best").symlink_to(form.format(folder=folder))
    for step in (2, 3):
        write(tmp_path, step)
    assert names(tmp_path) == ["best", "last", "step_000001", "step_000003"]


def test_a_copy_that_somebody_keeps_beside_them_stays_and_is_never_taken_for_one(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(write(tmp_path, 1), checkpoints / "step_000001_good")
    write(tmp_path, 2, is_best=True)
    write(tmp_path, 3)
    assert names(tmp_path) == ["best", "last", "step_000001_good", "step_000002", "step_000003"]
    for link in ("best", "last"):
        (checkpoints / link).unlink()
    restore_links(tmp_path)
    assert [os.readlink(checkpoints / name) for name in ("last", "best")] == ["step_000003", "step_000002"]


def test_starting_anew_leaves_the_link_to_another_disk_and_what_else_lies_there(tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    for folder in (run, disk / "other"):
        folder.mkdir(parents=True)
    (run / "checkpoints").symlink_to(disk)
    write(run, 1, is_best=True)
    write(run, 2)
    remove_run(run)
    assert [path.name for path in disk.iterdir()] == ["other"]
    assert last_checkpoint(run) is None
    write(run, 1)
    assert sorted(path.name for path in disk.iterdir()) == ["last", "other", "step_000001"]


def test_a_step_written_again_replaces_the_first(tmp_path):
    write(tmp_path, 7, seed=1)
    write(tmp_path, 7, seed=2, is_best=True)
    assert names(tmp_path) == ["best", "last", "step_000007-2"]
    assert same(read_weights(tmp_path / "checkpoints" / "last"), network(seed=2).state_dict())
    write(tmp_path, 7, seed=3)
    assert os.readlink(tmp_path / "checkpoints" / "last") == "step_000007"


@pytest.mark.parametrize(
    "point", ["save_file", "_flush_tree", "rename", "replace", "_set_link", "prune", "save_resume"]
)
def test_killed_anywhere_the_run_still_has_a_whole_checkpoint(tmp_path, monkeypatch, point):
    write(tmp_path, 1, seed=1, is_best=True)

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if point in ("rename", "replace"):
            patch.setattr(checkpoint.os, point, die)
        elif point != "save_resume":
            patch.setattr(checkpoint, point, die)
        write(tmp_path, 2, seed=2, save=die if point == "save_resume" else save_some)
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        assert read_weights(folder) and read_progress(folder) and (folder / "resume" / "part").exists()
    last = tmp_path / "checkpoints" / "last"
    seed = 2 if point == "prune" else 1
    assert same(read_weights(last), network(seed=seed).state_dict())
    assert read_progress(last)["step"] == seed
    assert same(read_weights(tmp_path / "checkpoints" / "best"), network(seed=1).state_dict())
    write(tmp_path, 3, seed=3)  # goes on, and clears up
    kept = {os.readlink(tmp_path / "checkpoints" / link) for link in ("last", "best")}
    assert set(names(tmp_path)) == {"last", "best"} | kept


@pytest.mark.parametrize("point", ["thresholds.json", "best", "progress.json", "settings.yaml", "prune"])
def test_killed_in_the_end_of_a_validation_the_best_is_whole_and_the_validation_due(
    tmp_path, monkeypatch, point
):
    write(tmp_path, 1, seed=1, is_best=True)
    folder, checkpoints = write(tmp_path, 2, seed=2, due=True), tmp_path / "checkpoints"
    found = {"settings": SETTINGS, "progress": {"step": 2}, "thresholds": THRESHOLDS, "is_best": True}
    with killed_at(point, monkeypatch):
        finish_validation(folder, **found)
    assert os.readlink(checkpoints / "last") == "step_000002"
    is_due = read_progress(checkpoints / "last").get("validation_due", False)
    assert is_due is (point not in ("settings.yaml", "prune"))
    assert is_due or (folder / "thresholds.json").is_file()
    seed = 1 if point in ("thresholds.json", "best") else 2
    assert same(read_weights(checkpoints / "best"), network(seed=seed).state_dict())
    finish_validation(folder, **found)  # validated again
    assert names(tmp_path) == ["best", "last", "step_000002"]


@pytest.mark.parametrize("point", ["thresholds.json", "progress.json", "settings.yaml"])
def test_killed_while_it_states_another_measure_a_run_measures_anew(tmp_path, monkeypatch, point):
    folder = write(tmp_path, 1, is_best=True)
    before, now = (SETTINGS | {"run": {"protocol": protocol}} for protocol in ("activitynet", "thumos"))
    (folder / "settings.yaml").write_text(yaml.safe_dump(before))
    found = {"settings": now, "progress": {"step": 1}, "thresholds": THRESHOLDS, "is_best": True}
    with killed_at(point, monkeypatch):
        finish_validation(folder, **found)
    stated = yaml.safe_load((folder / "settings.yaml").read_text())
    assert measured_otherwise(stated, now), "taken for measured as now, with the numbers of before"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(5), r"0\.weight is \(4, 3\), the network wants \(5, 3\) \(7 of another shape, 0 missing"),
        (nn.Sequential(nn.Linear(3, 4)), r" \(.*\) has no place in the network \(.* 7 unexpected"),
        (nn.Sequential(*network(), nn.Linear(2, 2)), r"3\.weight \(2, 2\) is missing \(.* 2 missing"),
    ],
    ids=["shape", "unexpected", "missing"],
)
def test_weights_of_another_network_are_refused_in_one_line_and_nothing_is_copied(tmp_path, other, message):
    write(tmp_path, 1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(other, tmp_path / "checkpoints" / "last")
    assert "\n" not in str(caught.value) and "settings.yaml" in str(caught.value)
    assert same(other.state_dict(), before)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["diving", "high jump", "shot put"], "number 1 is 'long jump' here and 'high jump' there"),
        (["diving", "long jump"], "3 classes, the data has 2; number 2 is 'shot put' here and none there"),
    ],
)
def test_other_classes_are_refused(tmp_path, classes, message):
    write(tmp_path, 1)
    last = tmp_path / "checkpoints" / "last"
    check_classes(last, CLASSES)
    with pytest.raises(ValueError, match=message):
        check_classes(last, classes)


def test_damaged_and_missing_files_are_named(tmp_path):
    folder = write(tmp_path, 1)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    (folder / "classes.json").write_text("{")
    (folder / "progress.json").write_text("[]")
    for read, word in ((read_weights, "damaged"), (read_classes, "damaged"), (read_progress, "got a list")):
        with pytest.raises(ValueError, match=word) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
        with pytest.raises(ValueError, match="no such file"):
            read(tmp_path / "elsewhere")


def test_the_files_are_plain(tmp_path):
    folder = write(tmp_path, 1)
    assert json.loads((folder / "classes.json").read_text()) == CLASSES
    assert (folder / "settings.yaml").read_text().startswith("seed: 3\n")
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".tmp")]


def test_a_copy_without_links_goes_on_from_the_newest_and_keeps_the_best(tmp_path):
    for step, is_best in ((90, True), (999999, False), (1000000, False)):
        write(tmp_path, step, seed=step, is_best=is_best)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "last").unlink()
    (checkpoints / "best").unlink()
    assert last_checkpoint(tmp_path) == checkpoints / "step_1000000" == weights_folder(tmp_path)
    assert "step_1000000" in (restore_links(tmp_path) or "")
    assert [os.readlink(checkpoints / name) for name in ("last", "best")] == ["step_1000000", "step_000090"]
    assert restore_links(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("best", "is_there"), [(0.0, True), (-1.0, False)])
def test_a_copy_without_links_has_a_best_only_if_the_run_had_one(tmp_path, best, is_there):
    for step, is_best in ((1, True), (2, False)):
        folder = write(tmp_path, step, is_best=is_best)
    (folder / "progress.json").write_text(json.dumps({"step": 2, "best": best}))
    for name in ("last", "best"):
        (tmp_path / "checkpoints" / name).unlink()
    restore_links(tmp_path)
    assert (tmp_path / "checkpoints" / "best").is_dir() is is_there


def test_the_weights_of_a_run_are_its_best_those_of_a_checkpoint_its_own(tmp_path):
    for step, is_best in ((1, True), (2, False)):
        folder = write(tmp_path, step, is_best=is_best)
    assert weights_folder(tmp_path) == tmp_path / "checkpoints" / "best"
    assert weights_folder(folder) == folder


def test_thresholds_of_a_former_measure_go_with_it(tmp_path):
    folder = write(tmp_path, 1, is_best=True)
    for thresholds in (THRESHOLDS, None):
        restate_measure(folder, settings=SETTINGS, thresholds=thresholds)
        assert (folder / "thresholds.json").exists() is (thresholds is not None)


def test_a_copy_with_folders_instead_of_links_is_written_to(tmp_path):
    write(tmp_path, 1, is_best=True)
    last = tmp_path / "checkpoints" / "last"
    last.unlink()
    shutil.copytree(tmp_path / "checkpoints" / "step_000001", last)
    assert last_checkpoint(tmp_path) == last
    write(tmp_path, 2, seed=2)
    assert os.readlink(last) == "step_000002" and read_progress(last)["step"] == 2


NEEDED = ("model.safetensors", "settings.yaml", "classes.json", "progress.json", "resume/state.json")


@pytest.mark.parametrize("name", NEEDED)
def test_a_checkpoint_that_is_not_whole_is_never_gone_on_from(tmp_path, name):
    for step, is_best in ((1, True), (2, False)):
        write(tmp_path, step, seed=step, is_best=is_best)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "last" / name).unlink()
    assert last_checkpoint(tmp_path) == checkpoints / "step_000001"
    assert restore_links(tmp_path) == f"{checkpoints / 'last'}: it is not whole; made anew, to step_000001"
    assert os.readlink(checkpoints / "last") == "step_000001" and restore_links(tmp_path) is None
    (checkpoints / "step_000001" / name).unlink()
    with pytest.raises(
        ValueError, match=rf"{name} is missing, and no other checkpoint of the run is whole; "
    ):
        last_checkpoint(tmp_path)


def test_evaluation_needs_no_training_state_but_settings_and_classes(tmp_path):
    for step in (1, 2):
        write(tmp_path, step)
    checkpoints = tmp_path / "checkpoints"
    shutil.rmtree(checkpoints / "step_000002" / "resume")
    assert weights_folder(tmp_path) == checkpoints / "last"
    shutil.copytree(checkpoints / "step_000002", checkpoints / "step_000001")
    (checkpoints / "step_000002" / "settings.yaml").unlink()
    assert weights_folder(tmp_path) == checkpoints / "step_000001"


def test_a_checkpoint_that_is_being_removed_has_not_its_name_any_more(tmp_path, monkeypatch):
    write(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files.shutil, "rmtree", lambda folder, **options: dies(folder, **options))
        write(tmp_path, 2)
    checkpoints = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints.glob("step_*")] == ["step_000002"]
    remove_half_written(tmp_path)
    assert names(tmp_path) == ["last", "step_000002"]


def test_all_ranks_wait_until_the_first_has_decided_what_they_go_on_from(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)
    last = tmp_path / "checkpoints" / "last"
    last.unlink()
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "barrier", lambda: restore_links(tmp_path))  # meanwhile, on rank 0
    assert prepare_folder(Settings.model_construct(), tmp_path, Output(), resume=True, force=False)
    assert os.readlink(last) == "step_000002"


@pytest.mark.parametrize("number", [0, 1])
def test_the_ranks_wait_for_each_other_between_the_parts_of_a_checkpoint(tmp_path, monkeypatch, number):
    """Before the first makes a folder, before others write into it, before it gets its name, and after."""
    done: list[str] = []

    def noted(name: str) -> None:
        whole = getattr(checkpoint, name)
        monkeypatch.setattr(checkpoint, name, lambda *a, **k: (done.append(name), whole(*a, **k))[1])

    for name in ("_free_name", "write_weights", "_publish", "barrier"):
        noted(name)
    monkeypatch.setattr(checkpoint, "rank", lambda: number)
    write(tmp_path, 1, save=lambda folder: done.append("save"))
    first = ["_free_name", "barrier", "write_weights", "barrier", "save", "barrier", "_publish", "barrier"]
    assert done == [name for name in first if number == 0 or name not in ("write_weights", "_publish")]


def save_tensors(folder: Path) -> None:
    torch.save({"a": torch.zeros(10_000)}, folder / "state.pt")


def save_text(folder: Path) -> None:
    (folder / "state.json").write_text("x" * 10_000)


@pytest.mark.parametrize(
    ("size", "save", "reason"),
    [
        (200, save_some, "Error while serializing: I/O error: File too large"),
        (5000, save_tensors, "torch: a file is cut"),
        (5000, save_text, "File too large"),
    ],
    ids=["safetensors", "torch", "text"],
)
def test_a_full_disk_is_one_line_that_names_the_last_checkpoint(tmp_path, size, save, reason):
    for step, last in ((1, "there is no checkpoint to go on from yet"), (5, "--resume goes on from ")):
        with files_of_at_most(size), pytest.raises(ValueError, match="could not be written") as caught:
            write(tmp_path, step, save=save)
        message = str(caught.value)
        assert message.startswith(
            f"{tmp_path / 'checkpoints'}: the next checkpoint could not be written ({reason}"
        )
        assert "MiB are free there); make room; " + last in message and "\n" not in message
        assert not list((tmp_path / "checkpoints").glob("*")) or message.endswith("checkpoints/step_000002")
        assert not list((tmp_path / "checkpoints").glob(".*.tmp"))  # its space is free again
        write(tmp_path, 2)


def test_the_space_that_is_free_is_that_of_the_disk_the_checkpoints_are_on(tmp_path, monkeypatch):
    run, disk = tmp_path / "run", tmp_path / "disk"
    for folder in (run, disk):
        folder.mkdir()
    (run / "checkpoints").symlink_to(disk)
    free = {disk: 3 * 2**20, run: 5 * 2**20, tmp_path: 7 * 2**20}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[Path(folder).resolve()])
    )
    with files_of_at_most(200), pytest.raises(ValueError, match="; 3 MiB are free there"):
        write(run, 1)


def test_an_error_that_is_no_failed_write_stays_what_it_is(tmp_path):
    def fail(folder: Path) -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write(tmp_path, 1, save=fail)


def dies(folder: Path, ignore_errors: bool = False) -> None:
    """Stands for shutil.rmtree in a process that dies after the first file."""
    if folder.is_dir():
        next(path for path in folder.rglob("*") if path.is_file()).unlink()
        raise Killed


def test_a_damaged_file_of_weights_is_named(tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step_000001" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        read_weights(path.parent)


@pytest.mark.parametrize(
    "progress",
    [
        {"steps": 3},
        {"step": "3"},
        {"step": -1},
        {"step": 1.5},
        {"best": float("inf")},
        {"seconds": {"train": 1.0}},
        {"loader": {"epoch": 0, "step": [1]}},
        {"metrics": []},
        {"metrics": {"a": float("nan")}},
    ],
)
def test_progress_with_other_keys_or_types_is_one_line(tmp_path, progress):
    folder = write(tmp_path, 1)
    (folder / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(ValueError, match=r"progress\.json: .*use another checkpoint") as caught:
        read_progress(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
