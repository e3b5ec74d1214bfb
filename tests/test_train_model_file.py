"""Model files: equal bytes, nothing of this machine in them, and whatever is wrong with one is one line."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest
import torch
import yaml
from safetensors.torch import save
from untrained_run import CLASSES, PACKED, checkpoint

from pipeline.files import sha256_of
from settings_group import groups_of, settings_of
from train.checkpoint import read_weights
from train.inference import load_trained
from train.model_file import LOCAL, read_model_file, write_model_file
from train.model_zip import write_members
from train.settings import Settings


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose settings and packing have much of this machine in them."""
    folder = checkpoint(
        tmp_path_factory.mktemp("alice") / "run",
        {**PACKED, "shard_size": 64, "subsets": ["alice"], "versions": {"av": "17"}},
    )
    path = folder / "checkpoints" / "last" / "settings.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["data"]["shards"] = "/home/alice/data"
    settings["encoder"]["weights"] = "/home/alice/weights.safetensors"
    settings["run"] |= {"ds_config": "/home/alice/ds.json", "device": "cpu"}
    path.write_text(yaml.safe_dump(settings) + "# signature of alice\n")
    return folder


@pytest.fixture(scope="module")
def model(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "mine.leantad"
    write_model_file(path, run)
    return path


def refused(path: Path) -> str:
    """The one line that refuses a model file, without its name."""
    with pytest.raises(ValueError) as caught:
        load_trained(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message, message
    assert len(message) - len(str(path)) < 450, message
    return message.removeprefix(str(path))


@pytest.mark.slow
def test_a_model_file_is_the_checkpoint_without_this_machine(run, model):
    found = read_model_file(model)
    assert found.classes == tuple(CLASSES) and found.packing == PACKED
    weights = read_weights(run / "checkpoints" / "last")
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in weights.items())
    trained = load_trained(run, ["run.device=auto", "run.ds_config=null", "data.shards=''"])
    assert found.settings == trained.settings and load_trained(model).settings == trained.settings
    assert trained.packing is not None and PACKED.items() <= trained.packing.items()
    data = model.read_bytes()
    assert b"alice" not in data and b"/home" not in data and b"step_000" not in data


@pytest.mark.slow
def test_the_thresholds_of_the_classes_travel_with_the_model(run, model, tmp_path):
    assert load_trained(model).thresholds is None
    copy, path = tmp_path / "copy", tmp_path / "mine.leantad"
    shutil.copytree(run / "checkpoints" / "last", copy)
    one = {"score": 0.25, "f1": 0.5}
    (copy / "thresholds.json").write_text(
        json.dumps({"subset": "val", "overall": one, "classes": {CLASSES[0]: {"score": 0.125, "f1": 1.0}}})
    )
    write_model_file(path, copy)
    thresholds = load_trained(path).thresholds
    assert thresholds is not None and thresholds == load_trained(copy).thresholds
    assert thresholds.scores(CLASSES[:2]) == {CLASSES[0]: 0.125, CLASSES[1]: 0.25}


def test_every_setting_that_is_free_text_is_known_to_be_no_path_or_is_left_out():
    """A new one has to be thought of: is it of this machine?"""
    text = {
        setting.name
        for name, group in groups_of(Settings)
        for setting in settings_of(group, name)
        if "text" in setting.type and not setting.allowed
    }
    assert text == {"data.train_subset", "data.val_subset", "run.protocol", *LOCAL} - {"run.device"}


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes_wherever_and_whenever(run, model, tmp_path):
    shutil.copytree(run / "checkpoints" / "last", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model.safetensors", (1, 1))
    (tmp_path / "copy" / "model.safetensors").chmod(0o600)
    write_model_file(tmp_path / "other.leantad", tmp_path / "copy")
    assert (tmp_path / "other.leantad").read_bytes() == model.read_bytes()
    with ZipFile(model) as archive:
        assert archive.namelist() == ["model.json", "model.safetensors"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_the_weights_can_be_taken_out_with_any_tool_for_zips(run, model, tmp_path):
    shutil.unpack_archive(model, tmp_path, "zip")
    assert (tmp_path / "model.safetensors").read_bytes() == (
        run / "checkpoints" / "last" / "model.safetensors"
    ).read_bytes()


def test_settings_change_on_top_of_the_file(model):
    assert load_trained(model, ["post.sigma=0.7"]).settings.post.sigma == 0.7
    with pytest.raises(ValueError, match=r"^post\.sigmoid: unknown setting"):
        load_trained(model, ["post.sigmoid=1"])
    with pytest.raises(ValueError, match=r"another network's .* leave out --set where it changes"):
        load_trained(model, ["detector.neck_dim=32"])


@pytest.mark.parametrize("when", ["full", "killed"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(run, tmp_path, monkeypatch, when):
    path = tmp_path / "mine.leantad"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device") if when == "full" else KeyboardInterrupt

    monkeypatch.setattr("train.model_zip.shutil.copyfileobj", fail)
    with pytest.raises(OSError if when == "full" else KeyboardInterrupt):
        write_model_file(path, run)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["mine.leantad"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.json", "[]", "classes"),
        ("classes.json", '["a", "a", "b"]', "classes: one stands twice"),
        ("classes.json", '["a", 2, "b"]', "1: got 2, want text"),
        ("classes.json", '["a", "\\ud800", "b"]', "surrogates not allowed"),
        ("classes.json", '["a", "b"]', "another network's"),
        ("packing.json", "{}", "want copy, or codec"),
        ("packing.json", None, "an older release wrote this checkpoint"),
        ("settings.yaml", "data: {shards: x}\nseed: x", "seed"),
        ("model.safetensors", "cut", "damaged, or no safetensors file"),
    ],
)
def test_what_predict_could_not_use_is_not_exported(run, tmp_path, name, content, message):
    shutil.copytree(run / "checkpoints" / "last", tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.write_text(content) if content is not None else path.unlink()
    with pytest.raises(ValueError, match=message):
        write_model_file(tmp_path / "mine.leantad", tmp_path / "copy")
    assert os.listdir(tmp_path) == ["copy"]


# ------------------------------------------------------------------------------------ files of others


def changed(
    model: Path, path: Path, change: Callable[[dict[str, Any]], object], weights: bytes = b""
) -> Path:
    """A well-formed model file with another model.json, and perhaps other weights, whose sha256 is right."""
    with ZipFile(model) as archive:
        document, data = json.loads(archive.read("model.json")), archive.read("model.safetensors")
    data = weights or data
    document["weights"] = {"bytes": len(data), "sha256": sha256_of(data)}
    change(document)
    write_members(path, {"model.json": json.dumps(document).encode(), "model.safetensors": data})
    return path


def entry(*names: str) -> Callable[[dict[str, Any], Any], None]:
    """Sets a value in nested dicts."""

    def change(document: dict[str, Any], value: Any) -> None:
        for name in names[:-1]:
            document = document[name]
        document[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (("format",), "other", "is no model file, model.json in it is another program's"),
        (("version",), 2, "is of version 2, this release reads 1; install a newer LeanTAD"),
        (("version",), "x" * 999, "is of version 'xxx"),
        (("thresholds",), {}, "is it a newer release's?"),
        (("classes",), [], "classes"),
        (("classes",), ["a", "b", 3], "classes.2"),
        (("classes",), ["a", "b", "b"], "one stands twice"),
        (("classes",), {"a": 1}, "classes"),
        (("packing",), {}, "want copy, or codec"),
        (("packing", "codec"), "theora", "want copy, or codec, fps"),
        (("packing", "short_side"), 10**6, "want copy, or codec, fps"),
        (("packing", "gop"), 0, "want copy, or codec, fps"),
        (("packing", "fps"), 10**400, "model.json"),
        (("packing", "fps"), float("inf"), "not JSON compliant"),
        (("packing", "path"), "/home", "'path' unknown"),
        (("settings",), [], "settings"),
        (("settings", "data"), [], "want settings below it"),
        (("settings", "data", "shards"), "pipe:touch /tmp/x", "sets data.shards to 'pipe:touch /tmp/x'"),
        (("settings", "data", "shards"), "/home/bob" * 500, "sets data.shards"),
        (("settings", "encoder", "weights"), "/etc/passwd", "sets encoder.weights to '/etc/passwd'"),
        (("settings", "run", "ds_config"), "evil.json", "sets run.ds_config to 'evil.json'"),
        (("settings", "run", "device"), "cuda", "sets run.device to 'cuda'"),
        (("settings", "run", "hook"), "os.system", "unknown setting"),
        (("settings", "post", "sigma"), -1, "sigma"),
        (("settings", "post", "sigma"), "x" * 10**6, "sigma"),
        (("settings", "seed"), 10**30, "seed: want a whole number of at most"),
        (("settings", "detector", "neck_dim"), 10**12, "no network has its settings"),
        (("settings", "detector", "fc_dim"), 10**8, "another network's than its settings"),
        (("settings", "detector", "regression_tiou"), [0.5] * 10**4, "a list of more than 32 values"),
        (("weights", "bytes"), -1, "weights.bytes"),
        (("weights", "bytes"), 10, "its weights are not those that model.json states"),
        (("weights", "sha256"), "0" * 64, "its weights are not those that model.json states"),
    ],
)
def test_a_model_json_that_we_did_not_write_is_one_line(model, tmp_path, names, value, message):
    path = changed(model, tmp_path / "other.leantad", lambda document: entry(*names)(document, value))
    assert message in refused(path)


def test_a_model_json_that_is_no_json_is_one_line(tmp_path):
    path = tmp_path / "other.leantad"
    for text in (b"", b"{", b"[" * 100_000, b"\xff", b"null", b'{"format": 1, "format": 2}'):
        write_members(path, {"model.json": text, "model.safetensors": b""})
        assert "model.json" in refused(path)


@pytest.mark.slow
def test_weights_that_are_no_tensors_of_the_network_are_one_line(model, tmp_path):
    path, tensor = tmp_path / "other.leantad", torch.zeros(3)
    for weights in (b"x", b"\xff" * 100, save({"a": tensor}), save({"n" * 10**6: tensor})):
        message = refused(changed(model, path, lambda document: None, weights))
        assert "no safetensors file" in message or "another network's" in message
    extra = save({**read_model_file(model).tensors, "n" * 10**6: tensor})
    assert "another network's" in refused(changed(model, path, lambda document: None, extra))
    header = json.dumps({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}).encode()
    unknown = struct.pack("<Q", len(header)) + header + bytes(4)
    assert "no safetensors file" in refused(changed(model, path, lambda document: None, unknown))


# ------------------------------------------------------------------------------------ zips of others


def zipped(path: Path, *members: tuple[str | ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip with these members, as any tool may write it."""
    with warnings.catch_warnings(), ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a name twice is what is wanted
        for name, content in members:
            archive.writestr(name, content)
    return path


def members_of(model: Path) -> dict[str, bytes]:
    with ZipFile(model) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "model.json/", "C:\\x", "model.json\0x", "settings.yaml", "x" * 60000]
)
def test_a_zip_with_another_member_is_refused_and_nothing_is_written(model, tmp_path, monkeypatch, name):
    """The name stands beside the two, and in place of one."""
    monkeypatch.chdir(tmp_path)
    path, members = tmp_path / "folder" / "other.leantad", members_of(model)
    path.parent.mkdir()
    member = ZipInfo("x")
    member.filename = name  # the constructor would cut it at the NUL
    zipped(path, *members.items(), (member, b"x"))
    assert "is no model file, it holds 'model.json', 'model.safetensors', " in refused(path)
    zipped(path, (member, members["model.json"]), ("model.safetensors", members["model.safetensors"]))
    assert "is no model file, it holds " in refused(path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_member_that_stands_twice_is_refused(model, tmp_path):
    members = list(members_of(model).items())
    path = zipped(tmp_path / "other.leantad", *members, members[0])
    assert "it holds 'model.json', 'model.safetensors', 'model.json'" in refused(path)
    assert "it holds nothing" in refused(_empty_zip(tmp_path / "empty.leantad"))


def _empty_zip(path: Path) -> Path:
    """A zip whose list of members is empty, though it begins with one."""
    zipped(path, ("model.json", b"{}"))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"PK\x01\x02")] + b"PK\x05\x06" + bytes(18))
    return path


def test_links_and_compressed_and_encrypted_members_are_refused(model, tmp_path):
    members, path = members_of(model), tmp_path / "other.leantad"
    zipped(path, *members.items(), compression=ZIP_DEFLATED)
    assert "model.json in it is compressed, encrypted or a link" in refused(path)
    link = ZipInfo("model.json")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    zipped(path, (link, b"/etc/passwd"), ("model.safetensors", b""))
    assert "model.json in it is compressed, encrypted or a link" in refused(path)
    zipped(path, *members.items())
    data = bytearray(path.read_bytes())
    listed = data.index(b"PK\x01\x02")
    data[listed + 8] |= 1
    path.write_bytes(data)
    assert "model.json in it is compressed, encrypted or a link" in refused(path)


@pytest.mark.slow
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    path, zeros = tmp_path / "other.leantad", bytes(1 << 26)
    zipped(path, ("model.json", b"{}"), ("model.safetensors", zeros), compression=ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20 and "compressed" in refused_at_once(path)
    zipped(path, ("model.json", zeros[: 17 << 20]), ("model.safetensors", b""))
    assert "model.json in it has 17,825,792 bytes, want at most 16,777,216" in refused_at_once(path)
    zipped(path, *((f"{number:0900}", b"") for number in range(1200)))
    assert "its list of members is too long" in refused_at_once(path)


def refused_at_once(path: Path) -> str:
    """The line that refuses a file, for which less than 8 MiB were taken."""
    tracemalloc.start()
    try:
        message = refused(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    return message


def test_sizes_beyond_the_file_and_members_upon_members_are_refused(model, tmp_path):
    path, members = tmp_path / "other.leantad", members_of(model)
    data = bytearray(model.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    for offset in (20, 24):  # compressed and real size
        struct.pack_into("<I", data, second + offset, len(data) + 1)
    path.write_bytes(data)
    assert "it states more bytes than it has" in refused(path)
    zipped(path, ("model.json", members["model.safetensors"]), ("model.safetensors", b""))
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    for offset in (20, 24):  # both members are the same bytes
        struct.pack_into("<I", data, second + offset, len(members["model.safetensors"]))
    struct.pack_into("<I", data, second + 42, 0)
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_files_that_are_no_zip_are_refused(run, tmp_path):
    path = tmp_path / "other.leantad"
    torch.save({"a": torch.zeros(1)}, path)
    assert "is no model file, it holds 'other/data.pkl'" in refused(path)
    for content in (b"", b"P", b"<html>", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        assert f"is no model file, it begins with {content[:4]!r}; want a run folder" in refused(path)
    assert "is no model file" in refused(run / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_or_changed_file_is_one_line_or_the_same_model(model, tmp_path, seed):
    """A changed byte that nothing reads, such as of a date, changes nothing; all else is found."""
    whole, path, choose = model.read_bytes(), tmp_path / "other.leantad", random.Random(seed)
    listed, document = whole.index(b"PK\x01\x02"), whole.index(b"\n}\n")
    wanted = read_model_file(model)
    for number in range(60):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[choose.randrange(len(data)) :]
        else:
            first, last = choose.choice([(0, document), (listed, len(data)), (0, len(data))])
            for _ in range(choose.choice([1, 1, 4])):
                data[choose.randrange(first, last)] = choose.choice([0, 1, 255, choose.randrange(256)])
        path.write_bytes(data)
        try:
            found = read_model_file(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), (seed, number)
            assert len(str(error)) - len(str(path)) < 450
        else:
            assert found.settings == wanted.settings and found.classes == wanted.classes
            assert all(torch.equal(found.tensors[name], wanted.tensors[name]) for name in wanted.tensors)
