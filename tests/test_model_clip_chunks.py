"""model/clip_chunks.py: chunks come ahead from host memory, into two buffers, none of them too early."""

from __future__ import annotations

import pytest
import torch
from fake_gpu import CUDA, Stream, fake_gpu

from model.clip_chunks import chunks_on, select_clips

CPU = torch.device("cpu")


def clips(n: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )


def before(work: list, name: str, value: object) -> list:
    """All operations that are done when this one of a stream begins, those of other streams among them."""
    position = next(i for i, (known, what) in enumerate(work) if known == name and what is value)
    done, waiting = [], work[:position]
    while waiting:
        operation = waiting.pop()
        if operation[0] == "wait":
            waiting.extend(operation[1])
        else:
            done.append(operation)
    return done


@pytest.mark.parametrize("indices", [[0], [2], [1, 2, 3], [0, 2], [0, 1, 4], [0, 1, 2, 3, 4]])
def test_neighbours_are_a_view_and_others_a_copy(indices):
    all_clips = clips(5)
    chosen = select_clips(all_clips, torch.tensor(indices))
    assert torch.equal(chosen, all_clips[indices])
    is_view = chosen.untyped_storage().data_ptr() == all_clips.untyped_storage().data_ptr()
    assert is_view == (indices == list(range(indices[0], indices[-1] + 1)))


def test_chunks_on_the_device_stay_as_they_are():
    chunks = [clips(2), clips(1)]
    assert all(one is other for one, other in zip(chunks_on(CPU, chunks), chunks, strict=True))
    assert list(chunks_on(CPU, [])) == []


@pytest.mark.parametrize("sizes", [[2], [2, 2], [2, 1], [2, 2, 2, 2, 1]])
def test_a_copy_waits_for_the_use_of_its_buffer_and_a_use_for_its_copy(sizes):
    with fake_gpu() as waits:
        computing = Stream.running
        given = []
        for number, chunk in enumerate(chunks_on(CUDA, map(clips, sizes))):
            assert chunk.device == CUDA and len(chunk) == sizes[number]
            given.append(chunk)
            computing.work.append(("use", number))
        (copying,) = (stream for stream in Stream.made if stream is not computing)
    assert not waits, "the host waits for no copy"
    copies = [value for name, value in copying.work if name == "copy"]
    assert [len(copy) for copy in copies] == sizes
    assert len({copy.meta.untyped_storage()._cdata for copy in copies}) <= 2
    for number, copy in enumerate(copies):
        assert given[number] is copy and ("copy", copy) in before(computing.work, "use", number)
        uses = {value for name, value in before(copying.work, "copy", copy) if name == "use"}
        assert uses == set(range(number - 1)), "the chunk two before was used, the last may be in use"


def test_the_next_chunk_is_copied_while_one_is_used():
    with fake_gpu():
        for number, _ in enumerate(chunks_on(CUDA, map(clips, [2, 2, 2]))):
            copies = [name for stream in Stream.made for name, _ in stream.work if name == "copy"]
            assert len(copies) == min(number + 2, 3)


def test_where_an_error_ends_it_the_buffers_are_not_free_before_their_copies_are_made():
    with fake_gpu():
        computing = Stream.running
        chunks = chunks_on(CUDA, map(clips, [2, 2]))
        next(chunks)
        chunks.close()
        computing.work.append(("use", "others"))
        done = before(computing.work, "use", "others")
    assert len([name for name, _ in done if name == "copy"]) >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [[3], [3, 3, 3, 3, 3, 2]])
def test_every_chunk_is_right_on_a_gpu_that_is_busy(sizes):
    device = torch.device("cuda", torch.cuda.current_device())
    chunks = [clips(size).pin_memory() for size in sizes]
    sums = []
    for chunk in chunks_on(device, chunks):
        busy = torch.ones(2000, 2000, device=device)
        for _ in range(20):
            busy = busy @ busy * 0
        sums.append((chunk.long().sum() + busy.sum().long(), chunk.clone()))
    for chunk, (total, copy) in zip(chunks, sums, strict=True):
        assert int(total) == int(chunk.long().sum()) and torch.equal(copy.cpu(), chunk)
