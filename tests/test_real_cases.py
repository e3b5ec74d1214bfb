"""Small inputs that the project once got wrong, with the right value; frames have painted numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from odd_video import numbers_shown

from pipeline.annotations import Video
from pipeline.dataset import Dataset
from pipeline.packing.pack_video import Job, pack_video
from pipeline.packing.prepare import find_videos
from pipeline.packing.probe import probe
from pipeline.packing.transcode import EncodingSpec

# file -> frames in it, seconds, numbers of the packed frames at 15 a second, kinds of remarks
CASES = {
    "joined_segments.ts": (120, 4.0, list(range(0, 120, 2)), ["flagged"]),
    "opens_mid_gop.mp4": (180, 6.0, list(range(120, 300, 2)), ["leading"]),
    "pauses_60s.mp4": (120, 64.0, [*range(0, 60, 2), *[59] * 900, *range(60, 120, 2)], ["pause"]),
    "sound_begins_first.mp4": (120, 6.0, [*[0] * 30, *range(0, 120, 2)], ["begin"]),
    "raw.h264": (120, 4.0, list(range(0, 120, 2)), ["unstamped"]),
    "anim.gif": (10, 1.0, list(range(1, 31, 3)), []),
    "size_changes.webm": (60, 2.0, list(range(0, 60, 2)), ["pictures"]),
    "pal8.mov": (30, 1.0, list(range(0, 30, 2)), []),
}
COPIED = {"joined_segments.ts"}  # what --copy may keep of them


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_case_has_its_right_value(shared_real, name):
    frames, seconds, numbers, kinds = CASES[name]
    path = shared_real / "cases" / name
    metadata = probe(path)
    assert (metadata.num_frames, metadata.duration) == (frames, seconds)
    assert [kind for kind, _ in metadata.remarks] == kinds
    job = Job("a", "a", Video("a", "training", None, ()), path.parent, name, None, EncodingSpec())
    result, data = pack_video(job)
    assert numbers_shown(data) == numbers
    assert result.video.duration == pytest.approx(seconds) and result.video.fps == (
        10 if "gif" in name else 15
    )
    assert [repair.kind for repair in result.repairs] == kinds
    copied, _ = pack_video(replace(job, spec=None))
    assert (copied.video.reject is None) == (name in COPIED), copied.video.reject


def test_the_cases_are_all_taken_from_their_folder(shared_real):
    found = find_videos([str(shared_real / "cases")])
    assert {Path(path).name for path in found.values()} == set(CASES)


@pytest.mark.slow
def test_the_shards_of_the_cases_verify(shared_real, tmp_path):
    from click.testing import CliRunner

    from tools.make_shards import main

    rows = [f"{name},0,0.5,a" for name in CASES]
    (tmp_path / "cases.csv").write_text("\n".join(["video,start,end,label", *rows]) + "\n")
    arguments = [str(shared_real / "cases"), str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--verify", "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert len(Dataset.open(tmp_path / "out").packed("training")) == len(CASES)
