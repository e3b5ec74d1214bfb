"""fit(): the training run. train_step() is one optimizer step: forward and backward of its micro batches."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.backbones.batch_norm import trained_statistics
from model.rewire import reconstruction_error
from pipeline.batch import Batch
from pipeline.features.reader import FeatureReader
from pipeline.order import stable_seed
from pipeline.reader import UnreadableSample
from pipeline.text import counted
from pipeline.windows import seconds_to_steps
from train.checkpoint import going_on
from train.cli import Output
from train.distributed import any_rank, average_over_ranks, barrier, lost_connection, rank, world_size
from train.engine import learning_rates, log_scalars
from train.learning_check import learning_warning
from train.numerics import uses_tf32
from train.optimizer import has_compiler
from train.run import Run
from train.runlog import RunLog, memory_mib
from train.settings import Settings
from train.validate import ground_truth_of, update_report, validate, validate_checkpoint, write_metrics

# Relative, of a stage input that was computed backwards: far above the roundings that smallest_beta accepts
LARGEST_ERROR = 0.1


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why and what to do; the last checkpoint is safe."""


class Interrupt:
    """Ctrl-C and SIGTERM set `asked`, which is obeyed at the end of a step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = self.is_kept = False
        self.previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def keep(self) -> None:
        """Never put the former handlers back: the process ends, but says why before its launcher ends it."""
        self.is_kept = True

    def restore(self) -> None:
        """Put the former handlers back, unless they are kept."""
        if not self.is_kept:
            for number, handler in self.previous.items():
                signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------- a step


@dataclass(frozen=True)
class StepResult:
    """Losses of a step, averaged over micro batches and ranks: {"loss": the total, then its parts by name}.

    interrupted: whether a signal had reached any rank when the losses were read.
    """

    losses: dict[str, float]
    interrupted: bool


def ground_truth_in_steps(batch: Batch, num_steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Per video: segments (A, 2) in feature steps and labels (A,), on the CPU."""
    segments = []
    for seconds, window in zip(batch.gt_segments, batch.windows.tolist(), strict=True):
        steps = seconds_to_steps(seconds.numpy(), (window[0], window[1]), num_steps)
        segments.append(torch.as_tensor(steps, dtype=torch.float32))
    return segments, list(batch.gt_labels)


def read_losses(
    losses: Sequence[dict[str, Tensor]], *, interrupted: bool
) -> tuple[list[dict[str, float]], StepResult | None]:
    """The losses of this rank as numbers; what the step returns, None if a total is not finite on any rank.

    It is one wait for the device, whatever the number of losses. All ranks call it.
    """
    table = torch.stack([torch.stack([value.float() for value in row.values()]) for row in losses])
    failed = (~table[:, 0].isfinite()).any().float()
    flags = any_rank(torch.stack([failed, table.new_full((), float(interrupted))]))
    average_over_ranks([means := table.clone()])
    values = torch.cat([table.flatten(), means.flatten(), flags]).tolist()
    starts = range(0, 2 * table.numel(), table.shape[1])
    rows = [
        dict(zip(row, values[start : start + len(row)], strict=True))
        for row, start in zip([*losses, *losses], starts, strict=True)
    ]
    own, of_all = rows[: len(losses)], rows[len(losses) :]
    if values[-2]:
        return own, None
    mean = {name: sum(row[name] / len(losses) for row in of_all) for name in losses[0]}
    return own, StepResult(mean, bool(values[-1]))


def train_step(run: Run, batches: Sequence[Batch], *, interrupted: bool) -> StepResult:
    """One optimizer step over its micro batches; interrupted: whether a signal has come to this rank.

    Raises TrainingStopped, before the update, if a loss is not finite on any rank. All its randomness
    (clips, proposals, drop-path) follows from the run's seed, the number of the step and the rank, so that a
    resumed run repeats it.
    """
    engine, step = run.engine, run.progress.step
    seed = stable_seed(run.settings.seed, "step", step, rank()) % 2**63
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    run.set_beta(step)
    run.set_ratios(step)
    engine.train()
    losses: list[dict[str, Tensor]] = []
    result: StepResult | None = None
    for batch in batches:  # their clips wait in host memory: the encoder copies chunk by chunk
        segments, labels = ground_truth_in_steps(batch, run.settings.detector.num_steps)
        shares = batch.video_shares if run.settings.data.pad_short_videos else None
        loss, parts = engine(  # --------------------------------------------------------- forward
            batch.inputs, segments, labels, generator=generator, video_shares=shares
        )
        losses.append({"loss": loss.detach(), **parts})
        if len(losses) == len(batches):  # ---------------------------------------------- the only wait
            own_losses, result = read_losses(losses, interrupted=interrupted)
            if result is None:
                raise TrainingStopped(not_finite(own_losses, batches))
        engine.backward(loss)  # -------------------------------------------------------- the only backward
        engine.step()  # ---------------------------------------------------------------- updates at the last
        del loss  # the graph holds the clips
    average_over_ranks(trained_statistics(engine.module))  # a rank's own are of its videos alone
    run.progress.step += 1
    assert result is not None, "a step has a last micro batch"
    return result


def not_finite(losses: Sequence[dict[str, float]], batches: Sequence[Batch]) -> str:
    """The message for a loss that is no number, in one of the micro batches of this rank or on another."""
    failed = [number for number, row in enumerate(losses) if not math.isfinite(row["loss"])]
    if not failed:
        return (
            "the loss is not finite on another rank, whose output names the videos; "
            "--resume goes on from the last checkpoint"
        )
    number = failed[0]
    loss, parts = losses[number]["loss"], list(losses[number].items())[1:]
    bad = [name for name, value in parts if not math.isfinite(value)]
    where = f"in {', '.join(bad)}" if bad else "in their sum"
    return (
        f"loss is {loss:g} ({where}) for videos {', '.join(batches[number].keys)}: look at these "
        "videos and their annotations, or lower optimizer.encoder_lr and optimizer.detector_lr; "
        "--resume goes on from the last checkpoint"
    )


def out_of_memory(folder: Path, error: torch.OutOfMemoryError) -> str:
    """The message for a GPU without memory: how much was asked for, what to do."""
    return (
        f"the GPU has no memory left ({str(error).split('. GPU')[0]}); --set a smaller "
        "encoder.clips_per_forward or data.decode_chunk_mib (leantad plan --memory GIB chooses them), with "
        f"which a run may be resumed, or start anew with a smaller optimizer.batch_size; {going_on(folder)}"
    )


# -------------------------------------------------------------------------------------------------- a run


def log_step(
    run: Run, log: RunLog, losses: dict[str, float], data_seconds: float, step_seconds: float
) -> None:
    """The progress line always, log.jsonl and TensorBoard every run.log_every steps."""
    memory, step = memory_mib(run.device), run.progress.step
    loss, parts = losses["loss"], {name: value for name, value in losses.items() if name != "loss"}
    epoch = (step - 1) // run.steps_per_epoch + 1
    log.advance(epoch=epoch, loss=loss, data_seconds=data_seconds, step_seconds=step_seconds, memory=memory)
    if step % run.settings.run.log_every and step != run.total_steps:
        return
    norm = run.engine.get_global_grad_norm()
    error = reconstruction_error(run.engine.module)
    if error is not None and error > LARGEST_ERROR:
        log.warn_once(
            "states",
            f"step {step}: the encoder's states, computed backwards, are off by {error:.0%} (want at most "
            f"{LARGEST_ERROR:.0%}), so its gradient is not the network's: they grow too much within a stage; "
            "set encoder.reversible to false",
        )
    log.write(
        "train",
        step=step,
        epoch=round(step / run.steps_per_epoch, 3),
        loss=loss,
        parts=parts,
        lr=learning_rates(run.engine),
        grad_norm=None if norm is None else float(norm),
        beta=run.beta,
        clip_ratio=run.engine.module.clip_ratio,
        proposal_ratio=run.engine.module.detector.proposal_ratio,
        reconstruction_error=error,
        data_seconds=round(data_seconds, 4),
        step_seconds=round(step_seconds, 4),
        memory_mib=round(memory, 1),
    )
    log_scalars(run.engine, step, {"loss": loss, **{f"loss/{name}": value for name, value in parts.items()}})


def warn_if_nothing_is_learned(run: Run, log: RunLog) -> None:
    """Say so if the last validation, from a third of the steps on, found no more than chance would."""
    ground_truth = ground_truth_of(run)
    step, total_steps = run.progress.step, run.total_steps
    warning = learning_warning(
        run.progress.metrics, ground_truth, run.settings, step=step, total_steps=total_steps
    )
    if warning is not None:
        log.warn(warning)


def measure(run: Run, log: RunLog) -> None:
    """Validate the weights of the last checkpoint, which is the best if they are, and draw the report."""
    step, settings = run.progress.step, run.settings
    epoch = step // run.steps_per_epoch
    start = time.perf_counter()
    metrics = run.progress.metrics = validate(run)
    run.progress.seconds["eval"] += time.perf_counter() - start
    log.write("eval", step=step, epoch=epoch, metrics=metrics)
    log.say(f"epoch {epoch}: average mAP {metrics['average_mAP']:.4f} on {settings.data.val_subset}")
    warn_if_nothing_is_learned(run, log)
    log_scalars(run.engine, step, {"average_mAP": metrics["average_mAP"]})
    is_best = metrics["average_mAP"] > run.progress.best
    run.progress.best = max(run.progress.best, metrics["average_mAP"])
    run.finish_validation(is_best=is_best)
    if step < run.total_steps:
        update_report(run)


def measure_anew(run: Run, log: RunLog) -> None:
    """After a change of what is measured: measure the best weights, and the last of a complete run.

    So the best stay the best until others are better by the new measure. Killed meanwhile, a complete run is
    left without metrics.json, which states the old one.
    """
    if rank() == 0:
        (run.folder / "metrics.json").unlink(missing_ok=True)
    best, last = (run.folder / "checkpoints" / name for name in ("best", "last"))
    is_last = best.resolve() == last.resolve()
    if best.is_dir() and not is_last:
        run.progress.best = validate_checkpoint(run, best)
        log.say(f"best so far: average mAP {run.progress.best:.4f} on {run.settings.data.val_subset}")
    if is_last or run.progress.validation_due or run.progress.step >= run.total_steps:
        measure(run, log)


def end_epoch(run: Run, log: RunLog) -> None:
    """Save the weights, then measure them if that is due: a run that ends meanwhile has lost no step."""
    epoch, is_last = run.progress.step // run.steps_per_epoch, run.progress.step >= run.total_steps
    run.progress.validation_due = is_last or epoch % run.settings.run.eval_every == 0
    run.save()
    if run.progress.validation_due:
        measure(run, log)


def run_steps(run: Run, log: RunLog, interrupt: Interrupt) -> bool:
    """Step until the last step or an interrupt; False if interrupted (and saved)."""
    batches = iter(run.train_loader)
    accumulation, every = run.settings.optimizer.accumulation_steps, run.settings.run.checkpoint_every
    while run.progress.step < run.total_steps:
        start = time.perf_counter()
        micro_batches = [next(batches) for _ in range(accumulation)]
        loaded = time.perf_counter()
        skipped = run.engine.skipped_steps
        result = train_step(run, micro_batches, interrupted=interrupt.asked)
        del micro_batches
        done = time.perf_counter()
        if run.engine.skipped_steps > skipped:  # by DeepSpeed, in silence
            log.warn(f"step {run.progress.step}: a gradient was not finite, the weights stay as they were")
        elif run.average is not None:
            run.average.update()
        run.progress.seconds["train"] += done - start
        log_step(run, log, result.losses, loaded - start, done - loaded)
        if run.progress.step % run.steps_per_epoch == 0:
            end_epoch(run, log)
        elif every and run.progress.step % every == 0:
            run.save()
        # Several ranks agreed within the step: asking them again would be another wait for the device.
        if interrupt.asked if world_size() == 1 else result.interrupted:
            run.save()
            return False
    return True


def describe_steps(run: Run, log: RunLog) -> None:
    """Print what a step and an epoch are; warn if a step sees the same windows twice, or Adam is slow."""
    optimizer, num_windows = run.settings.optimizer, len(run.train_loader.samples)
    size = world_size() * optimizer.batch_size * optimizer.accumulation_steps
    log.say(
        f"{counted(world_size(), 'rank')} x {counted(optimizer.batch_size, 'video')} x "
        f"{optimizer.accumulation_steps} = {counted(size, 'video')} a step, "
        f"{counted(run.steps_per_epoch, 'step')} an epoch, {run.total_steps} in all, on {run.device} "
        f"in {run.precision}"
    )
    if isinstance(reader := run.train_loader.reader, FeatureReader) and (text := reader.stride_warning()):
        log.warn(text)
    if size > num_windows:
        log.warn(
            f"a step takes {size} windows of video, {run.settings.data.train_subset} has {num_windows}, so "
            "that each step repeats some; choose ranks x optimizer.batch_size x "
            f"optimizer.accumulation_steps to be {num_windows} at most"
        )
    if run.engine.zero_cpu_offload() and optimizer.cpu_adam and not has_compiler():
        log.warn(
            "no C++ compiler for DeepSpeed's Adam: the offloaded optimizer is PyTorch's, which is slower; "
            "install g++ and ninja-build, or set zero_optimization.offload_optimizer.device to none"
        )


def fit(settings: Settings, folder: Path, *, resume: bool, output: Output) -> bool:
    """Train from settings into the run folder; True when the run is complete, False when it was interrupted.

    resume: go on from checkpoints/last, on the very next sample. Raises TrainingStopped, ValueError.
    """
    run = Run(settings, folder, resume=resume)
    log = RunLog(folder, rank=rank(), total_steps=run.total_steps, progress=run.progress, output=output)
    log.write(
        "start",
        step=run.progress.step,
        world_size=world_size(),
        device=str(run.device),
        precision=run.precision,
        tf32=uses_tf32(run.settings.run, run.device),
        deterministic=run.settings.run.deterministic,
        torch=torch.__version__,
    )
    describe_steps(run, log)
    interrupt = Interrupt()
    try:
        if run.is_measured_anew:
            measure_anew(run, log)
        elif run.progress.validation_due:
            measure(run, log)
        complete = run_steps(run, log, interrupt)
        log.write("stop", step=run.progress.step, complete=complete)
    except UnreadableSample as error:
        more = run.settings.data.skip_bad + 1
        advice = f"to go on without it: --resume --set data.skip_bad={more}"
        raise ValueError(f"{error}; {advice}; {going_on(folder)}") from error
    except torch.OutOfMemoryError as error:
        raise TrainingStopped(out_of_memory(folder, error)) from error
    except RuntimeError as error:
        if world_size() > 1 and lost_connection(error):
            interrupt.keep()
        raise
    finally:
        interrupt.restore()
        log.close()
        run.train_loader.close()
        run.val_loader.close()
    if complete:
        write_metrics(run)
    update_report(run)
    barrier()
    return complete
