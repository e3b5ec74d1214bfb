"""Raw outputs in HDF5: what goes in comes out, and damaged files are named."""

from __future__ import annotations

import dataclasses
import errno
import os

import h5py
import numpy as np
import pytest
from full_disk import files_of_at_most

from train.postprocess import RawWindow
from train.raw_outputs import ARRAYS, raw_writer, read_raw, read_raw_header, write_raw

CLASSES = ("jump", "run \u00fcber")


def window(seed: int, num_proposals: int = 5) -> RawWindow:
    rng = np.random.default_rng(seed)
    shapes = {
        "segments": (num_proposals, 2),
        "quality": (num_proposals,),
        "class_scores": (num_proposals, len(CLASSES)),
        "boundary": (2, 8),
    }
    arrays = {name: rng.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    return RawWindow(key=f"v{seed // 2}", window=(0.1 * seed, 3.3), duration=7.7, num_steps=8, **arrays)


@pytest.fixture
def path(tmp_path):
    write_raw(
        tmp_path / "raw.h5", [window(i, i) for i in range(4)], classes=CLASSES, metadata={"subset": "val"}
    )
    return tmp_path / "raw.h5"


def test_a_full_disk_is_an_error_before_hdf5_meets_it_and_leaves_nothing(tmp_path):
    """HDF5 itself crashes the process, then or at its end."""
    with files_of_at_most(6_000_000), pytest.raises(OSError, match="File too large: .*full.h5"):
        write_raw(tmp_path / "full.h5", [window(i, 20_000) for i in range(5)], classes=CLASSES, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_reserve_room_is_written_to_all_the_same(tmp_path, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    write_raw(tmp_path / "raw.h5", [window(0)], classes=CLASSES, metadata={})
    assert len(list(read_raw(tmp_path / "raw.h5"))) == 1


def test_what_is_written_is_read_back_bit_by_bit_in_order(path):
    assert read_raw_header(path) == (CLASSES, {"subset": "val"})
    for number, read in enumerate(read_raw(path)):
        written = window(number, number)
        for field in dataclasses.fields(RawWindow):
            np.testing.assert_array_equal(getattr(read, field.name), getattr(written, field.name))
    assert number == 3


def test_a_run_that_fails_leaves_no_file(tmp_path):
    with (
        pytest.raises(RuntimeError, match="killed"),
        raw_writer(tmp_path / "raw.h5", classes=CLASSES, metadata={}) as writer,
    ):
        writer.add(window(0))
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []


def test_a_window_with_too_few_classes_is_refused(tmp_path):
    bad = dataclasses.replace(window(0), class_scores=np.zeros((5, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="raw output of 'v0': got shapes"):
        write_raw(tmp_path / "raw.h5", [bad], classes=CLASSES, metadata={})


def test_a_cut_file_and_a_foreign_one_are_named(path, tmp_path):
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.h5: not a whole HDF5 file"):
        read_raw_header(cut)
    foreign = tmp_path / "foreign.h5"
    h5py.File(foreign, "w").close()
    with pytest.raises(ValueError, match=r"foreign\.h5: not a leantad-raw file"):
        list(read_raw(foreign))
    with pytest.raises(ValueError, match="no such file"):
        read_raw_header(tmp_path / "none.h5")


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_or_misshapen_array_is_named_by_window(path, name):
    with h5py.File(path, "a") as file:
        del file["windows/000002"][name]
        file["windows/000002"].create_dataset(name, data=np.zeros((1, 1, 1), dtype=np.float32))
    with pytest.raises(ValueError, match=r"raw\.h5, window 000002: got shapes"):
        list(read_raw(path))
    with h5py.File(path, "a") as file:
        del file["windows/000002"][name]
    with pytest.raises(ValueError, match=f"window 000002: {name} is missing"):
        list(read_raw(path))


def test_links_into_other_files_are_not_followed(path, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.zeros(1, dtype=np.float32)
    with h5py.File(path, "a") as file:
        del file["windows/000001/quality"]
        file["windows/000001/quality"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(ValueError, match="window 000001: quality is missing or lies in another file"):
        list(read_raw(path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.attrs.pop("meta"),
        lambda file: file.attrs.__setitem__("meta", 5),
        lambda file: file.attrs.__setitem__("meta", "5"),
        lambda file: file.attrs.__setitem__("meta", '{"post": []}'),
        lambda file: file.attrs.__setitem__("meta", '{"videos": 3}'),
        lambda file: file.attrs.__setitem__("meta", "[" * 5000 + "]" * 5000),
        lambda file: file.attrs.__setitem__("meta", '{"a": 1e999}'),
        lambda file: replaced(file, "classes", np.zeros(2)),
        lambda file: replaced(file, "classes", None),
        lambda file: replaced(file, "windows", np.zeros(2)),
        lambda file: replaced(file, "windows/000001", np.zeros(2)),
        lambda file: replaced(file, "windows/000001/quality", None),
        lambda file: replaced(file, "windows/000001/quality", np.array([b"x"])),
        lambda file: replaced(file, "windows/000001/quality", h5py.Empty("f")),
        lambda file: replaced(file, "windows/000001/quality", h5py.SoftLink("/windows/000001/quality")),
        *[
            lambda file, name=name, value=value: file["windows/000001"].attrs.__setitem__(name, value)
            for name in ("key", "start", "duration", "num_steps")
            for value in ([1, 2], np.nan, h5py.Empty("f"), np.complex64(1j), np.void(b"x"))
        ],
        *[
            lambda file, value=value: file["windows/000001"].attrs.__setitem__("num_steps", value)
            for value in (-1, 0, 2**62, 8.0, "8", True)
        ],
    ],
)
def test_a_damaged_structure_is_one_line(path, damage):
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(ValueError, match="write it again with --raw|nested too deeply|got shapes") as caught:
        read_raw_header(path)
        list(read_raw(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def replaced(file: h5py.File, name: str, value: object) -> None:
    """Put a value, or a group for None, in place of a member."""
    del file[name]
    if value is None:
        file.create_group(name)
    else:
        file[name] = value


def test_an_array_that_claims_a_terabyte_is_not_read(path):
    with h5py.File(path, "a") as file:
        del file["windows/000001/boundary"]
        file["windows/000001"].attrs["num_steps"] = 1 << 19
        file["windows/000001"].create_dataset("boundary", shape=(2, 1 << 38), chunks=True, dtype="f4")
    with pytest.raises(ValueError, match="window 000001"):
        list(read_raw(path))
