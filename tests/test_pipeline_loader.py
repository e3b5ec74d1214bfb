"""The loader: every sample once, sample-exact resume, loud entry what it cannot read."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from painted_video import number_of, painted_video
from pydantic import ValidationError

from pipeline.annotations import Action
from pipeline.augment import CENTRE, draw_view
from pipeline.clip_decoder import ClipDecoder
from pipeline.dataset import Dataset
from pipeline.loader import Loader
from pipeline.order import epoch_order
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.prefetch import Prefetch
from pipeline.records import PackedVideo
from pipeline.sample_reader import SampleReader
from pipeline.samples import Sample
from pipeline.settings import DataSettings
from pipeline.windows import clip_frame_numbers

NUM_FRAMES, FPS = 50, 25.0
SETTINGS = DataSettings(shards="unused", num_clips=4, clip_frames=3, resize=32, crop=24, color=0.2)
STILL = SETTINGS.model_copy(
    update={"resize": 64, "crop": 64, "color": 0.0}
)  # every block of the number visible


def packed_video(key: str, subset: str, actions=()) -> PackedVideo:
    shape = {"num_frames": NUM_FRAMES, "width": 64, "height": 64, "codec": "vp9"}
    entry = {"shard": None, "reject": None, "source": f"{key}.mp4"}
    return PackedVideo(key, subset, NUM_FRAMES / FPS, FPS, actions=actions, **shape, **entry)


def pack(folder, data_of: dict[str, bytes], actions=()) -> Dataset:
    samples = [(packed_video(key, "training", actions), data) for key, data in data_of.items()]
    videos, shards = pack_samples(folder, samples, shard_size=3)
    write_dataset(folder, classes=["jump", "run"], videos=videos, shards=shards, packing={})
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def video() -> bytes:
    return painted_video(NUM_FRAMES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, video) -> Dataset:
    return pack(tmp_path_factory.mktemp("shards"), {f"v{number}": video for number in range(7)})


def loader_of(dataset, settings=SETTINGS, remark=print, **options) -> Loader:
    options = {"batch_size": 1, "seed": 3, "rank": 0, "world_size": 1, "training": True, **options}
    return Loader(dataset, settings, subset="training", device="cpu", remark=remark, **options)


def take(loader, count):
    with closing(iter(loader)) as batches:
        return [batch for _, batch in zip(range(count), batches, strict=False)]


def same(first, second) -> bool:
    return first.keys == second.keys and torch.equal(first.inputs, second.inputs)


def test_training_draws_views_from_its_settings_and_evaluation_has_the_centre(dataset):
    changes = {"flip": 0.9, "random_crop": False, "color": 0.1, "least_area": 0.5, "blur": 2.0}
    settings, sample = SETTINGS.model_copy(update=changes), Sample(dataset.videos["v1"], (0.0, 2.0))
    for training in (True, False):
        options = {"seed": 3, "device": torch.device("cpu"), "remark": print}
        with closing(SampleReader(dataset, [sample], settings, training=training, **options)) as reader:
            drawn = draw_view(3, 5, "v1", (0.0, 2.0), **changes) if training else CENTRE
            assert reader._view(sample, 5) == drawn


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (2, 1), (3, 2), (4, 1), (4, 3)])
def test_every_sample_once_per_epoch_and_equal_steps(dataset, world_size, batch_size):
    options = {"world_size": world_size, "batch_size": batch_size}
    loaders = [loader_of(dataset, rank=rank, **options) for rank in range(world_size)]
    steps = {loader.steps_per_epoch for loader in loaders}
    assert len(steps) == 1
    (steps,) = steps
    per_rank = [take(loader, steps) for loader in loaders]
    assert [len(batches) for batches in per_rank] == [steps] * world_size
    in_order = [batches[step] for step in range(steps) for batches in per_rank]
    keys = [key for batch in in_order for key in batch.keys]
    assert set(keys[:7]) == set(dataset.videos)  # then the last step is filled up
    assert keys[7:] == [keys[i % 7] for i in range(len(keys) - 7)]
    assert not any(flag for batch in in_order for flag in batch.padding)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (2, 1), (3, 2), (4, 1), (9, 3)])
def test_evaluation_sees_every_window_once_and_keeps_those_of_a_video_together(
    dataset, world_size, batch_size
):
    settings = SETTINGS.model_copy(update={"window_seconds": 1.0})
    options = {"world_size": world_size, "batch_size": batch_size, "training": False}
    per_rank = [list(loader_of(dataset, settings, rank=rank, **options)) for rank in range(world_size)]
    sizes = [[len(batch) for batch in batches] for batches in per_rank]
    assert all(size == sizes[0] for size in sizes)  # ZeRO 3 waits where one rank has a batch more
    assert sum(sizes[0]) == max(sum(not p for b in batches for p in b.padding) for batches in per_rank)
    seen = [
        (rank, key, tuple(window.tolist()))
        for rank, batches in enumerate(per_rank)
        for batch in batches
        for key, window, padded in zip(batch.keys, batch.windows, batch.padding, strict=True)
        if not padded
    ]
    windows = [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
    expected = sorted((key, window) for key in dataset.videos for window in windows)
    assert sorted((key, window) for _, key, window in seen) == expected
    assert len({(rank, key) for rank, key, _ in seen}) == len(dataset.videos)


def test_evaluation_is_one_pass_in_order_again_and_again(dataset):
    loader = loader_of(dataset, training=False, batch_size=2)
    for _ in range(2):
        batches = list(loader)
        assert [key for batch in batches for key in batch.keys] == [f"v{i}" for i in range(7)]
        assert loader.state_dict() == {"epoch": 0, "step": 0}
    assert all(same(first, second) for first, second in zip(batches, list(loader), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [0, 1, 5, 7, 9])
def test_resume_goes_on_with_the_very_next_sample(dataset, stop):
    whole = take(loader_of(dataset), 16)  # more than two epochs of 7
    before = loader_of(dataset)
    take(before, stop)
    state = before.state_dict()
    assert state == {"epoch": stop // 7, "step": stop % 7}  # what was decoded ahead does not count
    after = loader_of(dataset)
    after.load_state_dict(state)
    resumed = take(after, 16 - stop)
    assert all(same(first, second) for first, second in zip(whole[stop:], resumed, strict=True))


def test_iterating_again_goes_on_where_the_last_iteration_stopped(dataset):
    whole, loader = take(loader_of(dataset), 6), loader_of(dataset)
    parts = take(loader, 2) + take(loader, 4)
    assert all(same(first, second) for first, second in zip(whole, parts, strict=True))


def test_epochs_differ_in_order_and_in_pixels(dataset):
    batches = take(loader_of(dataset), 14)
    first, second = ({batch.keys[0]: batch.inputs for batch in half} for half in (batches[:7], batches[7:]))
    assert list(first) != list(second)
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_a_batch_holds_the_frames_that_its_windows_name(dataset):
    (batch,) = take(loader_of(dataset, STILL, training=False, batch_size=7), 1)
    assert batch.inputs.shape == (7, 4, 3, 3, 64, 64) and len(batch) == 7
    assert batch.windows.tolist() == [[0.0, 2.0]] * 7 and batch.durations.tolist() == [2.0] * 7
    numbers = [number_of(frame) for clip in batch.inputs[3].permute(0, 2, 3, 4, 1).numpy() for frame in clip]
    # clips centred at 0.25, 0.75, ... s: frame positions 6.25, 18.75, 31.25, 43.75 of 25 per second
    assert numbers == [5, 6, 7, 17, 18, 19, 30, 31, 32, 42, 43, 44]


def test_a_truncated_window_is_stated_as_it_was_decoded(dataset):
    settings = STILL.model_copy(update={"truncate_to": 0.3, "random_crop": False, "flip": 0.0})
    batches = take(loader_of(dataset, settings), 9)  # of two epochs
    windows = [tuple(batch.windows[0].tolist()) for batch in batches]
    assert len(set(windows)) == 9 and all(end - start < 2 for start, end in windows)
    clips = {"num_frames": NUM_FRAMES, "num_clips": 4, "clip_frames": 3, "stride_frames": 1}
    for batch, window in zip(batches, windows, strict=True):
        frames = clip_frame_numbers(window, fps=FPS, **clips).flatten().tolist()
        pictures = batch.inputs[0].permute(0, 2, 3, 4, 1).flatten(0, 1).numpy()
        assert [number_of(picture) for picture in pictures] == frames
    (whole,) = take(loader_of(dataset, settings, training=False), 1)
    assert whole.windows.tolist() == [[0.0, 2.0]], "an evaluation sees all of it"


def test_shuffled_clips_hold_the_same_frames_in_another_order(dataset):
    settings = STILL.model_copy(update={"clip_frames": 8})
    shuffled = settings.model_copy(update={"shuffle_frames": True})
    (plain,) = take(loader_of(dataset, settings, training=False), 1)
    (mixed,) = take(loader_of(dataset, shuffled, training=False), 1)
    (again,) = take(loader_of(dataset, shuffled, training=False), 1)
    assert not torch.equal(plain.inputs, mixed.inputs) and torch.equal(mixed.inputs, again.inputs)

    def frames_of(batch):
        return [sorted(frame.sum().item() for frame in clip.unbind(1)) for clip in batch.inputs[0]]

    assert frames_of(plain) == frames_of(mixed)


def test_the_ground_truth_of_a_window_is_what_lies_in_it(tmp_path, video):
    actions = (Action(0.1, 0.5, "run"), Action(0.8, 1.8, "jump"), Action(0.9, 1.05, "run"))
    dataset = pack(tmp_path, {"v": video}, actions)
    settings = SETTINGS.model_copy(update={"window_seconds": 1.0, "window_overlap": 0.0})
    first, second = list(loader_of(dataset, settings, training=False))
    assert first.windows.tolist() == [[0.0, 1.0]] and second.windows.tolist() == [[1.0, 2.0]]
    assert np.allclose(first.gt_segments[0], [[0.1, 0.5], [0.9, 1.0]])
    assert first.gt_labels[0].tolist() == [1, 1]  # classes are sorted: jump, run
    assert np.allclose(second.gt_segments[0], [[1.0, 1.8]]) and second.gt_labels[0].tolist() == [0]
    settings = settings.model_copy(update={"min_action_overlap": 0.1})
    first, second = list(loader_of(dataset, settings, training=False))
    assert first.gt_labels[0].tolist() == [1, 0, 1] and second.gt_labels[0].tolist() == [0, 1]
    (whole,) = list(loader_of(dataset, training=False))
    assert whole.gt_labels[0].tolist() == [1, 0, 1]


@pytest.fixture
def broken(tmp_path, video) -> Dataset:
    """Seven videos, of which v1 and v4 are intact in the shard but cannot be decoded."""
    data_of = {f"v{number}": video for number in range(7)}
    for key in ("v1", "v4"):
        data_of[key] = video[:200] + bytes(len(video) - 200)
    return pack(tmp_path, data_of)


def test_a_batch_of_evaluation_says_which_frames_it_shows(dataset):
    settings = STILL.model_copy(update={"window_seconds": 1.0, "stride_frames": 2})
    for batch in loader_of(dataset, settings, training=False, batch_size=2):
        shown = [
            [[number_of(picture) for picture in clip.permute(1, 2, 3, 0).numpy()] for clip in w]
            for w in batch.inputs
        ]
        assert batch.frames.tolist() == shown
    assert take(loader_of(dataset, settings), 1)[0].frames is None  # views differ between two of the same


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_evaluation_decodes_a_frame_of_overlapping_windows_once(dataset, monkeypatch, batch_size):
    counts, decode_frames = dict[str, int](), ClipDecoder._decode_frames

    def counted(self, video, request, wanted, *rest):
        counts[request.video.key] = counts.get(request.video.key, 0) + len(wanted)
        decode_frames(self, video, request, wanted, *rest)

    monkeypatch.setattr(ClipDecoder, "_decode_frames", counted)
    settings = SETTINGS.model_copy(update={"window_seconds": 1.0, "decode_workers": 1})  # 0.25 s a clip
    batches = list(loader_of(dataset, settings, training=False, batch_size=batch_size))
    distinct = {key: set[int]() for key in dataset.videos}
    for batch in batches:
        for key, frames in zip(batch.keys, batch.frames, strict=True):
            distinct[key].update(frames.flatten().tolist())
    assert counts == {key: len(frames) for key, frames in distinct.items()}
    assert sum(counts.values()) < sum(len(batch) for batch in batches) * 12


def test_a_video_that_cannot_be_read_stops_the_run_by_name(broken):
    with pytest.raises(ValueError, match=r"00000\.tar.*v1") as error:
        list(loader_of(broken, training=False))
    assert "\n" not in str(error.value)
    loader = loader_of(broken, SETTINGS.model_copy(update={"skip_bad": 1}), training=False)
    with pytest.raises(ValueError, match=r"00001\.tar.*v4"):
        list(loader)


def test_damaged_bytes_in_a_shard_stop_the_run_by_name(tmp_path, video):
    dataset = pack(tmp_path, {"v0": video, "v1": video})
    tar = tmp_path / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[data.rindex(video) + len(video) // 2] ^= 1  # in v1, the last one
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000\.tar.*v1"):
        list(loader_of(dataset, training=False))


def test_a_data_set_of_which_nothing_can_be_read_is_no_result(tmp_path, video):
    dataset = pack(tmp_path, {key: video[:200] + bytes(len(video) - 200) for key in ("v0", "v1")})
    settings = SETTINGS.model_copy(update={"skip_bad": 9})
    for training in (True, False):
        with pytest.raises(ValueError, match="none of the 2 samples could be read"):
            list(loader_of(dataset, settings, training=training))


def test_what_fills_up_an_evaluation_is_not_decoded(dataset, monkeypatch):
    decoded, begin = [], SampleReader.begin
    monkeypatch.setattr(
        SampleReader, "begin", lambda *args: decoded.append(args[1].video.key) or begin(*args)
    )
    ranks = [list(loader_of(dataset, rank=r, world_size=3, batch_size=5, training=False)) for r in range(3)]
    assert sorted(decoded) == [f"v{number}" for number in range(7)]
    assert [len(batch) for batches in ranks for batch in batches] == [3, 3, 3]  # not 5
    assert ranks[2][0].padding == (False, False, True) and not ranks[2][0].inputs[2].any()


def test_skipped_samples_are_counted_reported_and_left_black(broken):
    settings = SETTINGS.model_copy(update={"skip_bad": 2})
    skipped = []
    batches = list(loader_of(broken, settings, training=False, remark=skipped.append))
    assert [batch.keys[0] for batch in batches] == [f"v{number}" for number in range(7)]
    assert [batch.padding[0] for batch in batches] == [False, True, False, False, True, False, False]
    assert len(skipped) == 2 and all(line.startswith("loader: skipped") for line in skipped)
    assert "v1" in skipped[0] and "1 of at most 2" in skipped[0] and "v4" in skipped[1]


def test_a_sample_that_stood_in_for_another_is_skipped_once(broken):
    """v4, behind v1 in the epoch, is tried in its place, and then, begun before, in its own."""
    orders = ((seed, epoch_order(7, seed=seed, epoch=0).tolist()) for seed in range(100))
    seed = next(seed for seed, order in orders if order.index(4) == order.index(1) + 1)
    lines: list[str] = []
    settings = SETTINGS.model_copy(update={"skip_bad": 2})
    (batch,) = take(loader_of(broken, settings, lines.append, batch_size=7, seed=seed), 1)
    assert not any(batch.padding) and not {"v1", "v4"} & set(batch.keys) and len(lines) == 2


def test_resume_is_exact_with_skipped_samples_too(broken):
    settings = SETTINGS.model_copy(update={"skip_bad": 2})
    whole = take(loader_of(broken, settings), 12)
    after = loader_of(broken, settings)
    after.load_state_dict({"epoch": 0, "step": 5})
    resumed = take(after, 7)
    assert all(same(first, second) for first, second in zip(whole[5:], resumed, strict=True))
    assert not {"v1", "v4"} & {batch.keys[0] for batch in whole}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_are_the_same_whatever_the_number_of_workers(broken, training, batch_size):
    """With videos that cannot be read as well: which are skipped, and what is reported, in which order."""
    runs = []
    for workers in (1, 2, 5):
        settings = SETTINGS.model_copy(update={"skip_bad": 2, "decode_workers": workers})
        options = {"batch_size": batch_size, "training": training}
        lines: list[str] = []
        runs.append((take(loader_of(broken, settings, remark=lines.append, **options), 12), lines))
    (first, lines), *others = runs
    assert len(lines) == 2
    for batches, again in others:
        assert again == lines
        assert all(same(one, other) for one, other in zip(first, batches, strict=True))
        assert [batch.padding for batch in batches] == [batch.padding for batch in first]


def test_the_limit_of_bad_samples_names_the_same_one_whatever_the_number_of_workers(broken):
    for workers in (1, 4):
        settings = SETTINGS.model_copy(update={"skip_bad": 1, "decode_workers": workers})
        with pytest.raises(ValueError, match=r"00001\.tar.*v4"):
            list(loader_of(broken, settings, training=False, batch_size=7))


def test_encoded_videos_do_not_pile_up_before_the_decoders(dataset, monkeypatch):
    """A batch of many samples holds the bytes of those that are decoded, and of one more."""
    held = most = 0
    lock, read, decode_video = threading.Lock(), Dataset.read, ClipDecoder._decode_video

    def counted_read(self, key):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return read(self, key)

    def counted_video(self, *args):
        nonlocal held
        try:
            return decode_video(self, *args)
        finally:
            with lock:
                held -= 1

    monkeypatch.setattr(Dataset, "read", counted_read)
    monkeypatch.setattr(ClipDecoder, "_decode_video", counted_video)
    settings = SETTINGS.model_copy(update={"decode_workers": 2})
    take(loader_of(dataset, settings, batch_size=7), 2)
    assert held == 0 and most <= 3


@pytest.mark.gpu
def test_frames_that_wait_lie_in_pinned_host_memory(dataset):
    options = {"batch_size": 2, "seed": 3, "rank": 0, "world_size": 1, "training": True}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with closing(
        Loader(dataset, SETTINGS, subset="training", device="cuda", remark=print, **options)
    ) as loader:
        batches = iter(loader)
        batch = next(batches)
        time.sleep(1)  # the next one is decoded ahead
        assert batch.inputs.is_pinned() and torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("training", [True, False])
def test_a_loader_that_was_begun_has_the_first_batch_ready_and_gives_the_same_ones(dataset, training):
    expected = take(loader_of(dataset, training=training), 3)
    with closing(loader_of(dataset, training=training)) as loader:
        loader.begin()
        assert loader._ahead is not None
        while loader._ahead._ready.empty():
            time.sleep(0.01)
        assert all(map(same, take(loader, 3), expected))
        loader.begin()
        loader.close()
        assert "leantad-loader" not in {thread.name for thread in threading.enumerate()}


def test_a_loader_that_was_begun_before_it_is_resumed_gives_what_comes_then(dataset):
    wanted, loader = take(loader_of(dataset), 4)[3], loader_of(dataset)
    loader.begin()
    loader.load_state_dict({"epoch": 0, "step": 3})
    assert same(take(loader, 1)[0], wanted)


def test_closing_joins_the_thread(dataset):
    loader = loader_of(dataset)
    batches = iter(loader)
    next(batches)
    assert "leantad-loader" in [thread.name for thread in threading.enumerate()]
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("leantad")]


def test_no_more_than_prefetch_results_lie_ready():
    made = []
    ahead = Prefetch(iter(range(100)), int, made.append, 2)
    with closing(ahead):
        next(iter(ahead))
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # room for a fourth, which must not come
        assert made == [0, 1, 2]  # one was taken, two lie ready


@pytest.mark.parametrize("prefetch", [1, 2, 3])
def test_a_result_is_begun_before_the_one_before_it_is_completed_if_there_is_room(prefetch):
    done = []

    def begin(number: int) -> int:
        done.append(("begin", number))
        return number

    with closing(Prefetch(iter(range(9)), begin, lambda n: done.append(("complete", n)), prefetch)):
        deadline = time.monotonic() + 5
        while len(done) < 2 * prefetch and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # room for more, which must not come
    if prefetch == 1:
        assert done == [("begin", 0), ("complete", 0)]
    else:
        assert done[:3] == [("begin", 0), ("begin", 1), ("complete", 0)]
        assert [what for what, _ in done[-2:]] == ["complete", "complete"] and len(done) == 2 * prefetch


def test_whoever_waits_for_a_result_makes_room_for_one_more(monkeypatch):
    """Or the thread would wait until the one who waits has woken up, and nothing would be begun meanwhile."""
    begun, let_go = [], threading.Event()
    with closing(Prefetch(iter(range(9)), begun.append, str, 2)) as ahead:
        get = ahead._ready.get
        monkeypatch.setattr(ahead._ready, "get", lambda: let_go.wait(20) and get())
        taken = threading.Thread(target=next, args=(iter(ahead),))
        taken.start()
        deadline = time.monotonic() + 5
        while len(begun) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # room for a fourth, which must not come
        assert begun == [0, 1, 2]
        let_go.set()
        taken.join()


def test_a_state_of_another_set_up_is_refused(dataset):
    with pytest.raises(ValueError, match="loader state"):
        loader_of(dataset).load_state_dict({"epoch": 0, "step": 7})


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="crop: got 64, want at most resize"):
        DataSettings(shards="x", resize=32, crop=64)
    with pytest.raises(ValidationError, match="crop: got 64, want at most resize \\(40\\)"):
        DataSettings(shards="x", resize=(80, 40), crop=64)


@pytest.mark.parametrize("resize", [7, [171], [171, 4], [171, 128, 3], "wide", True, 1.5])
def test_a_resize_that_is_neither_one_number_nor_two_is_one_message(resize):
    with pytest.raises(
        ValidationError, match="want pixels, at least 8: one number, or \\[width, height\\]"
    ) as error:
        DataSettings(shards="x", resize=resize)
    assert error.value.error_count() == 1
    with pytest.raises(ValidationError):
        DataSettings(shards="x", clip_frame=16)
