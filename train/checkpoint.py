"""Checkpoints on disk: complete or absent, readable without DeepSpeed, refused by another network.

    checkpoints/step_000120/model.safetensors    every tensor of the network, float32
                            model_ema.safetensors    the same with averaged weights; only with ema_decay
                            settings.yaml        the run's resolved settings
                            classes.json         class names, in the order of the scores
                            packing.json         how the data set was packed (its dataset.json's settings)
                            thresholds.json      a score threshold per class; only where it was validated
                            progress.json        where the run stood
                            resume/              what only --resume needs (train.engine.save_state)
    checkpoints/last, checkpoints/best           links to such folders

The first six files are all that evaluation and prediction read. A folder is filled under a temporary name,
flushed to disk and renamed; then `last` points at it, and `best` after its validation, each in one step; what
they no longer point at gets a temporary name before it is removed. Killed at any moment, a run finds both
pointing at complete checkpoints, and nothing incomplete under a checkpoint's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.files import parse_json, remove_folder, write_text
from pipeline.schemas import Table, Text, validated
from pipeline.text import counted, short
from train.distributed import barrier, rank
from train.evaluation.class_thresholds import THRESHOLDS, ClassThresholds
from train.progress import PROGRESS as RUN_PROGRESS
from train.trust import signed

Value = TypeVar("Value")

AVERAGE = "model_ema.safetensors"
WEIGHTS, SETTINGS, CLASSES, PROGRESS = "model.safetensors", "settings.yaml", "classes.json", "progress.json"
PACKING, RESUME = "packing.json", "resume"
STATE_FILE = "state.json"  # in RESUME, its last file
WEIGHTS_FILES = (WEIGHTS, SETTINGS, CLASSES)  # what evaluation needs
# In the messages of torch's C++ when it cannot write a file; they are RuntimeErrors like all others.
TORCH_WRITING = ("inline_container", "PytorchStreamWriter", "iostream error", "cannot be opened")
RUN_FILES = (*WEIGHTS_FILES, PROGRESS, f"{RESUME}/{STATE_FILE}")  # what going on needs

_CLASSES = TypeAdapter(Annotated[list[Text], Field(min_length=1)])
_PACKING = TypeAdapter(Table)


# ----------------------------------------------------------------------------------------------- writing


def _flush(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _set_link(link: Path, target: str) -> None:
    """Make `link` a link to the neighbour `target`, in one step."""
    if link.is_dir() and not link.is_symlink():
        remove_folder(link)  # a copy made without links has whole folders instead
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    _flush(link.parent)


def _free_name(checkpoints: Path, step: int) -> str:
    """step_000120, or step_000120-2 if one of that step is there, which stays until the links have moved."""
    name = f"step_{step:06d}"
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(name for name in names if not (checkpoints / name).exists())


def remove_half_written(run: Path) -> None:
    """Remove what killed runs left half-written, or half-removed, among the checkpoints."""
    for path in (run / "checkpoints").glob(".*.tmp"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _own_folders(run: Path) -> list[Path]:
    """The checkpoints that a run wrote, whole or not; a copy that somebody keeps has another name."""
    folders = (run / "checkpoints").glob("step_*")
    return [folder for folder in folders if re.fullmatch(r"step_\d+(-\d+)?", folder.name)]


def prune(run: Path) -> None:
    """Remove checkpoints that no link points at, and what is half-written."""
    checkpoints = run / "checkpoints"
    keep = {(checkpoints / name).resolve().name for name in ("last", "best")}  # however a link is written
    for path in _own_folders(run):
        if path.name not in keep:
            remove_folder(path)
    remove_half_written(run)


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints of a run. Where their folder is a link, to a larger disk say, that one stays."""
    checkpoints = run / "checkpoints"
    if not checkpoints.is_symlink():
        remove_folder(checkpoints)
        return
    for link in (checkpoints / "last", checkpoints / "best"):
        link.unlink(missing_ok=True) if link.is_symlink() else remove_folder(link)
    for folder in _own_folders(run):
        remove_folder(folder)
    remove_half_written(run)


def _missing(folder: Path, wanted: Sequence[str] = RUN_FILES) -> list[str]:
    """What a checkpoint lacks of the files wanted; empty: it is whole."""
    return [name for name in wanted if not (folder / name).is_file()]


def _checkpoints(run: Path, wanted: Sequence[str] = RUN_FILES) -> list[Path]:
    """The checkpoints of a run that are whole, oldest first."""
    found = [folder for folder in _own_folders(run) if not _missing(folder, wanted)]
    return sorted(found, key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])


def last_checkpoint(run: Path) -> Path | None:
    """What a run goes on from: `last`, or the newest whole checkpoint where that is lost; None: nothing.

    Raises ValueError when there are checkpoints, none of them whole.
    """
    last, whole = run / "checkpoints" / "last", _checkpoints(run)
    if not _missing(last):
        return last
    if whole:
        return whole[-1]
    for folder in [last, *sorted(_own_folders(run), reverse=True)]:
        if folder.is_dir():
            raise ValueError(
                f"{folder}: {_missing(folder)[0]} is missing, and no other checkpoint of the run is whole; "
                "copy the run again, or start anew with --force"
            )
    return None


def restore_links(run: Path) -> str | None:
    """Restore the links that a plain copy of a run loses; returns a line that says so, None if none was lost.

    Only the last and the best are kept: the newest and, with a best one at all, the oldest.
    """
    last, best = (run / "checkpoints" / name for name in ("last", "best"))
    whole = _checkpoints(run)
    if not whole or not _missing(last):
        return None
    reason = "it is not whole" if last.is_dir() else "the link was lost, as in a plain copy"
    _set_link(last, whole[-1].name)
    if not best.is_dir() and read_progress(last).get("best", -1.0) >= 0:
        _set_link(best, whole[0].name)
    return f"{last}: {reason}; made anew, to {whole[-1].name}"


def _publish(temporary: Path, final: Path) -> None:
    """Give a filled folder its name, point `last` at it and remove what no link points at any more."""
    _flush_tree(temporary)
    os.rename(temporary, final)
    _set_link(final.with_name("last"), final.name)
    prune(final.parents[1])


def going_on(run: Path) -> str:
    """How a run that stopped goes on, for the end of an error message."""
    try:
        last = last_checkpoint(run)
    except ValueError:
        last = None
    if last is None:
        return "there is no checkpoint to go on from yet"
    return f"--resume goes on from {last.parent / last.resolve().name}"


@contextmanager
def _named_failures(temporary: Path) -> Iterator[None]:
    """A file that cannot be written (a full disk, for one) becomes a ValueError of one line.

    What was written of the checkpoint goes, which gives its space back.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in TORCH_WRITING):
            raise
        disk = next(folder for folder in temporary.parents if folder.exists())
        free = shutil.disk_usage(disk).free / 2**20
        if isinstance(error, RuntimeError):
            reason = "torch: a file is cut"
        else:
            reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200]
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(
            f"{temporary.parent}: the next checkpoint could not be written ({reason}; {free:.0f} MiB are "
            f"free there); make room; {going_on(temporary.parents[1])}"
        ) from error


def _settings_text(settings: dict[str, Any]) -> str:
    return signed(yaml.safe_dump(settings, sort_keys=False))


def write_weights(
    folder: Path, *, state: dict[str, Tensor], settings: dict[str, Any], classes: Sequence[str]
) -> None:
    """Write the three files of a weights folder into an existing (temporary) folder."""
    save_file(state, folder / WEIGHTS)
    (folder / SETTINGS).write_text(_settings_text(settings), encoding="utf-8")
    (folder / CLASSES).write_text(json.dumps(list(classes)), encoding="utf-8")


def write_checkpoint(
    run: Path,
    step: int,
    *,
    state: dict[str, Tensor],
    settings: dict[str, Any],
    classes: Sequence[str],
    packing: dict[str, Any],
    progress: dict[str, Any],
    average: dict[str, Tensor] | None = None,
    thresholds: ClassThresholds | None = None,
    save_resume: Callable[[Path], None] | None = None,
) -> Path:
    """Write run/checkpoints/step_XXXXXX, point `last` at it, remove those that no link points at any more.

    state: the whole network, see `train.engine.full_state_dict`. settings, packing, progress: plain values.
    average: the network with averaged weights, if the run has them.
    thresholds: of a validation of these weights, if there was one.
    save_resume: called on every rank with the folder to put its part of the training state into.
    All ranks call it; rank 0 writes the rest. Returns the checkpoint's folder.
    """
    checkpoints = Path(run) / "checkpoints"
    name = _free_name(checkpoints, step)
    temporary = checkpoints / f".{name}.tmp"
    barrier()  # every rank has seen the name before rank 0 makes a folder of it
    with _named_failures(temporary):
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / RESUME).mkdir(parents=True)
            write_weights(temporary, state=state, settings=settings, classes=classes)
            if average is not None:
                save_file(average, temporary / AVERAGE)
            (temporary / PACKING).write_text(json.dumps(packing, indent=1), encoding="utf-8")
            if thresholds is not None:
                (temporary / THRESHOLDS).write_text(thresholds.model_dump_json(indent=1), encoding="utf-8")
            (temporary / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
        barrier()
        if save_resume is not None:
            save_resume(temporary / RESUME)
        barrier()
        if rank() == 0:
            _publish(temporary, checkpoints / name)
    barrier()
    return checkpoints / name


def _state_thresholds(folder: Path, thresholds: ClassThresholds | None) -> None:
    if thresholds is not None:
        write_text(folder / THRESHOLDS, thresholds.model_dump_json(indent=1))
    else:
        (folder / THRESHOLDS).unlink(missing_ok=True)


def restate_measure(folder: Path, *, settings: dict[str, Any], thresholds: ClassThresholds | None) -> None:
    """State how the weights of a checkpoint were measured since it was written."""
    _state_thresholds(folder, thresholds)
    write_text(folder / SETTINGS, _settings_text(settings))


def finish_validation(
    folder: Path,
    *,
    settings: dict[str, Any],
    progress: dict[str, Any],
    thresholds: ClassThresholds | None,
    is_best: bool,
) -> None:
    """State what a validation of a checkpoint found, and point `best` at it if it is; for rank 0.

    Killed before it has stated where the run stood, the run finds that the validation is due; before the
    settings, if they measure otherwise than those that stood there, that all is to be measured anew.
    """
    _state_thresholds(folder, thresholds)
    if is_best:
        _set_link(folder.with_name("best"), folder.name)
    write_text(folder / PROGRESS, json.dumps(progress, indent=1))
    write_text(folder / SETTINGS, _settings_text(settings))
    prune(folder.parents[1])


# ----------------------------------------------------------------------------------------------- reading


def weights_folder(checkpoint: Path) -> Path:
    """The folder with the weights: the one given, or the best (else the last) checkpoint of a run folder."""
    for folder in (checkpoint, checkpoint / "checkpoints" / "best"):
        if (folder / WEIGHTS).is_file():
            return folder
    newest_first = reversed(_checkpoints(checkpoint, WEIGHTS_FILES))
    for folder in (checkpoint / "checkpoints" / "last", *newest_first):
        if not _missing(folder, WEIGHTS_FILES):
            return folder
    raise ValueError(
        f"{checkpoint}: no {WEIGHTS}, want a run folder, one of its checkpoints, or a file of leantad export"
    )


def settings_file(checkpoint: Path) -> Path:
    """The settings of the weights that `weights_folder` finds."""
    path = weights_folder(checkpoint) / SETTINGS
    if not path.is_file():
        raise ValueError(f"{path}: no such file; want a folder that a run wrote whole")
    return path


def _read_json(path: Path, kind: type[Value], schema: TypeAdapter[Any]) -> Value:
    """A JSON file of a checkpoint, as it stands there; ValueError unless it is of this kind and schema."""
    try:
        value = parse_json(path.read_bytes(), where=path.name)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; want a folder that a run wrote under checkpoints/") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); use another checkpoint") from None
    if not isinstance(value, kind):
        raise ValueError(
            f"{path}: got a {type(value).__name__}, want a {kind.__name__}; use another checkpoint"
        )
    validated(schema, value, where=path, advice="use another checkpoint")
    return value


def read_progress(folder: Path) -> dict[str, Any]:
    """Where the run stood, as `write_checkpoint` was given it."""
    return _read_json(Path(folder) / PROGRESS, dict, RUN_PROGRESS)


def read_classes(folder: Path) -> list[str]:
    """The class names of a weights folder, in the order of the scores."""
    return _read_json(Path(folder) / CLASSES, list, _CLASSES)


def read_packing(folder: Path) -> dict[str, Any]:
    """How the data set was packed that the weights were trained on: the settings in its dataset.json."""
    path = Path(folder) / PACKING
    if not path.is_file():
        raise ValueError(
            f'{path}: no such file, an older release wrote this checkpoint; copy the "settings" of the data '
            "set's dataset.json into it, so that videos are re-encoded as those that it was trained on"
        )
    return _read_json(path, dict, _PACKING)


def check_classes(folder: Path, classes: Sequence[str]) -> None:
    """ValueError unless the weights in `folder` were trained for these classes in this order."""
    saved = read_classes(folder)
    if saved == list(classes):
        return
    pairs = enumerate(zip(saved, classes, strict=False))
    differ = next((i for i, (old, new) in pairs if old != new), min(len(saved), len(classes)))
    old, new = (repr(names[differ]) if differ < len(names) else "none" for names in (saved, list(classes)))
    raise ValueError(
        f"{Path(folder) / CLASSES}: {counted(len(saved), 'class', 'classes')}, the data has {len(classes)}; "
        f"number {differ} is {old} here and {new} there; use data with the classes the weights were "
        "trained for"
    )


def read_weights(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a weights folder, on the CPU. Raises ValueError if the file is missing or cut."""
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"{path}: no such file; want a folder that a run wrote under checkpoints/")
    return read_safetensors(path)


def first_mismatch(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """The first tensor that differs by name or shape, and how many do; None if none."""
    reshaped = [n for n in wanted if n in saved and saved[n].shape != wanted[n].shape]
    missing = [n for n in wanted if n not in saved]
    unexpected = [n for n in saved if n not in wanted]
    if reshaped:
        name = reshaped[0]
        first = f"{name} is {tuple(saved[name].shape)}, the network wants {tuple(wanted[name].shape)}"
    elif missing:
        first = f"{missing[0]} {tuple(wanted[missing[0]].shape)} is missing"
    elif unexpected:
        first = f"{unexpected[0]} {tuple(saved[unexpected[0]].shape)} has no place in the network"
    else:
        return None
    numbers = f"{len(reshaped)} of another shape, {len(missing)} missing, {len(unexpected)} unexpected"
    return f"{first} ({numbers})"


def load_weights(network: nn.Module, folder: Path, name: str = WEIGHTS) -> None:
    """Copy the weights of a folder (name: AVERAGE, the averaged ones) into a network.

    Every tensor must match by name and shape.

    Raises ValueError, before anything is copied, naming the first tensor that does not match.
    """
    saved = read_weights(folder, name)
    mismatch = first_mismatch(saved, network.state_dict())
    if mismatch is not None:
        raise ValueError(
            f"{Path(folder) / name}: another network's weights: {mismatch}; build the network from the "
            f"{SETTINGS} beside it, or choose another checkpoint"
        )
    network.load_state_dict(saved)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU. ValueError if it is cut, or is no safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        # a header that is none; or one of a type or size that torch does not have
        reason = short(error, 200)
        raise ValueError(f"{path}: damaged, or no safetensors file ({reason}); use another one") from None
