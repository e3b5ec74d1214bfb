"""One run: data, engine and progress, built from settings, resumed from and saved into its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.rewire import set_beta
from model.schedule import beta_at
from pipeline.batch import Batch
from pipeline.dataset import Dataset
from pipeline.loader import Loader
from train.build_network import build_network, resolve_device
from train.checkpoint import check_classes, last_checkpoint, read_progress, write_checkpoint
from train.cli import to_stderr
from train.distributed import rank, world_size
from train.engine import build_engine, full_state_dict, load_state, save_state, start_process_group
from train.optimizer import DS_CONFIG, read_ds_config
from train.settings import Settings


@dataclass
class Progress:
    """Where the run stands; written into every checkpoint."""

    step: int = 0
    best: float = -1.0
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "eval": 0.0})
    loader: dict[str, int] = field(default_factory=lambda: {"epoch": 0, "step": 0})
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last evaluation


class Run:
    """One training run: what fit() drives. Built from settings, resumed from a checkpoint, stepped, saved."""

    def __init__(self, settings: Settings, folder: Path, *, resume: bool):
        self.settings, self.folder = settings, folder
        self.device = start_process_group(resolve_device(settings.run.device))
        self.dataset = Dataset.open(settings.data.shards)
        self.train_loader = self._loader(settings.data.train_subset, training=True)
        self.val_loader = self._loader(settings.data.val_subset, training=False)
        accumulation = settings.optimizer.accumulation_steps
        self.steps_per_epoch = max(1, self.train_loader.steps_per_epoch // accumulation)
        self.total_steps = settings.run.epochs * self.steps_per_epoch
        self.engine = build_engine(
            build_network(settings, len(self.dataset.classes)),
            settings.optimizer,
            ds_config=self._ds_config(),
            total_steps=self.total_steps,
        )
        self.progress = Progress()
        if resume:
            self._resume()
        self._set_beta()

    def _ds_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration; TensorBoard, if it is on, writes into the run folder."""
        config = read_ds_config(self.settings.run.ds_config or DS_CONFIG)
        if config.get("tensorboard", {}).get("enabled") and not config["tensorboard"].get("output_path"):
            config["tensorboard"]["output_path"] = str(self.folder)
        return config

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

    def _resume(self) -> None:
        last = last_checkpoint(self.folder)
        assert last is not None, "resume: nothing to resume"
        check_classes(last, self.dataset.classes)
        self.progress = Progress(**read_progress(last))
        load_state(self.engine, last / "resume")
        self.train_loader.load_state_dict(self.progress.loader)

    def beta(self) -> float | None:
        """The coefficient of the last step (at the start: of the first); None if nothing is reversible."""
        if not self.settings.encoder.reversible:
            return None
        return beta_at(self.settings.encoder.beta, max(self.progress.step - 1, 0), self.total_steps)

    def begin_step(self) -> None:
        """Count the step and bring the network to its coefficient, which validation after it uses too."""
        self.progress.step += 1
        self._set_beta()

    def _set_beta(self) -> None:
        beta = self.beta()
        if beta is not None:
            set_beta(self.engine.module, beta)

    def _settings_now(self) -> dict[str, Any]:
        """The settings of a checkpoint: its beta is the one that the weights were last trained with."""
        values = self.settings.model_dump(mode="json")
        if self.settings.encoder.reversible:
            values["encoder"]["beta"] |= {"schedule": "constant", "end": self.beta()}
        return values

    def epoch(self) -> int:
        """Epochs completed."""
        return self.progress.step // self.steps_per_epoch

    def next_batches(self, iterator: Iterator[Batch]) -> list[Batch]:
        """The micro batches of the next optimizer step."""
        return [next(iterator) for _ in range(self.settings.optimizer.accumulation_steps)]

    def save(self, *, is_best: bool = False) -> None:
        """Write checkpoints/step_XXXXXX and swing `last` (and `best`) to it; all ranks call it."""
        self.progress.loader = self.train_loader.state_dict()
        write_checkpoint(
            self.folder,
            self.progress.step,
            state=full_state_dict(self.engine),
            settings=self._settings_now(),
            classes=list(self.dataset.classes),
            packing=self.dataset.packing,
            progress=asdict(self.progress),
            save_resume=lambda folder: save_state(self.engine, folder, {}),
            is_best=is_best,
        )
