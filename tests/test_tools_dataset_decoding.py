"""Where videos will be decoded: what inspect states beforehand, and that `make demo` holds with a GPU."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import nvdec_stand_in
import pytest
import torch
from click.testing import CliRunner
from dataset_cases import video

from pipeline.dataset import Dataset
from pipeline.gpu_formats import packed_format
from pipeline.loader import Loader
from tools.dataset import decoding
from tools.dataset.decoding import decoding_of, decoding_text
from tools.inspect_shards import main as inspect
from tools.make_shards import main as make_shards
from tools.make_synthetic import main as make_synthetic
from train.settings import load_settings

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
GPU = Path("/dev/nvidia0")


def arguments_of(tool: str) -> list[str]:
    """The arguments that `make demo` gives a tool, after --force and before the folders."""
    (line,) = [
        line for line in MAKEFILE.read_text().splitlines() if f"tools/{tool}.py" in line and "@" in line
    ]
    return [word for word in shlex.split(line) if word.startswith("--") and word != "--out"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The data set of `make demo`, with fewer videos."""
    folder = tmp_path_factory.mktemp("demo")
    videos, shards = folder / "videos", folder / "shards"
    options = [*arguments_of("make_synthetic"), "--train", "6", "--val", "3", "--longest", "10", "--quiet"]
    result = CliRunner().invoke(make_synthetic, ["--out", str(videos), *options])
    assert result.exit_code == 0, result.output
    files = [str(videos / "videos"), str(videos / "annotations.json"), "--out", str(shards)]
    result = CliRunner().invoke(make_shards, [*files, *arguments_of("make_shards"), "--quiet"])
    assert result.exit_code == 0, result.output
    return shards


def batches_of(shards: Path, subset: str, lines: list[str], *, training: bool, **data):
    settings = load_settings(Path("demo"), [f"data.shards={shards}"]).data.model_copy(update=data)
    options = {"subset": subset, "batch_size": 4, "seed": 0, "rank": 0, "world_size": 1}
    dataset = Dataset.open(shards)
    with closing(
        Loader(dataset, settings, device="cpu", training=training, remark=lines.append, **options)
    ) as loader:
        return [batch for _, batch in zip(range(3), loader, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize(("subset", "training"), [("training", True), ("validation", False)])
def test_the_videos_of_make_demo_cannot_fail_on_a_gpu(demo, monkeypatch, subset, training):
    """They are 48x48 pixels of VP9, of which no GPU decodes less than 128x128."""
    want = batches_of(demo, subset, [], training=training, decode_workers=1)
    nvdec = nvdec_stand_in.install(monkeypatch)
    lines: list[str] = []
    got = batches_of(demo, subset, lines, training=training)
    assert len(got) == len(want) and all(
        first.keys == second.keys and torch.equal(first.inputs, second.inputs)
        for first, second in zip(got, want, strict=True)
    )
    total = len(Dataset.open(demo).packed(subset))
    assert not nvdec.calls
    assert lines == [
        f"loader: the CPU decodes {total} of {total} videos, not the GPU: GPUs decode vp9 from 128x128 "
        f"pixels on ({total} videos)"
    ]


@pytest.mark.slow
def test_without_the_way_back_the_demo_would_fail(demo, monkeypatch):
    """The stand-in refuses those videos as DALI does: the test above tests something."""
    nvdec_stand_in.install(monkeypatch)
    dataset = Dataset.open(demo)
    (key, *_) = dataset.videos
    with pytest.raises(ValueError, match="too small in at least one dimension. Provided: 48x48 vs supp.*128"):
        nvdec_stand_in.NvdecDecoder(nvdec_stand_in.GPU).decode(dataset.read(key), torch.arange(3).numpy())


@pytest.mark.slow
def test_make_shards_records_the_layout_of_the_pixels(demo):
    assert {packed_format(video).pix_fmt for video in Dataset.open(demo).videos.values()} == {"yuv420p"}
    entry = next(iter(json.loads((demo / "dataset.json").read_text())["videos"].values()))
    assert entry["pix_fmt"] == "yuv420p"


@pytest.mark.skipif(GPU.exists(), reason="with a GPU inspect asks its driver")
def test_inspect_states_where_the_demo_will_be_decoded(demo):
    result = CliRunner().invoke(inspect, [str(demo)])
    assert result.exit_code == 0, result.output
    assert "training on a GPU decodes 0 videos there, 9 on the CPU\n" in result.stdout
    assert "  GPUs decode vp9 from 128x128 pixels on: 9 videos\n" in result.stdout
    document = json.loads(CliRunner().invoke(inspect, [str(demo), "--json"]).stdout)
    assert document["facts"]["decoding"]["on_cpu"] == 9


def packed(codec: str, width: int, height: int, pix_fmt: str | None = "yuv420p"):
    return replace(video("v"), codec=codec, width=width, height=height, pix_fmt=pix_fmt)


def test_the_videos_of_each_decoder_are_counted_by_reason(monkeypatch):
    monkeypatch.setattr(decoding, "Path", lambda name: Path("/no/such"))
    videos = [
        *[packed("h264", 170, 128)] * 2,
        packed("h264", 176, 128),
        packed("vp9", 170, 128, None),
        packed("libdav1d", 640, 360),
        packed("mjpeg", 640, 360, "yuvj420p"),
        *[packed("vp9", 96, 96)] * 3,
        packed("vp9", 321, 240),
        packed("hevc", 640, 360, "yuv422p10le"),
    ]
    found = decoding_of(videos)
    assert (found["on_gpu"], found["on_cpu"]) == (5, 6)
    assert found["reasons"] == {
        "GPUs decode vp9 from 128x128 pixels on": 3,
        "no GPU decodes mjpeg here": 1,
        "GPUs decode odd sides wrongly": 1,
        "GPUs decode yuv422p10le wrongly, want 4:2:0": 1,
    }
    assert found["rebuilt"] == {"h264 170x128": 2}
    text = decoding_text(found)
    assert "decodes 5 videos there, 6 on the CPU" in text
    assert "no multiple of 16: h264 170x128 (2 videos)" in text and "they work as they are" in text


def test_a_data_set_without_pixels_states_nothing():
    assert decoding_text(decoding_of([])) == ""
