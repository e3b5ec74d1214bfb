"""Tells whether a run fits into a GPU, part by part, without one, and which settings fit.

One training step of the recipe's network runs on fake tensors (planning/step.py); what DeepSpeed, the loader
and the decoder hold is added by arithmetic (planning/estimate.py); settings that fit are searched
(planning/search.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from train.cli import Command, Output, one_line, output_options

if TYPE_CHECKING:
    from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
    from tools.planning.estimate import Estimate, Source
    from tools.planning.search import Option
    from train.settings import Settings

HELP = """Estimate the peak GPU memory of a training run, by part, without a GPU.

Then the largest piece of clips, batch or clip ratio that fits, as --set options. Exit code 1 if nothing fits.
A tenth of the GPU is left for what cannot be foreseen: workspaces of kernels, gaps of the allocator.
"""
BAR = 24  # characters of the longest bar
CLASSES = 200  # ActivityNet's; assumed without a data set
ASPECT = 16 / 9  # of the videos, assumed without a data set


def facts(settings: Settings, classes: int | None, output: Output, *, must: bool) -> tuple[int, Source]:
    """Number of classes and size of the pictures: from the data set, or (unless `must`) assumed aloud."""
    from pipeline.dataset import Dataset
    from tools.planning.estimate import Source

    try:
        dataset = Dataset.open(settings.data.shards)
    except (ValueError, OSError) as error:  # planning may come before packing
        if must:
            raise
        source = Source(settings.data.resize, round(settings.data.resize * ASPECT))
        output.remark(
            f"{one_line(error)}: assumed {classes or CLASSES} classes (--classes sets them) and videos of "
            f"{source.width}x{source.height} pixels"
        )
        return classes or CLASSES, source
    videos = dataset.packed(settings.data.train_subset)
    largest = max(videos, key=lambda video: video.width * video.height)
    return classes or len(dataset.classes), Source(largest.height, largest.width)


def table(estimate: Estimate, memory: int) -> str:
    """The parts as aligned text with a bar each; memory: bytes of the device."""
    top = max(estimate.parts.values())
    lines = [f"{'part':<22}{'MiB':>10}{'share':>8}"]
    for part, size in estimate.parts.items():
        bar = "#" * round(BAR * size / top)
        lines.append(f"{part:<22}{size / 2**20:>10.1f}{size / estimate.total:>8.1%}  {bar}".rstrip())
    whole = f"{memory / 2**30:g} GiB"
    lines.append(f"{'peak':<22}{estimate.total / 2**20:>10.1f}{estimate.total / memory:>8.1%} of {whole}")
    return "\n".join(lines)


def remedy(part: str, settings: Settings, engine: DeepSpeedMemoryConfig) -> str:
    """What makes this part smaller, beyond batch, pieces and ratio."""
    from tools.planning.deepspeed_memory import OPTIMIZER
    from tools.planning.estimate import CONTEXT, DECODER
    from tools.planning.step import BOUNDARIES, BUCKETS, FEATURES, FRAMES, WORKING

    if part in (BOUNDARIES, WORKING):
        if not settings.encoder.reversible and not settings.encoder.frozen:
            return "set encoder.reversible=true"
        halve = "" if engine.bf16 else "bf16 in ds_config.json, "
        return f"{halve}a smaller data.crop, fewer data.clip_frames or a smaller encoder.backbone"
    if part == OPTIMIZER and not engine.offloads_optimizer and not engine.on_cpu:
        return "zero_optimization.offload_optimizer cpu in ds_config.json, or more --processes"
    return {
        FRAMES: "a smaller data.crop, data.num_clips or data.prefetch",
        FEATURES: "a smaller detector.proposal_ratio or detector.num_steps",
        DECODER: "fewer data.decode_chunk_frames, or videos packed smaller",
        BUCKETS: "a smaller zero_optimization.reduce_bucket_size in ds_config.json",
        CONTEXT: "a larger GPU",
    }.get(part, "bf16 in ds_config.json or a smaller encoder.backbone")


def document(estimate: Estimate, memory: int, fits: bool, options: list[Option]) -> dict[str, Any]:
    """The result for machines; sizes in bytes."""
    return {
        "memory": memory,
        "peak": estimate.total,
        "moment": estimate.moment,
        "parts": estimate.parts,
        "fits": fits,
        "options": [{"set": o.changes, "peak": o.total, "why": o.why} for o in options],
    }


def advice(options: list[Option], memory: int, fits: bool) -> str:
    """Whether the recipe fits, and the options, one per line, ready to be copied."""
    width = max(len(option.line()) for option in options)
    these = "each of these" if len(options) > 1 else "this"
    head = f"It fits. So does {these}:" if fits else f"It does not fit. {these.capitalize()} does:"
    return "\n".join([head, *(f"  {o.line():<{width}}  {o.total / memory:>4.0%}  {o.why}" for o in options)])


def refusal(least: Estimate, memory: int, settings: Settings, engine: DeepSpeedMemoryConfig) -> str:
    """Why not even the least of all settings fits, and what would help."""
    from tools.planning.estimate import CONTEXT

    by_size = sorted(least.parts, key=lambda part: -least.parts[part])
    large = [part for part in by_size if part != CONTEXT][:2]
    if least.parts.get(CONTEXT, 0) >= memory:
        large = [CONTEXT]
    sizes = " and ".join(f"{least.parts[part] / 2**30:.2f} for {part}" for part in large)
    remedies = dict.fromkeys(remedy(part, settings, engine) for part in large)  # each once, in order
    return (
        f"plan: nothing fits into {memory / 2**30:g} GiB: one clip at a time is {least.total / 2**30:.2f}, "
        f"of it {sizes}; change: {'; '.join(remedies)}"
    )


@click.command(
    cls=Command,
    help=HELP,
    epilog="Example: leantad plan --recipe activitynet_r2plus1d34 --memory 8",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    required=True,
    help="A YAML file, or a shipped recipe's name.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--shards", help="The data set, if it is not the recipe's.")
@click.option("--classes", type=click.IntRange(1), help="Number of classes, while there is no data set.")
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), default=8, show_default=True, help="GiB of the GPU."
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="GPUs of the run.")
@click.option("--ds-config", type=click.Path(path_type=Path), help="DeepSpeed's file, if not the recipe's.")
@output_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    shards: str | None,
    classes: int | None,
    memory: float,
    processes: int,
    ds_config: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
    from tools.planning.estimate import GIB, HEADROOM, estimate
    from tools.planning.search import Search
    from train.optimizer import has_compiler, read_ds_config
    from train.settings import load_settings

    output = Output(quiet, as_json)
    chosen = (*overrides, f"data.shards={shards}") if shards else overrides
    settings = load_settings(recipe, chosen)
    engine = DeepSpeedMemoryConfig.of(
        read_ds_config(ds_config or settings.run.ds_config),
        processes,
        device="cpu" if settings.run.device == "cpu" else "cuda",
        cpp_adam=settings.optimizer.cpu_adam and has_compiler(),
    )
    num_classes, source = facts(settings, classes, output, must=shards is not None)

    def of(candidate: Settings) -> Estimate:
        return estimate(candidate, engine, num_classes=num_classes, source=source)

    size = round(memory * GIB)
    budget = round(size * (1 - HEADROOM))
    whole = of(settings)
    where = "process(es) on a CPU" if engine.on_cpu else "GPU(s)"
    output.say(
        f"{recipe.stem}, one of {processes} {where}, ZeRO {engine.stage}, at its peak in {whole.moment}:"
    )
    output.say(table(whole, size))
    fits = whole.total <= budget
    search = Search(settings, lambda candidate: of(candidate).total, budget)
    options = search.options()
    output.document(document(whole, size, fits, options))
    if options:
        output.say(advice(options, size, fits))
        return
    click.echo(refusal(of(search.smallest()), size, settings, engine), err=True)
    raise click.exceptions.Exit(1)


main = command

if __name__ == "__main__":
    main()
