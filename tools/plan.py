"""Tells whether a run fits into a GPU, part by part, without one, and which settings fit.

One training step of the recipe's network runs on fake tensors (planning/step.py); what DeepSpeed, the loader
and the decoder hold is added by arithmetic (planning/estimate.py); settings that fit are searched
(planning/search.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import columns
from train.cli import PATH, Command, Output, exit_with, one_line, output_options, trust_option

if TYPE_CHECKING:
    from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
    from tools.planning.estimate import Estimate, FrameSize
    from tools.planning.search import Suggestion
    from train.settings import Settings

HELP = """Estimate the peak GPU memory of a training run, by part, without a GPU.

Then the most clips per forward, the largest batch or clip ratio that fits, as --set options. Exit code 1 if
nothing fits. A tenth of the GPU is left for what cannot be foreseen: workspaces of kernels, gaps of the
allocator.
"""
BAR = 24  # characters of the longest bar
CLASSES = 200  # ActivityNet's; assumed without a data set
SLICED = ("video_swin", "videomae")  # backbones whose branches run on slices
ASPECT = 16 / 9  # of the videos, assumed without a data set


@dataclass(frozen=True)
class PlanOptions:
    """The options of the command: a run, and the GPU that it should fit into."""

    recipe: Path
    overrides: tuple[str, ...]
    shards: str | None
    classes: int | None
    memory: float  # GiB
    processes: int
    ds_config: Path | None
    trust: bool

    def settings(self) -> Settings:
        """The settings of the run."""
        from train.settings import load_settings

        shards = (f"data.shards={self.shards}",) if self.shards else ()
        settings = load_settings(self.recipe, (*self.overrides, *shards), trust=self.trust)
        if settings.data.num_features is not None:
            raise ValueError(
                f"{self.recipe}: trains on features (data.num_features), without an encoder, and its memory "
                "needs no plan; want a recipe of videos"
            )
        return settings

    def classes_and_frame_size(self, settings: Settings, output: Output) -> tuple[int, FrameSize]:
        """Number of classes, and largest frames: the data set's, or assumed unless --shards names one."""
        from pipeline.dataset import Dataset
        from tools.planning.estimate import FrameSize

        classes = 1 if settings.detector.class_agnostic else self.classes
        try:
            dataset = Dataset.open(settings.data.shards)
        except (ValueError, OSError) as error:  # planning may come before packing
            if self.shards is not None:
                raise
            classes = classes or CLASSES
            side = settings.data.short_side
            source = FrameSize(side, round(side * ASPECT))
            output.remark(
                f"{one_line(error)}: assumed {classes} classes (--classes sets them) and videos of "
                f"{source.width}x{source.height} pixels"
            )
            return classes, source
        videos = dataset.packed(settings.data.train_subset)
        largest = max(videos, key=lambda video: video.width * video.height)
        return classes or len(dataset.classes), FrameSize(largest.height, largest.width)


def table(estimate: Estimate, memory: int) -> str:
    """The parts as aligned text with a bar each; memory: bytes of the device."""
    top = max(estimate.parts.values())
    rows = [["part", "MiB", "share", ""]]
    for part, size in estimate.parts.items():
        bar = "#" * round(BAR * size / top)
        rows.append([part, f"{size / 2**20:.1f}", f"{size / estimate.total:.1%}", bar])
    total = [f"{estimate.total / 2**20:.1f}", f"{estimate.total / memory:.1%}"]
    rows.append(["peak", *total, f"of {memory / 2**30:g} GiB"])
    return columns(rows, "<>><")


def remedy(part: str, settings: Settings, deepspeed: DeepSpeedMemoryConfig) -> str:
    """What makes this part smaller, beyond batch, clips per forward and ratio."""
    from tools.planning.deepspeed_memory import OPTIMIZER
    from tools.planning.estimate import CONTEXT, DECODER
    from tools.planning.step import BOUNDARIES, BUCKETS, FEATURES, FRAMES, WORKING

    if part in (BOUNDARIES, WORKING):
        if not settings.encoder.reversible and not settings.encoder.frozen:
            return "set encoder.reversible=true"
        halve = "" if deepspeed.bf16 else "bf16 in ds_config.json, "
        sliced = settings.encoder.reversible and settings.encoder.backbone.startswith(SLICED)
        slices = "a smaller encoder.slice_mib, " if sliced and part == WORKING else ""
        return f"{halve}{slices}a smaller data.crop, fewer data.clip_frames or a smaller encoder.backbone"
    if part == OPTIMIZER and not deepspeed.offloads_optimizer and not deepspeed.on_cpu:
        return "zero_optimization.offload_optimizer cpu in ds_config.json, or more --processes"
    return {
        FRAMES: "a smaller data.crop, data.num_clips or data.prefetch",
        FEATURES: "a smaller detector.actionformer.embed_dim or detector.num_steps"
        if settings.detector.kind == "actionformer"
        else "a smaller detector.proposal_ratio or detector.num_steps",
        DECODER: "a smaller data.decode_chunk_mib, or videos packed smaller",
        BUCKETS: "a smaller zero_optimization.reduce_bucket_size in ds_config.json",
        CONTEXT: "a larger GPU",
    }.get(part, "bf16 in ds_config.json or a smaller encoder.backbone")


def frames_kept(settings: Settings) -> str | None:
    """What choosing clips in the backward pass keeps until then; None if they are chosen before."""
    encoder, data = settings.encoder, settings.data
    if encoder.frozen or encoder.clip_sampling not in ("top_gradient", "importance"):
        return None
    size = settings.optimizer.batch_size * data.num_clips * data.clip_frames * 3 * data.crop**2
    return (
        f"encoder.clip_sampling {encoder.clip_sampling} chooses in the backward pass: the frames of all "
        f"clips, {size / 2**20:.1f} MiB as uint8, are kept until then, in host memory"
    )


def document(estimate: Estimate, memory: int, fits: bool, suggestions: list[Suggestion]) -> dict[str, Any]:
    """The result for machines; sizes in bytes."""
    return {
        "memory": memory,
        "peak": estimate.total,
        "moment": estimate.moment,
        "parts": estimate.parts,
        "fits": fits,
        "options": [{"set": one.changes, "peak": one.total, "why": one.why} for one in suggestions],
    }


def suggestion_text(suggestions: list[Suggestion], memory: int, fits: bool) -> str:
    """Whether the recipe fits, and the suggestions, one per line, ready to be copied."""
    these = "each of these" if len(suggestions) > 1 else "this"
    head = f"It fits. So does {these}:" if fits else f"It does not fit. {these.capitalize()} does:"
    rows = [[one.options(), f"{one.total / memory:.0%}", one.why] for one in suggestions]
    return f"{head}\n{columns(rows, '<><', indent='  ')}"


def nothing_fits(least: Estimate, memory: int, settings: Settings, deepspeed: DeepSpeedMemoryConfig) -> str:
    """Why not even the least of all settings fits, and what would help."""
    from tools.planning.estimate import CONTEXT

    by_size = sorted(least.parts, key=lambda part: -least.parts[part])
    large = [part for part in by_size if part != CONTEXT][:2]
    if least.parts.get(CONTEXT, 0) >= memory:
        large = [CONTEXT]
    sizes = " and ".join(f"{least.parts[part] / 2**30:.2f} for {part}" for part in large)
    remedies = dict.fromkeys(remedy(part, settings, deepspeed) for part in large)  # each once, in order
    return (
        f"--memory: nothing fits into {memory / 2**30:g} GiB: one clip at a time is "
        f"{least.total / 2**30:.2f}, of it {sizes}; change: {'; '.join(remedies)}"
    )


@click.command(
    cls=Command, help=HELP, epilog="Example: leantad plan --recipe activitynet_r2plus1d34 --memory 8"
)
@click.option("--recipe", type=PATH, required=True, help="A YAML file, or a shipped recipe's name.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--shards", help="The data set, if it is not the recipe's.")
@click.option("--classes", type=click.IntRange(1), help="Number of classes, while there is no data set.")
@click.option("--memory", type=click.FloatRange(0, min_open=True), default=8, help="GiB of the GPU.")
@click.option("--processes", type=click.IntRange(1), default=1, help="GPUs of the run.")
@click.option("--ds-config", type=PATH, help="DeepSpeed's file, if not the recipe's.")
@trust_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
    from tools.planning.estimate import GIB, HEADROOM, estimate
    from tools.planning.search import SettingsSearch

    options = PlanOptions(**values)
    settings = options.settings()
    deepspeed = DeepSpeedMemoryConfig.of_run(settings, options.processes, options.ds_config)
    num_classes, source = options.classes_and_frame_size(settings, output)

    def estimate_of(candidate: Settings) -> Estimate:
        return estimate(candidate, deepspeed, num_classes=num_classes, source=source)

    size = round(options.memory * GIB)
    budget = round(size * (1 - HEADROOM))
    whole = estimate_of(settings)
    where = f"one of {options.processes} {'process(es) on a CPU' if deepspeed.on_cpu else 'GPU(s)'}"
    mode = f"{'bf16' if deepspeed.bf16 else 'float32'}, ZeRO {deepspeed.stage}"
    mode += ", optimizer offloaded" if deepspeed.offloads_optimizer else ""
    output.say(f"{options.recipe.stem}, {where}, {mode}, at its peak in {whole.moment}:")
    output.say(table(whole, size))
    if remark := frames_kept(settings):
        output.say(remark)
    search = SettingsSearch(settings, lambda candidate: estimate_of(candidate).total, budget)
    suggestions, fits = search.suggestions(), whole.total <= budget
    output.document(document(whole, size, fits, suggestions))
    if not suggestions:
        exit_with(ctx, [nothing_fits(estimate_of(search.smallest()), size, settings, deepspeed)])
    output.say(suggestion_text(suggestions, size, fits))


if __name__ == "__main__":
    main()
