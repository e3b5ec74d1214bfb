"""Samplers: which samples may fill each slot of a batch, on every rank and at every step."""

from __future__ import annotations

import pytest
from dataset_cases import video, write_five_videos

from pipeline.dataset import Dataset
from pipeline.loader import Loader
from pipeline.order import epoch_order
from pipeline.samples import EvaluationSampler, Sample, TrainingSampler, long_enough, samples_of
from pipeline.settings import DataSettings


def test_samples_are_the_windows_of_each_video_in_a_row():
    samples = samples_of([video("a"), video("b")], window_seconds=0.5, overlap=0.0)  # both last a second
    windows = [(0.0, 0.5), (0.5, 1.0)]
    assert samples == [Sample(video(key), window) for key in "ab" for window in windows]


def test_a_short_video_gets_a_window_as_long_as_the_others_if_it_is_padded():
    for seconds, window in ((2.0, (0.0, 2.0)), (1.0, (0.0, 1.0))):
        (sample,) = samples_of([video("a")], window_seconds=seconds, overlap=0.0, pad=True)  # of a second
        assert sample.window == window
    assert [s.window for s in samples_of([video("a")], window_seconds=2.0, overlap=0.0)] == [(0.0, 1.0)]
    both = [samples_of([video("a")], window_seconds=0.4, overlap=0.5, pad=pad) for pad in (True, False)]
    assert both[0] == both[1], "a video longer than a window needs no padding"


def test_actions_that_are_too_short_are_left_out_by_their_whole_length():
    one = video("a")  # an action of half a second
    assert long_enough(one, 0.5) is one and long_enough(one, 0.0) is one
    assert long_enough(one, 0.51).actions == () and long_enough(one, 0.51).key == "a"


@pytest.mark.parametrize("training", [True, False])
def test_a_loader_leaves_short_actions_out_of_training_alone(tmp_path, training):
    settings = DataSettings(shards=str(tmp_path), min_action_seconds=0.6, resize=8, crop=8)
    subset = "training" if training else "validation"
    parts = {"subset": subset, "batch_size": 1, "seed": 0, "rank": 0, "world_size": 1, "device": "cpu"}
    dataset = Dataset.open(str(write_five_videos(tmp_path)))
    loader = Loader(dataset, settings, training=training, remark=print, **parts)
    loader.close()
    assert {len(sample.video.actions) for sample in loader.samples} == {0 if training else 1}
    assert all(video.actions for video in dataset.packed(subset)), "the ground truth is that of all"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_training_a_slot_is_filled_by_the_next_samples_of_the_epoch(world_size):
    samplers = [TrainingSampler(7, 2, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = samplers[0].steps_per_epoch
    assert steps == -(-7 // (2 * world_size))
    order = epoch_order(7, seed=3, epoch=4).tolist()
    slots = [p for step in range(steps) for sampler in samplers for p in sampler.candidates(4, step)]
    assert len(slots) == steps * 2 * world_size
    for number, candidates in enumerate(slots):
        first = number % 7
        assert list(candidates) == order[first:] + order[:first]


def test_in_evaluation_a_rank_that_has_less_is_padded():
    keys = ["a", "a", "b", "c", "c", "c"]
    samplers = [EvaluationSampler(keys, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert [sampler.steps_per_epoch for sampler in samplers] == [3, 3]
    # the first rank has a and c, the second b; no batch is larger than what is left
    assert [samplers[0].candidates(0, step) for step in range(3)] == [[[0], [1]], [[3], [4]], [[5]]]
    assert [samplers[1].candidates(0, step) for step in range(3)] == [[[2], []], [[], []], [[]]]
