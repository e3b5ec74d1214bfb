"""The progress line: all that the manual says of it is there, at 80 columns."""

from __future__ import annotations

import pytest
from tqdm import tqdm

from train.cli import Output
from train.progress import Progress, read_events
from train.runlog import LINE, RunLog


@pytest.mark.parametrize(
    ("step", "total", "epoch", "seconds", "want"),
    [
        (12, 700, 1, 1.2, "12/700 epoch 1 loss 28.71 data 0.02s step 1.22s 12345 MiB left 01:08"),
        # ActivityNet: 60 epochs of 10,000 videos
        (
            123456,
            600000,
            13,
            7e4,
            "123456/600000 epoch 13 loss 28.71 data 0.02s step 1.22s 12345 MiB left 75",
        ),
    ],
)
def test_the_progress_line_fits_a_terminal(tmp_path, step, total, epoch, seconds, want):
    log = RunLog(tmp_path, rank=0, total_steps=total, progress=Progress(step=step), output=Output(quiet=True))
    log.advance(epoch=epoch, loss=28.712, data_seconds=0.021, step_seconds=1.2249, memory=12345.0)
    line = tqdm.format_meter(step, total, seconds, ncols=80, prefix=log.bar.desc, bar_format=LINE)
    log.close()
    assert want in line and len(line) <= 80


def test_damaged_lines_of_a_log_are_left_out_and_counted(tmp_path, capsys):
    lines = [
        '{"event": "train", "step": 1, "loss": NaN}',
        '{"event": "train", "step": "2"}',
        "[1, 2]",
        '{"event": "train"}',
        '{"event": "eval", "step": 2, "epoch": 1, "metrics": {}}',
        "[" * 5000,
        '{"event": "train", "step": 9}',
        '{"event": "train", "st',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    events, damaged = read_events(tmp_path / "log.jsonl")
    assert [event["step"] for event in events] == [1, 9] and damaged == 5
    RunLog(tmp_path, rank=0, total_steps=9, progress=Progress(step=5), output=Output()).close()
    assert "log.jsonl: 5 damaged lines left out" in capsys.readouterr().err
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
