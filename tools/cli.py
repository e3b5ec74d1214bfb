"""The `leantad` command: train, eval, and one subcommand for every other file of tools/."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

# name -> (module whose `main` is the command, one line of help); here, so that --help imports none of them
COMMANDS = {
    "make-synthetic": ("tools.make_synthetic", "Render the built-in videos and their annotations."),
    "make-shards": ("tools.make_shards", "Check videos and annotations and pack them into shards."),
    "convert-annotations": (
        "tools.convert_annotations",
        "Convert annotations from and to BORIS, ELAN, VIA, CVAT and others.",
    ),
    "inspect": ("tools.inspect_shards", "Show what is in a data set and which settings fit it."),
    "settings": ("tools.settings", "Explain every setting: type, range, default and meaning."),
    "plan": ("tools.plan", "Estimate the GPU memory of a run, by part, and what fits."),
    "extract-features": (
        "tools.extract_features",
        "Encode a data set once, to train detectors on its features.",
    ),
    "import-features": (
        "tools.import_features",
        "Make a feature file of other projects' features and annotations.",
    ),
    "train": ("train.main", "Train a detector end to end from a recipe."),
    "predict": ("tools.predict", "Find actions in video files: JSON, CSV and subtitles."),
    "export": ("tools.export", "Write a model as one file, to give to somebody."),
    "classify": ("tools.classify", "Show what a pretrained classifier sees in videos, over time."),
    "eval": ("train.eval", "Measure mAP of a checkpoint, raw outputs or detections."),
    "compare": ("tools.compare", "Compare two result files: is the difference in mAP real?"),
    "view": ("tools.view", "Show detections beside their videos: HTML pages, sorted by error."),
    "ablate": ("tools.ablate", "Compare settings: a grid of runs with several seeds, one table."),
    "convert-weights": ("tools.convert_weights", "Convert other projects' pretrained checkpoints."),
    "rewire": ("tools.rewire", "Show what becomes reversible in any network, module by module."),
    "bench-coverage": (
        "tools.bench_coverage",
        "Measure how much of timm's, torchvision's and Hugging Face's networks can be rewired.",
    ),
    "bench-data": (
        "tools.bench_data",
        "Measure how fast clips are decoded, against PyAV, decord and torchcodec.",
    ),
    "bench-eval": ("tools.bench_eval", "Measure the speed of evaluation and soft-NMS on made-up data."),
    "bench-growth": (
        "tools.bench_growth",
        "Measure by which power each command's cost grows with a data set.",
    ),
    "bench-memory": ("tools.bench_memory", "Measure peak training memory with and without the savings."),
    "bench-pack": ("tools.bench_pack", "Measure what packing costs, against PyAV and FFmpeg's command line."),
    "bench-predict": (
        "tools.bench_predict",
        "Measure how fast predict is, part by part, against a plain loop.",
    ),
    "bench-rewire": ("tools.bench_rewire", "Measure the time and the precision of rewired backbones."),
    "bench-sampling": (
        "tools.bench_sampling",
        "Measure the gradient of each way to sample clips against the full one.",
    ),
    "bench-step": ("tools.bench_step", "Measure a training step in each way to save memory, against plain."),
    "doctor": ("tools.doctor", "Check that this machine can train, and say what to do if not."),
    "gpu-check": ("tools.gpu_check", "Measure on a GPU what cannot be proven without one."),
}


class LazyGroup(click.Group):
    """A click group that knows its commands' names and help and imports a command to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).main
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            from train.cli import refuse_usage  # not for --help

            refuse_usage(error)

    def invoke(self, ctx: click.Context) -> Any:
        from train.cli import exit_on_ctrl_c, refuse_usage  # not for --help

        try:
            with exit_on_ctrl_c():  # a command is imported before it is called
                return super().invoke(ctx)
        except click.UsageError as error:  # no such command
            refuse_usage(error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def installed_version() -> str:
    """The version that pip installed, or `(not installed)` for a checkout that never was."""
    try:
        return version("leantad")
    except PackageNotFoundError:
        return "(not installed)"


@click.command(cls=LazyGroup)
@click.version_option(installed_version(), prog_name="leantad")
def main() -> None:
    """Train temporal action detectors end to end, from raw video, in the memory of a small GPU."""


if __name__ == "__main__":
    main()
