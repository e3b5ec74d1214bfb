"""tools/plan.py: estimates against real steps, the loader's arithmetic, the search, the command."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import tools.planning.estimate
import tools.planning.step
from model.network import Network
from model.sampling import num_kept
from tools.benchmarks.trackers import LiveBytes
from tools.plan import frames_kept, main, remedy
from tools.planning.deepspeed_memory import DeepSpeedMemoryConfig
from tools.planning.estimate import DECODER_SESSION, PARTS, FrameSize, clip_bytes, decoder_bytes, estimate
from tools.planning.search import SettingsSearch, largest_that_fits, ratio_of
from tools.planning.step import (
    BOUNDARIES,
    FEATURES,
    FRAMES,
    GRADIENTS,
    WEIGHTS,
    WORKING,
    Reducer,
    StepPeak,
    fake_step,
    measure_step,
)
from train.settings import Settings, load_settings, settings_from

MIB = 2**20


def run_settings(**groups: dict) -> Settings:
    """The demo's kind of run, smaller; `groups` say what differs."""
    values: dict = {
        "data": {"shards": "none", "num_clips": 8, "clip_frames": 8, "resize": 32, "crop": 32},
        "encoder": {"backbone": "r2plus1d_tiny", "clips_per_forward": 4},
        "detector": {
            "num_steps": 8,
            "neck_dim": 16,
            "fc_dim": 32,
            "head_dim": 16,
            "roi_bins": 8,
            "regression_tiou": (0.7,),
        },
        "optimizer": {"batch_size": 2},
    }
    for group, changes in groups.items():
        values[group] = {**values.get(group, {}), **changes}
    return settings_from(values)


def real_peak(settings: Settings, *, device: str = "cpu") -> int:
    """Bytes of weights, clips and of what a real step allocates, all of it computed."""
    torch.manual_seed(0)
    network = Network(settings.encoder, settings.detector, num_classes=5).to(device).train()
    data = settings.data
    shape = (settings.optimizer.batch_size, data.num_clips, 3, data.clip_frames, data.crop, data.crop)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    known = {t.untyped_storage() for t in [*network.parameters(), *network.buffers(), clips]}
    live = LiveBytes({storage.data_ptr() for storage in known})
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with live if device == "cpu" else nullcontext():
        tools.planning.step.forward(settings, network, clips).backward()
    peak = live.peak if device == "cpu" else torch.cuda.max_memory_allocated() - before
    return peak + sum(storage.nbytes() for storage in known)


DEMO = {
    "data": {"num_clips": 16},
    "detector": {"num_steps": 16, "neck_dim": 64, "fc_dim": 128, "regression_tiou": (0.7, 0.8)},
}
ACTIONFORMER = {
    "data": {"num_clips": 16},
    "detector": {"kind": "actionformer", "num_steps": 32, "actionformer": {"embed_dim": 64, "head_dim": 64}},
}
R18 = {"data": {"num_clips": 4, "resize": 48, "crop": 48}, "optimizer": {"batch_size": 1}}


SWIN = {"data": {"num_clips": 2, "clip_frames": 16, "resize": 64, "crop": 64}, "optimizer": {"batch_size": 1}}
LONG = (pytest.mark.slow, pytest.mark.ci)
R18_ENCODER = {"backbone": "r2plus1d_18", "clips_per_forward": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "encoder", "reversible", "ratio"),
    [
        (DEMO, {}, True, 0.3),
        (ACTIONFORMER, {}, True, 0.3),
        pytest.param(DEMO, {}, False, 1.0, marks=pytest.mark.slow),
        pytest.param(R18, R18_ENCODER, True, 0.3, marks=LONG),
        pytest.param(R18, R18_ENCODER, True, 1.0, marks=LONG),
        pytest.param(R18, R18_ENCODER, False, 0.3, marks=LONG),
        pytest.param(SWIN, {"backbone": "video_swin_t", "slice_mib": 1}, True, 0.5, marks=LONG),
    ],
)
def test_the_estimate_is_the_peak_of_a_real_step(groups, encoder, reversible, ratio):
    settings = run_settings(**groups, encoder={**encoder, "reversible": reversible, "clip_ratio": ratio})
    found = fake_step(settings, 5)
    # what is promised; here both run the same operators, so they differ by a scalar or two
    assert found.total == pytest.approx(real_peak(settings), rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("reversible", [True, False])
def test_the_estimate_is_the_peak_on_a_gpu(reversible):
    """Large enough clips that 10 % is more than a workspace of cuDNN."""
    groups = {"data": {"num_clips": 16, "clip_frames": 16, "resize": 112, "crop": 112}}
    settings = run_settings(
        **groups, encoder={"backbone": "r2plus1d_18", "clips_per_forward": 8, "reversible": reversible}
    )
    found = fake_step(settings, 5)
    assert found.total == pytest.approx(real_peak(settings, device="cuda"), rel=0.1)


@pytest.mark.slow
def test_the_first_chunks_stand_for_all(monkeypatch):
    settings = run_settings(data={"num_clips": 12}, encoder={"clip_ratio": 0.5, "clip_sampling": "uniform"})
    few = fake_step(settings, 5)
    clip, kept = 3 * 8 * 32 * 32, num_kept(12, 0.5)
    assert few.parts[FRAMES] == 2 * (12 + kept) * clip, "the videos, and copies of every other clip"
    monkeypatch.setattr(tools.planning.step, "CHUNKS_RUN", {False: 99, True: 99})
    every = fake_step(settings, 5)
    assert few.total == pytest.approx(every.total, rel=0.002)  # what stays of a chunk: its features


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        "importance",
        *(pytest.param(name, marks=LONG) for name in ("labels", "farthest", "dpp", "top_gradient")),
    ],
)
def test_the_estimate_is_the_peak_of_a_real_step_however_clips_are_chosen(strategy):
    """In each mode as many clips are copied; where a chosen one is beside another, a few KB fewer."""
    settings = run_settings(encoder={"clip_ratio": 0.3, "clip_sampling": strategy})
    assert fake_step(settings, 5).total == pytest.approx(real_peak(settings), rel=0.1)


@pytest.mark.ci
@pytest.mark.slow
def test_frozen_stages_need_less_memory_as_in_a_real_step():
    peaks = []
    for number in (-1, 0, 1):
        settings = run_settings(**DEMO, encoder={"frozen_stages": number})
        peaks.append(fake_step(settings, 5))
        assert peaks[-1].total == pytest.approx(real_peak(settings), rel=0.1)
    assert peaks[0].trainable > peaks[1].trainable > peaks[2].trainable
    assert peaks[0].total > peaks[1].total > peaks[2].total


def test_frames_that_are_kept_for_a_choice_in_the_backward_pass_are_named():
    text = frames_kept(run_settings(encoder={"clip_sampling": "importance"}))
    assert (
        "the frames of all clips, 0.4 MiB as uint8, are kept until then, in host memory" in text
    )  # 2 x 8 x 8 x 3 x 32^2
    for encoder in ({}, {"clip_sampling": "dpp"}, {"clip_sampling": "importance", "frozen": True}):
        assert frames_kept(run_settings(encoder=encoder)) is None


@pytest.mark.slow
def test_a_run_that_begins_with_more_clips_is_planned_with_them():
    falling = {"schedule": "linear", "start": 0.6}  # 5 of 8 clips: their frames are copied
    few, many = run_settings(encoder={"clip_ratio": 0.2}), run_settings(encoder={"clip_ratio": 0.6})
    moving = run_settings(encoder={"clip_ratio": 0.2, "clip_ratio_schedule": falling})
    assert fake_step(few, 5).total < fake_step(moving, 5).total == fake_step(many, 5).total


@pytest.mark.slow
def test_a_chunk_without_a_graph_may_be_the_larger_one():
    """Few kept clips, the others in large chunks: the peak is in the forward pass."""
    encoder = {"clip_ratio": 0.1, "clips_per_forward": 11, "reversible": True}
    settings = run_settings(data={"num_clips": 12}, encoder=encoder, optimizer={"batch_size": 1})
    assert fake_step(settings, 5).total == pytest.approx(real_peak(settings), rel=0.01)  # all of it is seen


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["slowfast_50", "tsm_r18", "video_swin_t", "videomae_s"])
def test_every_family_is_built_without_values(backbone):
    settings = run_settings(encoder={"backbone": backbone})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = tools.planning.step._fake_network(settings, 5, torch.bfloat16, mode)
    assert all(isinstance(p, FakeTensor) and p.dtype == torch.bfloat16 for p in network.parameters())
    weight = torch.nn.init.trunc_normal_(torch.zeros(100))
    assert weight.std() > 0.5, "torch's own drawing is back"


@pytest.mark.slow
def test_torchs_own_tracker_finds_the_same_peak():
    from torch.distributed._tools.mem_tracker import MemTracker  # here, for it takes a second

    settings = run_settings()
    torch.manual_seed(0)
    network = Network(settings.encoder, settings.detector, num_classes=5).train()
    clips = torch.zeros(2, 8, 3, 8, 32, 32, dtype=torch.uint8)
    theirs = MemTracker()
    theirs.track_external(network, clips)
    with theirs:
        ours = measure_step(settings, network, clips)
    (peak,) = theirs.get_tracker_snapshot("peak").values()
    # theirs does not see the ground truth, which is made before the network runs
    assert ours.total == pytest.approx(peak["Total"], rel=1e-3)


@pytest.mark.slow
def test_rewiring_moves_memory_from_boundaries_and_keeps_the_rest():
    rewired = fake_step(run_settings(**R18, encoder=R18_ENCODER), 5)
    plain = fake_step(run_settings(**R18, encoder={**R18_ENCODER, "reversible": False}), 5)
    assert rewired.parts[BOUNDARIES] < plain.parts[BOUNDARIES] / 5
    assert rewired.parts[WEIGHTS] == plain.parts[WEIGHTS]
    assert rewired.parts[GRADIENTS] == pytest.approx(4 * rewired.trainable, rel=0.01)  # the stem's come last


@pytest.mark.slow
def test_bfloat16_takes_half():
    """Under ZeRO 3, where gradients are summed in the precision of the weights."""
    settings = run_settings(data={"resize": 64, "crop": 64})
    single, half = (
        fake_step(settings, 5, dtype=dtype, reducer=Reducer(10**9, partitioned=True))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.parts[WEIGHTS] == pytest.approx(single.parts[WEIGHTS] / 2, rel=0.01)
    # the states stay float32, the inside of a branch halves
    assert 0.4 < half.parts[WORKING] / single.parts[WORKING] < 0.95


def test_a_schedule_is_as_dear_as_its_dearest_end(monkeypatch):
    """A beta of 0 stores the states of every block, so the start of the run is its peak, whatever the end."""

    def by_beta(*_, beta: float, **__) -> StepPeak:
        return StepPeak({WORKING: 10**9 if beta == 0 else 1}, {}, (1,), (1,))

    monkeypatch.setattr(tools.planning.estimate, "fake_step", by_beta)
    beta = {"schedule": "linear", "start": 0.0, "end": 1.0}
    deepspeed, source = DeepSpeedMemoryConfig.from_ds_config({}, 1), FrameSize(32, 32)
    found = {
        reversible: estimate(
            run_settings(encoder={"beta": beta, "reversible": reversible}),
            deepspeed,
            num_classes=5,
            source=source,
        ).parts[WORKING]
        for reversible in (True, False)
    }
    assert found == {True: 10**9, False: 0}, "a plain network has no beta, and its peak is the update"


def test_a_frozen_encoder_is_planned_at_the_beta_where_it_stays(monkeypatch):
    betas = []
    fake = tools.planning.estimate.fake_step
    monkeypatch.setattr(
        tools.planning.estimate,
        "fake_step",
        lambda *arguments, beta, **options: betas.append(beta) or fake(*arguments, beta=beta, **options),
    )
    settings = run_settings(encoder={"beta": {"schedule": "linear", "start": 0.5}, "frozen": True})
    estimate(settings, DeepSpeedMemoryConfig.from_ds_config({}, 1), num_classes=5, source=FrameSize(32, 32))
    assert betas == [0.5]


# ------------------------------------------------------------------------------------ loader and decoder


def test_loader_and_decoder_by_hand():
    one = run_settings(data={"prefetch": 3}, optimizer={"batch_size": 1, "accumulation_steps": 2})
    batch = 8 * 3 * 8 * 32 * 32
    assert clip_bytes(one, on_cpu=True) == batch * (1 + 3)
    two = run_settings(optimizer={"batch_size": 2})
    assert clip_bytes(two, on_cpu=True) == 2 * batch, "one ahead"
    by_chunk = run_settings(encoder={"clips_per_forward": 3}, optimizer={"batch_size": 2})
    assert clip_bytes(by_chunk, on_cpu=False) == 2 * 3 * batch // 8, (
        "two chunks; the others are in host memory"
    )
    by_chunk = run_settings(encoder={"clips_per_forward": 99}, optimizer={"batch_size": 2})
    assert clip_bytes(by_chunk, on_cpu=False) == 2 * 2 * batch, "no chunk is larger than the batch"
    data = run_settings(data={"decode_chunk_mib": 1, "decode_workers": 3, "resize": 128}).data
    on_host = partial(decoder_bytes, on_cpu=True)
    frames = 2**20 // (128 * 256 * 3)
    assert frames == 10
    assert on_host(data, FrameSize(128, 256)) == 10 * 3 * (128 * 256 + 32 * 32)
    smaller = data.model_copy(update={"resize": 64, "crop": 32})
    resized = 10 * 3 * 64 * 128 * 2 + 10 * 3 * 4 * (128 * 256 + 64 * 128)
    assert on_host(smaller, FrameSize(128, 256)) == 10 * 3 * (128 * 256 + 32 * 32) + resized
    large = FrameSize(1080, 1920)
    of_each = data.model_copy(update={"resize": 1080})
    assert on_host(of_each, large) == 3 * 3 * (1080 * 1920 + 32 * 32), "each decoder has a frame"
    coloured = data.model_copy(update={"color": 0.2, "decode_chunk_mib": 128, "resize": 32})
    assert on_host(coloured, FrameSize(32, 64)) == 64 * 3 * (32 * 64 + 6 * 32 * 32), (
        "64 frames are all there are"
    )


def test_each_decoder_of_a_gpu_holds_memory_there_and_those_of_the_cpu_none():
    data, size = run_settings(data={"decode_chunk_mib": 1}).data, FrameSize(128, 256)
    frames = decoder_bytes(data.model_copy(update={"decode_workers": 2}), size, on_cpu=True)
    assert decoder_bytes(data, size, on_cpu=False) == frames + 2 * DECODER_SESSION, "two, unless it is set"
    one = data.model_copy(update={"decode_workers": 1})
    assert decoder_bytes(one, size, on_cpu=False) == frames + DECODER_SESSION
    assert decoder_bytes(data.model_copy(update={"decoder": "cpu"}), size, on_cpu=False) == 0


# ------------------------------------------------------------------------------------------------- search


@given(
    st.integers(0, 50),
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(0, 500),
    st.integers(0, 10),
)
def test_the_largest_that_fits_was_tried_and_the_line_finds_it(start, steps, budget, first):
    """For any peak that grows: what is returned fits; for a straight line nothing larger does."""
    peaks = [start]
    for step in steps:
        peaks.append(peaks[-1] + step)
    tried: dict[int, int] = {}

    def peak(n: int) -> int:
        tried[n] = peaks[n]
        return peaks[n]

    found = largest_that_fits(peak, 0, len(steps), len(steps) * first // 10, budget)
    if found is None:
        assert peaks[0] > budget
    else:
        assert tried[found] <= budget
        if len(set(steps)) == 1 and found < len(steps):
            assert peaks[found + 1] > budget


@given(st.integers(1, 300), st.data())
def test_a_ratio_keeps_as_many_clips_as_asked(num_clips, data):
    kept = data.draw(st.integers(1, num_clips))
    assert num_kept(num_clips, ratio_of(kept, num_clips)) == kept


def peak_by_formula(settings: Settings) -> int:
    """Ten for the run, per clip of a forward 5, per video 7, per clip with a gradient 1."""
    kept = num_kept(settings.data.num_clips, settings.encoder.clip_ratio)
    videos = settings.optimizer.batch_size
    return 10 + 5 * settings.encoder.clips_per_forward + 7 * videos + kept * videos


@pytest.mark.parametrize(
    ("budget", "lines"),
    [
        # 8 clips, 3 of them kept, 2 videos, 4 clips per forward: needs 50
        (50, ["--set encoder.clips_per_forward=4"]),
        (
            62,
            [
                "--set encoder.clips_per_forward=6",
                "--set encoder.clips_per_forward=4 --set optimizer.batch_size=3",
                "--set encoder.clips_per_forward=4 --set encoder.clip_ratio=1",
            ],
        ),
        (40, ["--set encoder.clips_per_forward=2"]),
        (
            30,
            [
                "--set encoder.clips_per_forward=2 --set optimizer.batch_size=1 "
                "--set optimizer.accumulation_steps=2"
            ],
        ),
        (
            24,
            [
                "--set encoder.clips_per_forward=1 --set optimizer.batch_size=1 "
                "--set optimizer.accumulation_steps=2 --set encoder.clip_ratio=0.2"
            ],
        ),
        (22, []),
    ],
)
def test_clips_per_forward_give_way_first_then_videos_then_the_gradient(budget, lines):
    search = SettingsSearch(run_settings(encoder={"clip_ratio": 0.3}), peak_by_formula, budget)
    suggestions = search.suggestions()
    assert [one.options() for one in suggestions] == lines
    assert all(one.total <= budget for one in suggestions)
    assert peak_by_formula(search.smallest()) == 23


@pytest.mark.parametrize(
    ("own", "most", "batch", "accumulation"), [(4, 3, 2, 4), (6, 5, 3, 4), (7, 6, 1, 14), (9, 8, 3, 6)]
)
def test_fewer_videos_at_once_add_up_to_the_batch_of_the_recipe(own, most, batch, accumulation):
    settings = run_settings(optimizer={"batch_size": own, "accumulation_steps": 2})
    budget = 100 * most + 99  # and clips per forward cost one each
    search = SettingsSearch(
        settings, lambda s: 100 * s.optimizer.batch_size + s.encoder.clips_per_forward, budget
    )
    (found,) = search.suggestions()
    assert found.changes["optimizer.batch_size"] == batch
    assert found.changes["optimizer.accumulation_steps"] == accumulation
    assert batch * accumulation == own * 2 and found.total <= budget


# ------------------------------------------------------------------------------------------------ command

# as many videos, clips and gradients as anybody is advised, so that there is nothing to search for
SMALL = ["detector.num_steps=8", "detector.regression_tiou=[0.7]", "data.num_clips=8"]
SMALL += ["encoder.clips_per_forward=128", "encoder.clip_ratio=1", "optimizer.batch_size=16"]
TINY = ["--recipe", "demo", "--classes", "5", *(word for value in SMALL for word in ("--set", value))]


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(main, [*TINY, *arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.slow
def test_the_command_prints_parts_and_ready_options(tmp_path):
    result = run("--memory", "2", "--json", "--set", f"data.shards={tmp_path / 'absent'}")
    text = result.stderr  # with --json for people, and the document on stdout
    assert "working set" in text and "CUDA context" in text and "####" in text
    assert (
        "assumed 5 classes" in text and "It fits. So" in text and "--set encoder.clips_per_forward=" in text
    )
    document = json.loads(result.stdout)
    assert document["fits"] and document["peak"] == sum(document["parts"].values())
    assert list(document["parts"]) == list(PARTS)
    assert document["options"][0]["set"]["encoder.clips_per_forward"] == 128
    assert all(option["peak"] <= 0.9 * document["memory"] for option in document["options"])


@pytest.mark.slow
@pytest.mark.ci
def test_when_nothing_fits_one_line_names_the_part_and_what_to_change(tmp_path):
    config = tmp_path / "ds.json"
    values = {"zero_optimization": {"offload_optimizer": {"device": "none"}}, "bf16": {"enabled": False}}
    config.write_text(json.dumps(values))
    large = ("--set", "encoder.backbone=r2plus1d_18", "--set", "data.num_clips=2")
    result = run("--memory", "1", "--ds-config", str(config), "-q", *large, code=1)
    assert result.stderr.count("\n") == 1 and not result.stdout
    assert "for optimizer state" in result.stderr and "zero_optimization.offload_optimizer" in result.stderr


@pytest.mark.parametrize(
    ("part", "changes", "advice"),
    [
        (
            WORKING,
            {"encoder.backbone": "video_swin_t"},
            "bf16 in ds_config.json, a smaller encoder.slice_mib",
        ),
        (WORKING, {}, "bf16 in ds_config.json, a smaller data.crop"),
        (
            WORKING,
            {"encoder.backbone": "videomae_b", "encoder.reversible": "false"},
            "encoder.reversible=true",
        ),
        (BOUNDARIES, {"encoder.backbone": "videomae_b"}, "bf16 in ds_config.json, a smaller data.crop"),
        (FRAMES, {}, "data.prefetch"),
        (FEATURES, {}, "detector.proposal_ratio"),
        (FEATURES, {"detector.kind": "actionformer"}, "detector.actionformer.embed_dim"),
        ("weights", {}, "a smaller encoder.backbone"),
    ],
)
def test_each_part_has_its_remedy(part, changes, advice):
    settings = load_settings(Path("demo"), [f"{name}={value}" for name, value in changes.items()])
    on_cpu = DeepSpeedMemoryConfig.from_ds_config(
        {"zero_optimization": {"stage": 1}}, 1, device="cpu", cpp_adam=False, averages_weights=False
    )
    assert advice in remedy(part, settings, on_cpu)


def test_a_data_set_named_on_the_command_line_must_be_there(tmp_path):
    result = run("--shards", str(tmp_path / "absent"), code=2)
    assert result.stderr.count("\n") == 1 and "absent" in result.stderr
