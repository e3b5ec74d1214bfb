"""The parts of a training run and its progress: built from settings, resumed from its folder, saved to it.

The steps are in `train/loop.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from math import ceil, floor
from pathlib import Path
from typing import Any

from torch import Tensor

from model.rewire import set_beta
from model.schedule import beta_at, ratio_at
from pipeline.loader import Loader
from pipeline.schemas import read_yaml
from pipeline.text import counted, shown
from train.build_network import build_network, for_resume, resolve_device, say_what_the_backbone_is
from train.changes import measured_otherwise
from train.checkpoint import (
    PROGRESS,
    RESUME,
    SETTINGS,
    finish_validation,
    going_on,
    last_checkpoint,
    read_progress,
    write_checkpoint,
)
from train.cli import to_stderr
from train.data import check_same_data, digest_of_windows, open_data, summary_of_actions
from train.distributed import barrier, rank, world_size
from train.engine import (
    build_engine,
    full_state_dict,
    load_state,
    precision_of,
    save_state,
    start_process_group,
)
from train.evaluation.class_thresholds import ClassThresholds
from train.numerics import set_numerics
from train.optimizer import OptimizerSettings, read_ds_config, with_precision
from train.progress import Progress
from train.settings import Settings
from train.weight_average import WeightAverage


class Run:
    """Data, engine and progress of one training run.

    steps_per_epoch, total_steps: optimizer steps. beta: the coefficient of the reversible recurrence that the
    network has now, that of the last step (before the first: of the first); None if nothing is reversible.
    precision: of weights and activations, "bf16" or "float32". average: of the weights; None if
    optimizer.ema_decay is 0.
    """

    def __init__(self, settings: Settings, folder: Path, *, resume: bool):
        """All ranks build it. resume: go on from the last checkpoint, which must be there."""
        self.settings, self.folder = settings, folder
        self.device = start_process_group(resolve_device(settings.run.device))
        set_numerics(settings.run, self.device)
        self.dataset = open_data(settings)
        self.train_loader = self._loader(settings.data.train_subset, training=True)
        self.val_loader = self._loader(settings.data.val_subset, training=False)
        self.progress = self._read_progress() if resume else self._first_progress()
        steps = self.train_loader.steps_per_epoch / settings.optimizer.accumulation_steps
        # An epoch is at least a pass over the data; a run of an earlier version keeps its shorter ones.
        self.steps_per_epoch = ceil(steps) if self.progress.samples else max(1, floor(steps))
        self.total_steps = settings.run.epochs * self.steps_per_epoch
        network = build_network(for_resume(settings) if resume else settings, len(self.dataset.classes))
        say_what_the_backbone_is(network, settings.data)
        self.engine = build_engine(
            network, self._optimizer_settings(), ds_config=self._ds_config(), total_steps=self.total_steps
        )
        self.precision = precision_of(self.engine)
        decay = settings.optimizer.ema_decay
        self.average = WeightAverage(self.engine, decay) if decay else None
        self.is_measured_anew = False  # resumed, with other settings of what is measured
        if resume:
            self._resume()
        self.thresholds: tuple[int, ClassThresholds | None] = (-1, None)  # of the weights after this step
        self.beta: float | None = None
        self.set_beta(max(self.progress.step - 1, 0))

    def _loader(self, subset: str, *, training: bool) -> Loader:
        return Loader(
            self.dataset,
            self.settings.data,
            subset=subset,
            batch_size=self.settings.optimizer.batch_size,
            seed=self.settings.seed,
            rank=rank(),
            world_size=world_size(),
            device=self.device,
            training=training,
            remark=to_stderr,
        )

    def _optimizer_settings(self) -> OptimizerSettings:
        """The settings; without DeepSpeed's Adam for CPUs where a resumed run must not differ."""
        optimizer = self.settings.optimizer
        return optimizer.model_copy(
            update={"cpu_adam": optimizer.cpu_adam and not self.settings.run.deterministic}
        )

    def _ds_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration; TensorBoard, if it is on, writes into the run folder."""
        config = with_precision(read_ds_config(self.settings.run.ds_config), self.settings.run.precision)
        if config.get("tensorboard", {}).get("enabled") and not config["tensorboard"].get("output_path"):
            config["tensorboard"]["output_path"] = str(self.folder)
        return config

    def _last_checkpoint(self) -> Path:
        last = last_checkpoint(self.folder)
        assert last is not None, "resume: nothing to resume"
        return last

    def _first_progress(self) -> Progress:
        samples = self.train_loader.samples
        videos = {sample.video.key: sample.video for sample in samples}
        ground_truth = self.dataset.ground_truth(self.settings.data.val_subset)
        return Progress(
            samples=len(samples),
            windows=digest_of_windows(samples),
            actions=summary_of_actions(videos.values()),
            ground_truth=summary_of_actions(ground_truth.values()),
        )

    def _read_progress(self) -> Progress:
        """Where the run stood; ValueError if the data set is not the one it began with."""
        last = self._last_checkpoint()
        added_later = ("samples", "windows", "validation_due", "actions", "ground_truth")
        stated = {**{name: getattr(Progress, name) for name in added_later}, **read_progress(last)}
        missing = [name for name in asdict(Progress()) if name not in stated]
        if missing:
            raise ValueError(f"{last / PROGRESS}: {missing[0]} is missing; resume from another checkpoint")
        progress = Progress(**stated)
        check_same_data(last, self.dataset, self.settings.data)
        here, advice = self._first_progress(), "resume with that data set, or start anew with another --out"
        if progress.samples not in (0, here.samples):
            raise ValueError(
                f"{self.settings.data.shards}: {counted(here.samples, 'training window')}, the run began "
                f"with {progress.samples:,}; {advice}"
            )
        if progress.windows not in ("", here.windows):
            raise ValueError(
                f"{self.settings.data.shards}: as many training windows as the run began with, but of other "
                f"videos, or videos of other lengths; {advice}"
            )
        return progress

    def _resume(self) -> None:
        """Load what the last checkpoint holds into engine, average and loader."""
        last, progress = self._last_checkpoint(), self.progress
        load_state(self.engine, last / RESUME)
        if self.average is not None:
            self.average.load(last / RESUME)
        self.train_loader.load_state_dict(progress.loader)
        self._say_what_changed(read_yaml(last / SETTINGS))

    def _say_what_changed(self, stated: dict[str, Any]) -> None:
        """Say on rank 0 what is trained and measured otherwise than before; stated: the settings before."""
        progress, here, lines = self.progress, self._first_progress(), []
        if progress.actions not in ("", here.actions):
            lines.append(
                f"{self.settings.data.shards}: trained on other annotations from here on: {here.actions}; "
                f"before: {shown(progress.actions, 60)}"
            )
        changed = measured_otherwise(stated, self.settings.model_dump(mode="json"))
        if not changed and progress.ground_truth not in ("", here.ground_truth):
            changed = ["ground truth"]
        if changed:
            self.is_measured_anew, progress.best, progress.metrics = True, -1.0, {}
            names = ", ".join(changed)
            lines.append(f"validated with another {names} from here on: the best is measured anew")
        progress.actions, progress.ground_truth = here.actions, here.ground_truth
        for line in lines if rank() == 0 else ():
            to_stderr(line)

    def set_beta(self, step: int) -> None:
        """Give the network the coefficient of a step, counted from 0."""
        encoder, has_encoder = self.settings.encoder, self.settings.data.num_features is None
        reversible = encoder.reversible and has_encoder
        self.beta = beta_at(encoder.beta_of_run, step, self.total_steps) if reversible else None
        if self.beta is not None:
            set_beta(self.engine.module, self.beta)

    def set_ratios(self, step: int) -> None:
        """Give the network the sampling ratios of a step, counted from 0."""
        encoder = self.settings.encoder
        if self.settings.data.num_features is None:
            self.engine.module.clip_ratio = ratio_at(
                encoder.clip_ratio, encoder.clip_ratio_schedule, step, self.total_steps
            )
        detector = self.settings.detector
        self.engine.module.detector.proposal_ratio = ratio_at(
            detector.proposal_ratio, detector.proposal_ratio_schedule, step, self.total_steps
        )

    def _save_state(self, folder: Path) -> None:
        save_state(self.engine, folder)
        if self.average is not None:
            self.average.save(folder)

    def _check_finite(self, state: dict[str, Tensor]) -> None:
        """ValueError if a step broke the weights: their checkpoint would remove the one to go on from."""
        trained = (name for name, p in self.engine.module.named_parameters() if p.requires_grad)
        broken = next((name for name in trained if not state[name].isfinite().all()), None)
        if broken is not None:
            raise ValueError(
                f"{self.folder}: after step {self.progress.step} weights are not finite (first {broken}), "
                f"for a gradient was not, so they were not saved; {going_on(self.folder)}; if it happens "
                "again, start anew with lower learning rates, or ZeRO stage 1, which leaves out such steps"
            )

    def _stated_settings(self) -> dict[str, Any]:
        """Those of the weights in a checkpoint."""
        settings = self.settings.model_dump(mode="json")
        settings["run"]["precision"] = self.precision  # what was auto
        if self.beta is not None:  # its network is the one that the weights were last trained in
            settings["encoder"]["beta"] |= {"schedule": "constant", "end": self.beta}
        return settings

    def _thresholds_now(self) -> ClassThresholds | None:
        """Those of the present weights, if they were validated; on rank 0."""
        return self.thresholds[1] if self.thresholds[0] == self.progress.step else None

    def save(self) -> None:
        """Write checkpoints/step_XXXXXX and point `last` at it; all ranks call it."""
        state = full_state_dict(self.engine)
        self._check_finite(state)
        self.progress.loader = self.train_loader.state_dict()
        write_checkpoint(
            self.folder,
            self.progress.step,
            state=state,
            average=self.average.full_state_dict() if self.average is not None else None,
            settings=self._stated_settings(),
            classes=list(self.dataset.classes),
            packing=self.dataset.packing,
            progress=asdict(self.progress),
            thresholds=self._thresholds_now(),
            save_resume=self._save_state,
        )

    def finish_validation(self, *, is_best: bool) -> None:
        """State in the last checkpoint, of the present weights, what was found; all ranks call it."""
        last = self.folder / "checkpoints" / "last"
        if not last.is_symlink():  # of a copy made without links; the next checkpoint removes this folder
            self.save()
        self.progress.validation_due = False
        if rank() == 0:
            finish_validation(
                last.with_name(last.resolve().name),  # where checkpoints/ is a link, too
                settings=self._stated_settings(),
                progress=asdict(self.progress),
                thresholds=self._thresholds_now(),
                is_best=is_best,
            )
        barrier()
