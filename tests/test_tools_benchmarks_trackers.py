"""The counters of tensor memory against sizes that are known."""

from __future__ import annotations

import torch

from tools.benchmarks.trackers import LiveBytes, SavedBytes


def test_saved_bytes_counts_each_storage_once_and_until_it_is_freed():
    x = torch.randn(100, requires_grad=True)
    with SavedBytes(set()) as saved:
        y = (x * x).exp()  # x twice, and the output of exp
    assert saved.now == 2 * x.nbytes
    y.sum().backward()
    del y
    assert saved.now == 0


def test_saved_bytes_leaves_out_storages_to_ignore():
    x = torch.randn(100, requires_grad=True)
    with SavedBytes({x.untyped_storage().data_ptr()}) as saved:
        y = x * x
    assert saved.now == 0 and y.requires_grad


def test_live_bytes_peaks_where_most_tensors_are_alive():
    x = torch.randn(1000)
    with LiveBytes(set()) as live:
        for _ in range(3):
            y = (x + 1) * 2 + x  # at most two of its results are alive at once, with the last y three
        view = y[10:]
        y.add_(1)
    assert live.peak == 3 * x.nbytes
    assert live.now == x.nbytes
    del y
    assert live.now == x.nbytes  # the view keeps it
    del view
    assert live.now == 0


def test_live_bytes_counts_each_storage_once_and_remembers_the_parts_at_the_peak():
    live = LiveBytes(part="a")
    outside = torch.zeros(25)
    live.include([outside, outside.view(5, 5)], "w")
    with live:
        first = torch.ones(100)  # 400 bytes
        view = first.view(10, 10)
        live.part = "b"
        second = view + 1
        del first, view
        third = torch.ones(50)
        del second
        assert live.now == 100 + 200
    assert live.peak == 100 + 800
    live.reassign("b", "c")  # third is alive, but was not at the peak
    assert live.parts_at_peak() == {"w": 100, "a": 400, "b": 400}
    live.reset_peak()
    assert live.parts_at_peak() == {"w": 100, "c": 200}
    del third
