"""Writes a model as one file, to give to somebody or to deploy: train/model_file.py says what is in it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.files import file_sha256
from pipeline.text import counted
from train.cli import PATH, Command, Output, check_new_file, force_option, output_options


@click.command(cls=Command, epilog="Example: leantad export runs/demo demo.leantad")
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
@force_option
@output_options
def main(run: Path, out: Path, force: bool, output: Output) -> None:
    """Write the model of RUN, a run folder (its best checkpoint) or checkpoint folder, as one file OUT.

    OUT holds all that `leantad predict --checkpoint OUT` needs, on any machine: weights, settings, classes,
    and how videos are encoded. It holds no path of this machine, no state of the training, and nothing
    executable. The same checkpoint gives the same bytes.
    """
    check_new_file(out, force=force)
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder, want that of a run, or one of its checkpoints")
    from train.checkpoint import SETTINGS
    from train.model_file import write_model_file
    from train.settings import read_settings

    folder, classes = write_model_file(out, run)
    on_features = read_settings(folder / SETTINGS, ()).data.num_features is not None
    size = out.stat().st_size
    output.say(f"{out}: {size / 1e6:.1f} MB, {counted(len(classes), 'class', 'classes')}, from {folder}")
    output.say(f"use it with leantad predict {'FEATURES.h5' if on_features else 'VIDEO'} --checkpoint {out}")
    sha256 = file_sha256(out)
    output.document({"out": out, "bytes": size, "sha256": sha256, "checkpoint": folder, "classes": classes})


if __name__ == "__main__":
    main()
