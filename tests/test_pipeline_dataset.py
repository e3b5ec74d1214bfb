"""Shards: written as DALI and webdataset expect them, read back exactly, damage named."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from dataset_cases import data_of, video, write_five_videos
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotations import Action
from pipeline.dataset import Dataset
from pipeline.packing.shard_writer import ShardWriter, pack_samples, unique_keys
from pipeline.packing.verify import check_tars
from pipeline.records import KEY, read_index

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_five_videos(tmp_path / "set")


def test_what_was_packed_is_read_back(folder):
    dataset = Dataset.open(folder)
    assert dataset.classes == ("fall", "jump") and dataset.packing == {"fps": 15}
    assert [entry.key for entry in dataset.packed("training")] == ["k1", "k3"]
    assert all(dataset.read(f"k{i}") == data_of(i) for i in range(5))
    assert dataset.videos["k3"].shard == "00001.tar" and dataset.videos["k3"].source == "k3 of ours"
    assert dataset.videos["k3"].actions == (Action(0.25, 0.75, "jump"),)


def test_rejected_videos_stay_in_the_ground_truth(folder):
    dataset = Dataset.open(folder)
    assert list(dataset.ground_truth("validation")) == ["bad", "k0", "k2", "k4"]
    assert "bad" not in [entry.key for entry in dataset.packed("validation")]
    counts = json.loads((folder / "dataset.json").read_text())["subsets"]
    assert counts["validation"] == {"videos": 4, "packed": 3, "actions": 4}


def test_the_index_is_the_one_dali_would_write(folder, tmp_path):
    from wds2idx import IndexCreator

    for tar in sorted(folder.glob("*.tar")):
        with IndexCreator(str(tar), str(tmp_path / "theirs"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "theirs").read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_the_tars_are_plain_gnu_tars_and_webdataset_reads_them(folder):
    with tarfile.open(folder / "00000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["k0.json", "k0.mp4", "k1.json", "k1.mp4"]
    assert all((m.uid, m.gid, m.uname, m.gname, m.mtime) == (0, 0, "", "", 0) for m in members)
    urls = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"k{i}" for i in range(5)]
    assert [sample["mp4"] for sample in samples] == [data_of(i) for i in range(5)]
    assert json.loads(samples[1]["json"])["source"] == "k1 of ours"


def test_the_same_videos_give_the_same_bytes(folder, tmp_path):
    samples = ((video(f"k{i}", "training" if i % 2 else "validation"), data_of(i)) for i in range(5))
    pack_samples(tmp_path / "again", samples, shard_size=2)
    for path in sorted((tmp_path / "again").iterdir()):
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_an_error_while_writing_leaves_no_shard(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "00000") as writer:
        writer.write(video("k0"), b"bytes")
        assert [path.name for path in tmp_path.iterdir()] == ["00000.tar.tmp"]
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_shard_without_videos_is_not_written(tmp_path):
    with ShardWriter(tmp_path, "00000") as writer:
        pass
    assert writer.shard is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "a.b", "../a", "a/b", "a b", "x" * 81, "\u00e9"])
def test_a_key_that_is_no_flat_name_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="not a key"), ShardWriter(tmp_path, "00000") as writer:
        writer.write(video(key), b"bytes")


def test_keys_keep_good_names_and_tell_equal_ones_apart():
    keys = unique_keys(["v_QO-1", "a b.mp4", "a_b.mp4", "../../x", "", "\u00e9t\u00e9"])
    assert keys["v_QO-1"] == "v_QO-1" and keys["../../x"] == "x" and keys["\u00e9t\u00e9"] == "ete"
    assert keys["a b.mp4"].startswith("a_b_mp4-") and keys["a_b.mp4"].startswith("a_b_mp4-")
    assert keys["a b.mp4"] != keys["a_b.mp4"]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text("ab./ _-\u00e9\u4e2d" * 2, max_size=100), unique=True, max_size=8))
def test_any_names_get_different_flat_keys(names):
    keys = unique_keys(names)
    assert len(set(keys.values())) == len(names)
    assert all(KEY.fullmatch(key) for key in keys.values())


@pytest.mark.parametrize("kept", [0, 700, None])
def test_a_cut_or_missing_tar_is_named_when_the_data_set_is_opened(folder, kept):
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:kept]) if kept is not None else tar.unlink()
    wanted = r"00001\.tar: has \d+ bytes, want 10240 as in dataset\.json; copy it again"
    with pytest.raises(ValueError, match=wanted):
        Dataset.open(folder)
    assert Dataset.open(folder / "00000.tar").read("k1") == data_of(1)


def test_without_a_single_tar_the_ground_truth_can_still_be_read(folder):
    for tar in folder.glob("*.tar"):
        tar.unlink()
    dataset = Dataset.open(folder)
    assert list(dataset.ground_truth("validation")) == ["bad", "k0", "k2", "k4"]
    with pytest.raises(ValueError, match=r"00000\.tar: has 0 bytes"):
        check_tars(dataset)


def test_a_tar_that_is_cut_after_opening_is_named_with_the_key(folder):
    dataset, tar = Dataset.open(folder), folder / "00001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"00001\.tar: k3 \(k3 of ours\): the tar is cut, \d+ of 3001 bytes"):
        dataset.read("k3")


def test_a_changed_byte_is_named_with_the_key(folder):
    tar = folder / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[read_index(folder / "00001.idx")["k3.mp4"][0] + 7] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"00001\.tar: k3 \(k3 of ours\): sha256 differs"):
        Dataset.open(folder).read("k3")


def test_a_changed_byte_of_the_padding_is_found_by_reading_the_tars(folder):
    check_tars(Dataset.open(folder))
    for name in ("00000.tar", "00002.tar"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1  # zeros that end a tar: no video has it
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"in 2 of 3 tars \(00000\.tar, 00002\.tar\)"):
        check_tars(Dataset.open(folder))


def test_a_missing_or_cut_index_is_named(folder):
    (folder / "00000.idx").unlink()
    with pytest.raises(ValueError, match=r"00000\.idx: missing"):
        Dataset.open(folder).read("k0")
    (folder / "00001.idx").write_text((folder / "00001.idx").read_text()[:30])
    with pytest.raises(ValueError, match=r"00001\.idx: not a whole DALI index"):
        Dataset.open(folder).read("k2")


def test_an_unknown_subset_is_refused_with_the_known_ones(folder):
    with pytest.raises(ValueError, match=r"'test', want one of: training \(2\), validation \(3\)"):
        Dataset.open(folder).packed("test")


def test_a_rejected_or_unknown_video_cannot_be_read(folder):
    with pytest.raises(ValueError, match="bad has no packed video"):
        Dataset.open(folder).read("bad")
    with pytest.raises(ValueError, match="nobody has no packed video"):
        Dataset.open(folder).read("nobody")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda d: d.update(format="other"), "got other version 1"),
        (lambda d: d.update(version=9), "version 9"),
        (lambda d: d.pop("videos"), "not a data set of make-shards"),
        (lambda d: d["shards"][0].update(file="../../x.tar"), "leaves the folder"),
        (lambda d: d["shards"][0].update(index="/etc/passwd"), "leaves the folder"),
        (lambda d: d["videos"]["k0"].pop("actions"), "not a data set of make-shards"),
        (lambda d: d["videos"]["k0"].update(shard="../00000.tar"), "lies in ../00000.tar"),
    ],
)
def test_a_wrong_dataset_json_is_refused_in_one_line(folder, change, wanted):
    path = folder / "dataset.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError) as caught:
        Dataset.open(folder)
    assert wanted in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_tars_can_be_named_by_path_glob_and_braces(folder):
    assert sorted(Dataset.open(folder / "00002.tar").videos) == ["k4"]
    assert sorted(Dataset.open(folder / "{00000..00001}.tar").videos) == ["k0", "k1", "k2", "k3"]
    assert sorted(Dataset.open(folder / "*.tar").videos) == ["bad", "k0", "k1", "k2", "k3", "k4"]
    assert Dataset.open(f"file://{folder}").read("k2") == data_of(2)


@pytest.mark.parametrize("name", ["nowhere", "0000{0..7}.tar", "{00000..0", "*.rat"])
def test_a_location_where_nothing_is_is_refused(folder, name):
    with pytest.raises(ValueError, match="want|match"):
        Dataset.open(folder / name)


def test_a_folder_without_a_description_is_refused(folder):
    (folder / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"no dataset\.json in it"):
        Dataset.open(folder)


@pytest.mark.slow
def test_reading_a_description_imports_neither_torch_nor_webdataset(folder):
    code = (
        "import sys; from pipeline.dataset import Dataset; Dataset.open(sys.argv[1]).read('k1'); "
        "print({'torch', 'av', 'webdataset', 'nvidia', 'fsspec', 'aiohttp'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", ["duration", "fps", "num_frames", "width", "codec", "actions", "shard", "source"]
)
@pytest.mark.parametrize("value", ["x" * 5000, [1, 2], {"a": 1}, True, -1, 1e999, float("nan"), 10**400])
def test_a_value_of_another_type_in_dataset_json_is_named_by_its_place(folder, field, value):
    path = folder / "dataset.json"
    document = json.loads(path.read_text())
    document["videos"]["k1"][field] = value
    path.write_text(json.dumps(document))
    if field in ("codec", "source") and isinstance(value, str):
        assert Dataset.open(folder).videos["k1"].fps == 15
        return
    with pytest.raises(ValueError, match=r"dataset\.json: (videos\.k1\.|k1 lies in|k1 is packed)") as caught:
        Dataset.open(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(classes=5),
        lambda d: d.update(classes=["jump", 5]),
        lambda d: d.update(classes=["jump", "jump", "fall"]),
        lambda d: d.update(settings=[]),
        lambda d: d.update(settings={"fps": float("inf")}),
        lambda d: d.update(shards={}),
        lambda d: d["shards"][0].update(bytes="many"),
        lambda d: d["shards"].append(d["shards"][0]),
        lambda d: d.update(videos=[]),
        lambda d: d["videos"].update(k0=None),
        lambda d: d["videos"]["k0"].update(actions=[{"segment": [0, 1], "label": "unknown"}]),
        lambda d: d["videos"]["k0"].update(actions=[{"segment": [0, 1, 2], "label": "jump"}]),
        lambda d: d["videos"]["k0"].update(num_frames=0),
        lambda d: d["videos"]["k0"].update(extra=1),
        lambda d: d["videos"]["bad"].update(reject=None),
        lambda d: d.update(repairs=[{"video": "k1"}]),
        lambda d: d.update(format={"a": [1]}),
    ],
)
def test_a_dataset_json_that_contradicts_itself_is_refused(folder, change):
    path = folder / "dataset.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="not a data set of make-shards, or damaged; ") as caught:
        Dataset.open(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("cell", ["-1", "1_0", "\u0664", "9" * 30, "1.0", "", "+5"])
def test_an_index_with_a_number_that_is_none_is_refused(folder, cell):
    index = folder / "00000.idx"
    cells = index.read_text().split(" ")
    cells[2] = cell
    index.write_text(" ".join(cells))
    with pytest.raises(ValueError, match=r"00000\.idx: not a whole DALI index"):
        read_index(index)
