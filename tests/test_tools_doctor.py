"""`leantad doctor`: finds this machine fit, names what is broken, survives a check that fails or dies."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from nvdec_stand_in import GPU, H200, NONE

from tools.doctor import main
from tools.machine import checks, decoders, libraries
from tools.machine.checks import BROKEN, OK, WARNING, CheckResult, read_constraints
from tools.machine.run import CHECKS, run_check, run_in_own_process


@pytest.fixture
def fake_torch(tmp_path, monkeypatch):
    """Write a torch.py that is found before the real one by every process that is started."""

    def write(text: str) -> None:
        (tmp_path / "torch.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


@pytest.mark.slow
def test_this_machine_can_train():
    """The checks that load libraries, in this process: CI has what training needs."""
    for check in (libraries.check_torch, decoders.check_decode, libraries.check_deepspeed):
        found = list(check())
        assert found and not [item for item in found if item.state == BROKEN], found


@pytest.mark.slow
def test_every_codec_that_has_an_encoder_is_decoded():
    found = {codec: decoders.try_codec(codec, "cpu") for codec in ("vp9", "h264", "mpeg4")}
    assert all(item.state == OK and "off by" in item.text for item in found.values()), found
    assert "by DALI" in found["vp9"].text and "by PyAV" in found["h264"].text


def test_no_encoder_leaves_this_thread_in_real_time():
    """SVT-AV1 does that to its caller if that is root; a process that waits in a loop then holds its core."""
    decoders.try_codec("av1", "cpu")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_decoder_that_shows_the_frame_before_is_broken(monkeypatch):
    import pipeline.decode

    true = pipeline.decode.decode_frames

    def late(data, wanted, **options):
        return true(data, np.maximum(wanted - 1, 0), **options)

    monkeypatch.setattr(pipeline.decode, "decode_frames", late)
    found = decoders.try_codec("h264", "cpu")
    assert found.state == BROKEN and "other frames" in found.todo


def test_a_codec_that_cannot_be_decoded_is_named_with_the_decoders_error(monkeypatch):
    import pipeline.decode

    def refuse(*_, **__):
        raise ValueError("no such\n decoder")

    monkeypatch.setattr(pipeline.decode, "decode_frames", refuse)
    packed, other = decoders.try_codec("vp9", "cpu"), decoders.try_codec("mpeg4", "cpu")
    assert packed.state == BROKEN and "ValueError: no such decoder" in packed.text
    assert other.state == WARNING and "--copy" in other.todo


@pytest.mark.slow
def test_a_library_that_cannot_be_imported_spoils_its_own_checks_only(fake_torch):
    fake_torch("raise ImportError('libcudart.so.13: cannot open shared object file')")
    result = CliRunner().invoke(main, ["--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert list(dict.fromkeys(item["check"] for item in document["findings"])) == list(CHECKS)
    states = {item["check"]: item for item in document["findings"]}
    for name in ("torch", "decode", "deepspeed"):
        assert states[name]["state"] == BROKEN and "libcudart.so.13" in states[name]["text"]
    assert not document["can_train"] and document["broken"] == 3
    assert "BROKEN" in result.stderr and "broken" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_library_that_crashes_is_named_with_the_signal(fake_torch):
    fake_torch(
        "import os, signal, sys; print('hello'); print('last words', file=sys.stderr, flush=True);"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    (found,) = run_check("torch")
    assert found.state == BROKEN and "Segmentation fault" in found.text and "last words" in found.text


@pytest.mark.slow
def test_a_library_that_hangs_is_given_up(fake_torch):
    fake_torch("import time; time.sleep(60)")
    (found,) = run_in_own_process("torch", time_limit=1.0)
    assert found.state == BROKEN and "no answer within 1 s" in found.text


def test_a_check_of_this_process_that_raises_is_a_result(monkeypatch):
    def check():
        yield CheckResult(OK, "first")
        raise PermissionError(13, "Permission denied", "/dev/shm")

    monkeypatch.setitem(CHECKS, "disk", (check, False))
    result = CliRunner().invoke(main, ["--only", "disk"])
    assert result.exit_code == 1 and "OK      first" in result.stdout
    assert "BROKEN  disk: PermissionError: [Errno 13] Permission denied: '/dev/shm'" in result.stdout


def test_quiet_says_nothing_but_the_exit_code():
    result = CliRunner().invoke(main, ["-q", "--only", "python"])
    assert result.exit_code == 0 and not result.output


def test_a_gpu_without_its_video_library_gets_the_flag_of_the_container(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(checks.ctypes, "CDLL", missing)
    monkeypatch.setattr(checks, "gpu_driver", lambda: {"driver_version": "580.1"})
    monkeypatch.setattr(checks, "in_container", lambda: True)
    (found,) = checks.check_nvdec()
    assert found.state == BROKEN and "libnvcuvid.so.1" in found.text
    assert "NVIDIA_DRIVER_CAPABILITIES=video,compute,utility" in found.todo


def test_a_missing_compiler_is_named_with_the_package(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    found = list(checks.check_compiler())
    assert found[0].state in (BROKEN, WARNING) and "no no-such-compiler" in found[0].text
    assert "apt-get install g++" in found[0].todo


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_choice_of_compiler_is_none(monkeypatch, value):
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", value)
    empty = list(checks.check_compiler())
    monkeypatch.delenv("CXX")
    assert empty == list(checks.check_compiler()) and "no c++;" in empty[0].text


@pytest.mark.slow
def test_versions_are_compared_with_the_constraints(tmp_path, monkeypatch):
    text = "# tested\nclick==0.1\nno-such-thing==1\n"
    text += "torch==99; python_version < '3.0'\nav==0 ; python_version > '3'\n"
    assert read_constraints(text) == {"click": "0.1", "no-such-thing": "1", "av": "0"}
    (tmp_path / "constraints.txt").write_text(text)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    found = list(checks.check_versions())
    assert found[0].state == WARNING and "click " in found[0].text and "(tested: 0.1)" in found[0].text
    monkeypatch.setattr(checks, "ROOT", Path("nowhere"))
    states = [item.state for item in checks.check_versions()]
    assert states == [WARNING, OK]  # all there, none to compare with


def test_the_constraints_of_this_checkout_are_found():
    """They lie beside the packages, whatever room the checks are in."""
    assert (checks.ROOT / "constraints.txt").is_file() and (checks.ROOT / "tools").is_dir()


def test_a_built_extension_is_seen_in_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert libraries.compiled_extensions() == set()
    folder = tmp_path / f"py{sys.version_info[0]}{sys.version_info[1]}_cpu" / "cpu_adam"
    folder.mkdir(parents=True)
    (folder / "cpu_adam.so").touch()
    assert libraries.compiled_extensions() == {"cpu_adam"}


# -------------------------------------------------------------------------------------- a GPU, made up


@pytest.fixture
def gpu(monkeypatch):
    """One GPU, as torch and nvidia-smi describe it, whose arithmetic the CPU does."""
    import torch

    ones, properties = torch.ones, SimpleNamespace(name="H200", total_memory=141 << 30, major=9, minor=0)
    monkeypatch.setattr(torch, "ones", lambda *sizes, device: ones(*sizes))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in (
        ("is_available", True),
        ("device_count", 1),
        ("is_bf16_supported", True),
        ("get_device_properties", properties),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(libraries, "gpu_driver", lambda: {"driver_version": "580.1", "name": "H200"})
    return torch


def test_a_gpu_is_described_and_one_that_computes_wrongly_is_broken(gpu, monkeypatch):
    _, found = libraries.check_torch()
    assert found.state == OK
    assert found.text == "GPU 0: H200, 141.0 GiB, compute 9.0, bf16, driver 580.1"
    monkeypatch.setattr(gpu, "ones", lambda *sizes, device: gpu.zeros(*sizes))
    _, found = libraries.check_torch()
    assert found.state == BROKEN and "a product of matrices is wrong" in found.text


@pytest.mark.parametrize(
    ("cuda", "todo"), [("13.0", "update the driver"), (None, "install a torch with CUDA")]
)
def test_a_gpu_that_torch_does_not_see_is_a_warning_with_the_way_out(gpu, monkeypatch, cuda, todo):
    monkeypatch.setattr(gpu.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.version, "cuda", cuda)
    _, found = libraries.check_torch()
    assert (found.state, found.todo) == (WARNING, todo) and "H200, driver 580.1" in found.text


def test_the_driver_is_what_nvidia_smi_says_of_the_first_gpu(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.gpu_driver() == {}
    for script, expected in (
        ("echo '580.1, H200, 143771 MiB'; echo '580.1, H100, 81559 MiB'", "H200"),
        ("exit 9", None),
        ("true", None),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        found = checks.gpu_driver()
        assert found.get("name") == expected
    assert set(found) == set()


def test_what_the_gpu_decodes_is_what_the_driver_states(monkeypatch):
    from pipeline import decode, gpu_decoder

    monkeypatch.setattr(decode, "with_index", lambda device: GPU)
    monkeypatch.setattr(
        gpu_decoder, "driver_limits", lambda codec, bits, device: H200.get((codec, bits), NONE)
    )
    found = {item.text.split()[1]: item for item in decoders.gpu_limits()}
    assert found["hevc"].text == "NVDEC: hevc 4:2:0 of 8 and 10 bit, 144x144 to 8192x8192, 7 decoders"
    assert any(item.text.endswith("on this GPU: the CPU decodes it") for item in decoders.gpu_limits())

    def no_driver(codec, bits, device):
        raise gpu_decoder.GpuDecoderError("no libnvcuvid")

    monkeypatch.setattr(gpu_decoder, "driver_limits", no_driver)
    (failed,) = decoders.gpu_limits()
    assert failed.state == WARNING and "no libnvcuvid: the CPU decodes all videos" in failed.text


def test_a_codec_that_nothing_needs_an_encoder_of_or_that_the_gpu_refuses_is_no_fault(monkeypatch):
    for codec, state in (("av1", OK), ("vp9", BROKEN)):  # make-shards writes VP9
        monkeypatch.setitem(decoders.CLIPS, codec, ("libnone", "mp4", {}))
        found = decoders.try_codec(codec, "cpu")
        assert found.state == state and "not tried, PyAV has no libnone here" in found.text
    monkeypatch.undo()
    monkeypatch.setattr(decoders, "gpu_refusal", lambda data, codec: "it is smaller than 128x128")
    found = decoders.try_codec("vp9", "cuda")
    assert found.state == OK and found.text.endswith("left to the CPU: it is smaller than 128x128")


@pytest.mark.parametrize("nvcc", ["/usr/bin/nvcc", None])
def test_extensions_that_are_not_built_and_a_missing_toolkit_are_said(gpu, monkeypatch, nvcc):
    monkeypatch.setattr(libraries, "compiled_extensions", set)
    which = libraries.shutil.which
    monkeypatch.setattr(libraries.shutil, "which", lambda name: nvcc if name == "nvcc" else which(name))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    found = list(libraries.check_deepspeed())
    assert any(
        item.state == WARNING and "has not compiled: deepspeed_shm_comm" in item.text for item in found
    )
    assert found[-1].state == (OK if nvcc else WARNING) and found[-1].text == f"nvcc: {nvcc or 'not found'}"
