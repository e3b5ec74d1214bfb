"""fit(): the training run. One train_step is one forward, one backward, one optimizer step."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import torch

from model.rewire import reconstruction_error
from pipeline.batch import Batch
from pipeline.order import stable_seed
from pipeline.text import counted
from pipeline.windows import seconds_to_steps
from train.distributed import any_rank, barrier, rank, world_size
from train.engine import learning_rates, log_scalars
from train.run import Run
from train.runlog import RunLog, memory_mib
from train.settings import Settings
from train.validate import update_report, validate, write_metrics


class TrainingStopped(Exception):
    """The run cannot go on; the message says why and what to do; the last checkpoint is safe."""


def truth_in_steps(batch: Batch, num_steps: int, device: torch.device) -> tuple[list, list]:
    """Per video: segments (A, 2) in feature steps and labels (A,), on the device."""
    segments, labels = [], []
    for i, seconds in enumerate(batch.gt_segments):
        window = (float(batch.windows[i, 0]), float(batch.windows[i, 1]))
        steps = seconds_to_steps(seconds.numpy(), window, num_steps)
        segments.append(torch.as_tensor(steps, dtype=torch.float32, device=device))
        labels.append(batch.gt_labels[i].to(device))
    return segments, labels


def train_step(
    engine: Any, batches: list[Batch], *, num_steps: int, seed: int
) -> tuple[float, dict[str, float]]:
    """One optimizer step over its micro batches; returns the loss and its parts, averaged over them.

    All randomness of the step (clips, proposals, drop-path) follows from `seed`, so a resumed run repeats it.
    """
    engine.train()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    total, sums = 0.0, {}
    for batch in batches:
        segments, labels = truth_in_steps(batch, num_steps, batch.clips.device)
        loss, parts = engine(batch.clips, segments, labels, generator=generator)  # ----- forward
        if any_rank(not torch.isfinite(loss)):
            raise TrainingStopped(not_finite(loss, parts, batch))
        engine.backward(loss)  # -------------------------------------------------------- the only backward
        engine.step()  # ---------------------------------------------------------------- at the boundary only
        total += float(loss.detach()) / len(batches)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    return total, sums


def not_finite(loss: torch.Tensor, parts: dict[str, torch.Tensor], batch: Batch) -> str:
    """The message for a loss that is no number, on this rank or on another."""
    bad = [name for name, value in parts.items() if not torch.isfinite(value).all()]
    where = f"in {', '.join(bad)}" if bad else "on another rank"
    return (
        f"loss is {float(loss.detach()):g} ({where}) for videos {', '.join(batch.keys)}: look at these "
        "videos and their annotations, or lower optimizer.encoder_lr and optimizer.detector_lr; "
        "--resume goes on from the last checkpoint"
    )


class Interrupt:
    """Ctrl-C and SIGTERM, noted and obeyed at the end of the step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def run_step(run: Run, batches: list[Batch]) -> tuple[float, dict[str, float]]:
    """train_step with the seed of this step and rank."""
    seed = stable_seed(run.settings.seed, "step", run.progress.step, rank()) % 2**63
    run.begin_step()
    return train_step(run.engine, batches, num_steps=run.settings.detector.num_steps, seed=seed)


def report_step(
    run: Run, log: RunLog, loss: float, parts: dict, data_seconds: float, step_seconds: float
) -> None:
    """The progress line always, log.jsonl and TensorBoard every run.log_every steps."""
    memory, step = memory_mib(run.device), run.progress.step
    epoch = (step - 1) // run.steps_per_epoch + 1
    log.advance(epoch=epoch, loss=loss, data_seconds=data_seconds, step_seconds=step_seconds, memory=memory)
    if step % run.settings.run.log_every and step != run.total_steps:
        return
    norm = run.engine.get_global_grad_norm()
    log.write(
        "train",
        step=step,
        epoch=round(step / run.steps_per_epoch, 3),
        loss=loss,
        parts=parts,
        lr=learning_rates(run.engine),
        grad_norm=None if norm is None else float(norm),
        beta=run.beta(),
        reconstruction_error=reconstruction_error(run.engine.module),
        data_seconds=round(data_seconds, 4),
        step_seconds=round(step_seconds, 4),
        memory_mib=round(memory, 1),
    )
    log_scalars(run.engine, step, {"loss": loss, **{f"loss/{name}": value for name, value in parts.items()}})


def evaluate_and_save(run: Run, log: RunLog) -> None:
    """At an epoch's end: validate if it is due, save, mark the best."""
    epoch, last = run.epoch(), run.progress.step >= run.total_steps
    if not last and epoch % run.settings.run.eval_every:
        run.save()
        return
    start = time.perf_counter()
    metrics = run.progress.metrics = validate(run)
    run.progress.seconds["eval"] += time.perf_counter() - start
    log.write("eval", step=run.progress.step, epoch=epoch, metrics=metrics)
    log.say(f"epoch {epoch}: average mAP {metrics['average_mAP']:.4f} on {run.settings.data.val_subset}")
    log_scalars(run.engine, run.progress.step, {"average_mAP": metrics["average_mAP"]})
    is_best = metrics["average_mAP"] > run.progress.best
    run.progress.best = max(run.progress.best, metrics["average_mAP"])
    run.save(is_best=is_best)
    if not last:
        update_report(run)


def train_until_done(run: Run, log: RunLog, interrupt: Interrupt) -> bool:
    """Step until the last step or an interrupt; False if interrupted (and saved)."""
    batches = iter(run.train_loader)
    every = run.settings.run.checkpoint_every
    while run.progress.step < run.total_steps:
        start = time.perf_counter()
        micro = run.next_batches(batches)
        loaded = time.perf_counter()
        loss, parts = run_step(run, micro)
        done = time.perf_counter()
        run.progress.seconds["train"] += done - start
        report_step(run, log, loss, parts, loaded - start, done - loaded)
        if run.progress.step % run.steps_per_epoch == 0:
            evaluate_and_save(run, log)
        elif every and run.progress.step % every == 0:
            run.save()
        if any_rank(interrupt.asked):
            run.save()
            return False
    return True


def say_size(run: Run, log: RunLog) -> None:
    """What a step and an epoch are, and a warning if a step sees the same windows twice."""
    optimizer, there = run.settings.optimizer, len(run.train_loader.samples)
    factors = "ranks x optimizer.batch_size x optimizer.accumulation_steps"
    size = world_size() * optimizer.batch_size * optimizer.accumulation_steps
    log.say(
        f"{counted(world_size(), 'rank')} x {counted(optimizer.batch_size, 'video')} x "
        f"{optimizer.accumulation_steps} = {counted(size, 'video')} a step, "
        f"{counted(run.steps_per_epoch, 'step')} an epoch, {run.total_steps} in all, on {run.device}"
    )
    if size > there:
        log.warn(
            f"a step takes {size} windows of video, {run.settings.data.train_subset} has "
            f"{there}, so that each step repeats some; choose {factors} to be {there} at most"
        )


def fit(settings: Settings, folder: Path, *, resume: bool = False, quiet: bool = False) -> bool:
    """Train from settings into the run folder; True when the run is complete, False when it was interrupted.

    resume: go on from checkpoints/last, on the very next sample. Raises TrainingStopped, ValueError.
    """
    run = Run(settings, folder, resume=resume)
    log = RunLog(folder, rank=rank(), total_steps=run.total_steps, first_step=run.progress.step, quiet=quiet)
    log.write(
        "start",
        step=run.progress.step,
        world_size=world_size(),
        device=str(run.device),
        torch=torch.__version__,
    )
    say_size(run, log)
    interrupt = Interrupt()
    try:
        complete = train_until_done(run, log, interrupt)
        log.write("stop", step=run.progress.step, complete=complete)
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
