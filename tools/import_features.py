"""`leantad import-features`: other projects' features and an annotation file, as one feature file."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.annotations import read_annotations
from pipeline.lock import writing_file
from pipeline.text import counted, first_names, shown
from train.cli import (
    PATH,
    Command,
    Output,
    check_new,
    check_new_file,
    exit_with,
    force_option,
    output_options,
)

if TYPE_CHECKING:
    from pipeline.features.writer import Precision
    from tools.features.importing import Import, Layout


def say_what_was_found(planned: Import, output: Output, *, guessed: bool) -> None:
    """The layout, and what the annotations and the files have no match for."""
    from tools.features.importing import LAYOUTS

    name, shape = next(iter(planned.shapes.items()))
    origin = "guessed" if guessed else "as --layout says"
    output.say(
        f"layout, {origin}: {LAYOUTS[planned.layout]}; {name} {shape} has {planned.num_steps(name)} features "
        f"of width {planned.num_features}"
    )
    if misfits := planned.misfits:
        name = next(iter(misfits))
        output.warn(
            f"--stride, --fps: in {len(misfits)} of {counted(len(planned.files), 'video')} the features end "
            f"elsewhere, in {shown(name)} at {misfits[name]:.2f} of the video; if the stride or the rate is "
            "another, actions are learned from the wrong features"
        )
    if planned.unused:
        output.remark(
            f"left out: {counted(len(planned.unused), 'file')} of no annotated video: "
            f"{first_names(list(planned.unused))}"
        )


def write(planned: Import, out: Path, precision: Precision, output: Output) -> dict[str, Any]:
    """Write the feature file; returns what --json prints."""
    from pipeline.features.writer import write_features

    repairs: Counter[str] = Counter()
    entries = output.progress(planned.entries(repairs), "importing", unit="video", total=len(planned.videos))
    write_features(
        out,
        entries,
        classes=planned.classes(),
        num_features=planned.num_features,
        settings=planned.settings(precision),
        precision=precision,
    )
    if repairs:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(repairs.items()))
        output.remark(f"actions corrected to fit their videos: {kinds}")
    size = out.stat().st_size
    output.say(f"{out}: {counted(len(planned.files), 'video')}, {size / 1e6:.1f} MB")
    output.say(
        f"train on them with --set data.shards={out} --set data.num_features={planned.num_features} "
        "--set encoder.weights=null"
    )
    return {
        "out": out,
        "bytes": size,
        "videos": len(planned.files),
        "missing": planned.missing,
        "unused": planned.unused,
        "layout": planned.layout,
        "num_features": planned.num_features,
        "repairs": dict(repairs),
        "settings": planned.settings(precision),
    }


EPILOG = """
\b
Examples:
  leantad import-features i3d/ thumos14.json --stride 4 --fps 30 --clip-frames 16 --out thumos_i3d.h5
  leantad import-features tsp/ activity_net.v1-3.min.json --stride 16 --fps 15 --out anet_tsp.h5
  leantad import-features cuhk_100/ activity_net.v1-3.min.json --rescaled --layout tc --out anet_tsn.h5
"""
POSITIVE = click.FloatRange(0, min_open=True)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("features", type=PATH)
@click.argument("annotations", type=PATH)
@click.option("--out", type=PATH, required=True, help="Feature file to write (.h5).")
@click.option("--stride", type=POSITIVE, metavar="FRAMES", help="From one feature to the next.")
@click.option("--fps", type=POSITIVE, help="Frames a second that the stride counts.")
@click.option("--clip-frames", type=POSITIVE, metavar="FRAMES", help="A feature's. Default: the stride.")
@click.option("--offset", type=float, default=0.0, metavar="FRAMES", help="Where the first clip begins.")
@click.option("--rescaled", is_flag=True, help="Features evenly cover each video, whatever its length.")
@click.option("--layout", type=click.Choice(["tc", "ct"]), help="Time x channels, or not. Default: a guess.")
@click.option(
    "--precision",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="Numbers that are stored.",
)
@force_option
@output_options
@click.pass_context
def main(
    ctx: click.Context,
    features: Path,
    annotations: Path,
    out: Path,
    stride: float | None,
    fps: float | None,
    clip_frames: float | None,
    offset: float,
    rescaled: bool,
    layout: Layout | None,
    precision: Precision,
    force: bool,
    output: Output,
) -> None:
    """Make one feature file of FEATURES, a folder with a file a video (.npy, .npz, .pt, .csv) or an HDF5 file
    with all, and ANNOTATIONS (.json, .csv).

    Times must be stated: --stride and --fps, or --rescaled. Which axis is time is guessed, and said. Files
    are matched with videos by name, whatever their folder or ending. An annotated video without features is
    named, and makes the exit code 1; it stays in the denominator of mAP.
    """
    if out.suffix != ".h5":
        raise ValueError(f"--out {out}: want a name that ends in .h5")
    check_new_file(out, force=force)
    from tools.features.foreign import find_features
    from tools.features.importing import Import, Timing

    timing = Timing.of_options(
        rescaled=rescaled, stride=stride, fps=fps, clip_frames=clip_frames, offset=offset
    )
    videos = read_annotations(annotations)
    with writing_file(out, "import-features"):
        check_new(out, force=force)
        planned = Import.plan(find_features(features), videos, timing, layout)
        say_what_was_found(planned, output, guessed=layout is None)
        output.document(write(planned, out, precision, output))
    missing = planned.missing
    named = f"{features}: no features of {counted(len(missing), 'annotated video')}: {first_names(missing)}"
    exit_with(ctx, [named] if missing else [])


if __name__ == "__main__":
    main()
