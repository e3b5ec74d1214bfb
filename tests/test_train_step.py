"""train_step alone, with an engine that counts: what it returns, when it stops, how often it waits."""

from __future__ import annotations

import weakref
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from train import distributed, loop
from train.loop import TrainingStopped, train_step
from train.run import Progress, Run
from train.settings import RECIPES, dump_settings, load_settings


class Engine:
    """Returns the losses it was given, one micro batch after another, and counts its calls."""

    skipped_steps = 0
    module = torch.nn.Module()

    def __init__(self, losses: list[dict[str, float]]):
        self.losses, self.calls = iter(losses), Counter()

    def __call__(self, clips, segments, labels, *, generator, video_shares):
        loss, *parts = next(self.losses).items()
        return torch.tensor(loss[1]), {name: torch.tensor(value) for name, value in parts}

    def train(self):
        self.calls["train"] += 1

    def backward(self, loss):
        self.calls["backward"] += 1

    def step(self):
        self.calls["step"] += 1


def run_of(losses: list[dict[str, float]]) -> SimpleNamespace:
    settings = SimpleNamespace(
        seed=3, detector=SimpleNamespace(num_steps=4), data=SimpleNamespace(pad_short_videos=False)
    )
    betas: list[int] = []
    ratios: list[int] = []
    return SimpleNamespace(
        settings=settings,
        progress=Progress(step=7),
        engine=Engine(losses),
        device=torch.device("cpu"),
        set_beta=betas.append,
        set_ratios=ratios.append,
        betas=betas,
        ratios=ratios,
        average=None,
    )


def batches_of(*keys: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            inputs=torch.zeros(1),
            keys=(key,),
            windows=torch.tensor([[0.0, 8.0]], dtype=torch.float64),
            gt_segments=(torch.tensor([[2.0, 4.0]], dtype=torch.float64),),
            gt_labels=(torch.tensor([1]),),
        )
        for key in keys
    ]


def test_a_step_returns_the_means_of_its_micro_batches_and_counts_itself_last():
    run = run_of([{"loss": 3.0, "a": 1.0, "b": 2.0}, {"loss": 5.0, "a": 2.0, "b": 3.0}])
    result = train_step(run, batches_of("v", "w"), interrupted=False)
    assert result.losses == {"loss": 4.0, "a": 1.5, "b": 2.5} and not result.interrupted
    assert run.engine.calls == {"train": 1, "backward": 2, "step": 2}
    assert run.progress.step == 8 and run.betas == run.ratios == [7]  # those of the step that runs


def test_the_true_actions_of_a_batch_become_feature_steps():
    (batch,) = batches_of("v")
    segments, labels = loop.ground_truth_in_steps(batch, 4)
    assert segments[0].tolist() == [[1.0, 2.0]] and segments[0].dtype == torch.float32
    assert labels[0].tolist() == [1]
    batch.windows += 100.0
    batch.gt_segments[0].add_(100.0)
    assert loop.ground_truth_in_steps(batch, 4)[0][0].tolist() == [[1.0, 2.0]], "of a later window as well"


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_waits_for_the_device_once(count, monkeypatch):
    waits = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, original=original: waits.append(self.device) or original(self)
        )
    run = run_of([{"loss": 1.0, "a": 0.5, "b": 0.5}] * count)
    monkeypatch.setattr(loop, "ground_truth_in_steps", lambda batch, num_steps: ([], []))  # is on the host
    train_step(run, batches_of("u", "v", "w")[:count], interrupted=False)
    assert len(waits) == 1


def test_a_micro_batch_whose_loss_is_no_number_is_named_before_the_update():
    good = {"loss": 3.0, "a": 1.0, "b": 2.0}
    run = run_of([good, {"loss": float("nan"), "a": 1.0, "b": float("inf")}, good])
    with pytest.raises(TrainingStopped, match=r"loss is nan \(in b\) for videos v: look at these videos"):
        train_step(run, batches_of("u", "v", "w"), interrupted=False)
    assert run.engine.calls["step"] == 2, "the third would update the weights"
    assert run.progress.step == 7


class LookingEngine(Engine):
    """An engine that keeps what it is given, and the seeds of the generators that it is called with."""

    def __init__(self, losses):
        super().__init__(losses)
        self.given: list[torch.Tensor] = []
        self.shares: list[torch.Tensor | None] = []
        self.seeds: list[tuple[int, int]] = []

    def __call__(self, clips, segments, labels, *, generator, video_shares):
        self.given.append(clips)
        self.shares.append(video_shares)
        self.seeds.append((torch.initial_seed(), generator.initial_seed()))
        return super().__call__(clips, segments, labels, generator=generator, video_shares=video_shares)


def test_no_batch_is_moved_to_the_device_as_a_whole():
    """The encoder copies chunks of it, see tests/test_model_clip_chunks.py."""
    losses = [{"loss": 1.0, "a": 1.0}] * 3
    run, batches = run_of(losses), batches_of("u", "v", "w")
    run.engine = LookingEngine(losses)
    train_step(run, batches, interrupted=False)
    assert all(clips is batch.inputs for clips, batch in zip(run.engine.given, batches, strict=True))


def seeds_of(monkeypatch, *, rank: int, step: int, seed: int = 3) -> tuple[int, int]:
    """Of torch's generator and of the one that is handed on, in a step of a rank."""
    run = run_of([])
    run.engine, run.progress.step, run.settings.seed = LookingEngine([{"loss": 1.0, "a": 1.0}]), step, seed
    monkeypatch.setattr(loop, "rank", lambda: rank)
    torch.manual_seed(5)  # what was drawn before does not count
    train_step(run, batches_of("v"), interrupted=False)
    return run.engine.seeds[0]


def test_what_is_drawn_in_a_step_follows_from_seed_step_and_rank(monkeypatch):
    one = seeds_of(monkeypatch, rank=0, step=7)
    others = ({"rank": 1, "step": 7}, {"rank": 0, "step": 8}, {"rank": 0, "step": 7, "seed": 4})
    found = [seeds_of(monkeypatch, **other) for other in others]
    assert len({seed for seeds in (one, *found) for seed in seeds}) == 4, "equal only within a step of a rank"
    assert seeds_of(monkeypatch, rank=0, step=7) == one


@pytest.mark.parametrize("is_padded", [True, False])
def test_the_network_is_told_where_padded_videos_end(is_padded):
    run, (batch,) = run_of([]), batches_of("v")
    run.engine, batch.video_shares = LookingEngine([{"loss": 1.0, "a": 1.0}]), torch.tensor([0.25])
    run.settings.data.pad_short_videos = is_padded
    train_step(run, [batch], interrupted=False)
    assert run.engine.shares == [batch.video_shares if is_padded else None]


def prepare_steps(monkeypatch, run, batches, *, total: int, per_epoch: int, accumulation: int = 1) -> None:
    """Give a run what run_steps asks for: batches, how many steps, no checkpoints in between, no log."""
    run.settings.optimizer = SimpleNamespace(accumulation_steps=accumulation)
    run.settings.run = SimpleNamespace(checkpoint_every=0)
    run.train_loader, run.total_steps, run.steps_per_epoch = batches, total, per_epoch
    monkeypatch.setattr(loop, "log_step", lambda *arguments: None)


def test_no_batch_is_held_while_the_run_validates(monkeypatch):
    found, made = [], []

    def new_batch():
        (batch,) = batches_of("v")
        made.append(weakref.ref(batch.inputs))
        return batch

    run = run_of([{"loss": 1.0, "a": 1.0}] * 4)
    prepare_steps(monkeypatch, run, iter(new_batch, None), total=9, per_epoch=1, accumulation=2)
    monkeypatch.setattr(
        loop, "end_epoch", lambda run, log: found.append(sum(clips() is not None for clips in made))
    )
    assert loop.run_steps(run, None, SimpleNamespace(asked=False))
    assert found == [0, 0] and len(made) == 4


def test_the_average_follows_the_steps_that_moved_the_weights_alone(monkeypatch):
    def step(run, batches, *, interrupted):
        run.engine.skipped_steps += run.progress.step == 7
        run.progress.step += 1
        return loop.StepResult({"loss": 1.0}, False)

    run, updates, warnings = run_of([]), list[int](), list[str]()
    run.average = SimpleNamespace(update=lambda: updates.append(run.progress.step))
    prepare_steps(monkeypatch, run, iter(batches_of(*"uvw")), total=10, per_epoch=99)
    monkeypatch.setattr(loop, "train_step", step)
    assert loop.run_steps(run, SimpleNamespace(warn=warnings.append), SimpleNamespace(asked=False))
    assert updates == [9, 10] and len(warnings) == 1


@pytest.mark.parametrize(("ranks", "asked", "agreed"), [(1, True, False), (2, False, True), (2, True, True)])
def test_an_interrupt_ends_the_steps_and_is_saved(monkeypatch, ranks, asked, agreed):
    def step(run, batches, *, interrupted):
        run.progress.step += 1
        return loop.StepResult({"loss": 1.0}, agreed and run.progress.step == 9)

    run, saved = run_of([]), list[int]()
    run.save = lambda: saved.append(run.progress.step)
    prepare_steps(monkeypatch, run, iter(batches_of(*"uvw")), total=10, per_epoch=99)
    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(loop, "world_size", lambda: ranks)
    assert not loop.run_steps(run, None, SimpleNamespace(asked=asked))
    assert saved == [8 if ranks == 1 else 9], "several ranks stop at the step in which they agreed"


def with_another_rank(monkeypatch, its_values: dict[int, list[float]]) -> None:
    """Let there be a second rank, which adds these values wherever ranks add up so many of them."""

    def all_reduce(values, op=None):
        if op is None:
            values += torch.tensor(its_values[len(values)])

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)


def test_the_losses_of_a_step_are_means_over_the_ranks(monkeypatch):
    with_another_rank(monkeypatch, {4: [6.0, 3.0, 2.0, 2.0]})
    run = run_of([{"loss": 3.0, "a": 1.0}, {"loss": 5.0, "a": 2.0}])
    result = train_step(run, batches_of("v", "w"), interrupted=False)
    assert result.losses == {"loss": 4.0, "a": 2.0}


@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_of_trained_batch_norms_are_those_of_all_ranks(monkeypatch, training):
    with_another_rank(monkeypatch, {2: [9.0, 9.0], 4: [3.0, 3.0, 7.0, 7.0]})
    run = run_of([{"loss": 3.0, "a": 3.0}])
    norm = run.engine.module = torch.nn.BatchNorm1d(2).train(training)  # mean 0 and variance 1
    train_step(run, batches_of("v"), interrupted=False)
    expected = ([1.5, 1.5], [4.0, 4.0]) if training else ([0.0, 0.0], [1.0, 1.0])
    assert (norm.running_mean.tolist(), norm.running_var.tolist()) == expected


def test_what_happens_on_another_rank_stops_this_one(monkeypatch):
    monkeypatch.setattr(loop, "any_rank", torch.ones_like)
    run = run_of([{"loss": 3.0, "a": 3.0}])
    with pytest.raises(TrainingStopped, match="loss is not finite on another rank, whose output") as caught:
        train_step(run, batches_of("v"), interrupted=False)
    assert "look at these videos" not in str(caught.value), "its own are innocent"
    monkeypatch.setattr(loop, "any_rank", lambda flags: torch.tensor([0.0, 1.0]))
    run = run_of([{"loss": 3.0, "a": 3.0}])
    assert train_step(run, batches_of("v"), interrupted=False).interrupted


def test_a_checkpoint_states_the_beta_of_its_weights_and_only_thresholds_of_them():
    run, thresholds = Run.__new__(Run), object()
    run.settings = load_settings(RECIPES / "demo.yaml", ["encoder.beta.schedule=linear"])
    run.precision, run.beta, run.progress = "bf16", 0.25, Progress(step=7)
    stated = run._stated_settings()
    assert stated["encoder"]["beta"]["schedule"] == "constant" and stated["encoder"]["beta"]["end"] == 0.25
    assert stated["run"]["precision"] == "bf16"
    run.thresholds = (6, thresholds)
    assert run._thresholds_now() is None
    run.thresholds = (7, thresholds)
    assert run._thresholds_now() is thresholds


@pytest.mark.parametrize(
    ("found", "is_best", "best"), [(0.4, False, 0.5), (0.5, False, 0.5), (0.6, True, 0.6)]
)
def test_the_best_stays_until_another_is_better(monkeypatch, found, is_best, best):
    run, said = run_of([]), list[bool]()
    run.steps_per_epoch, run.total_steps, run.progress.best = 7, 7, 0.5
    run.settings.data.val_subset = "validation"
    run.finish_validation = lambda *, is_best: said.append(is_best)
    monkeypatch.setattr(loop, "validate", lambda run: {"average_mAP": found})
    for name in ("warn_if_nothing_is_learned", "log_scalars"):
        monkeypatch.setattr(loop, name, lambda *arguments: None)
    log = SimpleNamespace(write=lambda *a, **k: None, say=lambda line: None)
    loop.measure(run, log)
    assert said == [is_best] and run.progress.best == best


@pytest.mark.parametrize("subset", ["validation", "training"])
def test_a_run_that_is_measured_otherwise_forgets_what_was_best(tmp_path, monkeypatch, subset):
    run, best = Run.__new__(Run), {"average_mAP": 0.9}
    run.settings = load_settings(RECIPES / "demo.yaml", ["data.val_subset=training"])
    run.progress, run.is_measured_anew = Progress(best=0.9, metrics=best), False
    run.engine = run.average = None
    run.train_loader = SimpleNamespace(load_state_dict=lambda state: None)
    run._last_checkpoint, run._first_progress = lambda: tmp_path, Progress
    (tmp_path / "settings.yaml").write_text(
        dump_settings(load_settings(RECIPES / "demo.yaml", [f"data.val_subset={subset}"]))
    )
    monkeypatch.setattr("train.run.load_state", lambda engine, folder: None)
    run._resume()
    found = (run.is_measured_anew, run.progress.best, run.progress.metrics)
    assert found == ((False, 0.9, best) if subset == "training" else (True, -1.0, {}))


def test_a_signal_of_this_rank_is_among_those_that_a_step_tells():
    assert train_step(run_of([{"loss": 3.0}]), batches_of("v"), interrupted=True).interrupted


@pytest.mark.parametrize(("step", "due"), [(2, False), (4, True), (6, False), (10, True)])
def test_the_weights_of_the_last_epoch_are_measured_though_no_validation_falls_on_it(monkeypatch, step, due):
    run, measured = run_of([]), list[int]()
    run.steps_per_epoch, run.total_steps, run.progress.step = 2, 10, step
    run.settings.run, run.save = SimpleNamespace(eval_every=2), lambda: None
    monkeypatch.setattr(loop, "measure", lambda run, log: measured.append(run.progress.step))
    loop.end_epoch(run, None)
    assert (run.progress.validation_due, measured) == (due, [step] if due else [])


@pytest.mark.parametrize(
    ("best", "due", "step", "measured"),
    [
        ("a", False, 4, ["a"]),
        ("a", True, 4, ["a", "last"]),
        ("a", False, 10, ["a", "last"]),
        ("b", False, 4, ["last"]),
        (None, False, 4, []),
    ],
)
def test_after_a_change_of_the_measure_the_best_is_measured_and_the_last_where_it_is_due(
    tmp_path, monkeypatch, best, due, step, measured
):
    run, found, checkpoints = run_of([]), list[str](), tmp_path / "checkpoints"
    for name in "ab":
        (checkpoints / name).mkdir(parents=True)
    for link, name in {"last": "b", "best": best}.items():
        if name:
            (checkpoints / link).symlink_to(name)
    run.folder, run.total_steps, run.settings.data.val_subset = tmp_path, 10, "validation"
    run.progress.step, run.progress.validation_due = step, due
    monkeypatch.setattr(loop, "validate_checkpoint", lambda run, at: found.append(at.resolve().name) or 0.5)
    monkeypatch.setattr(loop, "measure", lambda run, log: found.append("last"))
    loop.measure_anew(run, SimpleNamespace(say=lambda line: None))
    assert found == measured and run.progress.best == (0.5 if "a" in measured else -1.0)
