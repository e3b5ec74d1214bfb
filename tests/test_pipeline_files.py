"""Files are whole or absent, JSON is strict."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.files import (
    ABANDONED_SECONDS,
    TEMPORARY,
    FilePart,
    _temporary_path,
    check_writable,
    collection_paused,
    file_sha256,
    parse_json,
    read_json,
    remove_folder,
    remove_left,
    replacing,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)
from pipeline.temporary_folder import TEMPORARY_FOLDER, own_temporary_files, temporary_folder

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_keeps_its_bytes_when_writing_a_new_one_fails(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_is_known_and_beside_the_file(tmp_path):
    with replacing(tmp_path / "a") as partial:
        assert partial.parent == tmp_path and TEMPORARY.fullmatch(partial.name)
        partial.write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    for name in ("fsync", "replace"):
        whole = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, whole=whole: done.append(name) or whole(*a))
    write_text(tmp_path / "a", "x")
    assert done == ["fsync", "replace"]


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_beside_a_file_goes_with_the_next_write(tmp_path):
    with replacing(tmp_path / "a") as partial:
        partial.touch()
    digest, machine = partial.name.split(".")[1:3]
    own, old = time.time(), time.time() - 2 * ABANDONED_SECONDS
    left = {
        f".{digest}.{machine}.{ended_process()}.tmp": (own, False),
        f".{'0' * 16}.{machine}.{ended_process()}.tmp": (own, False),  # of another file
        f".{digest}.{machine}.{os.getpid()}.tmp": (own, True),  # of a process that runs
        f".{digest}.{'0' * 8}.{ended_process()}.tmp": (own, True),  # of another machine
        f".{digest}.{'1' * 8}.{ended_process()}.tmp": (old, False),
        ".0.tmp": (old, True),  # somebody else's
    }
    for name, (changed, _) in left.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    (tmp_path / f".{'2' * 16}.{machine}.{ended_process()}.tmp" / "folder").mkdir(parents=True)
    remove_left(tmp_path)
    kept = {name for name, (_, stays) in left.items() if stays}
    assert {path.name for path in tmp_path.iterdir()} == {"a", *kept}


@pytest.mark.parametrize(("error", "stays"), [(PermissionError, True), (OverflowError, False)])
def test_what_a_process_of_somebody_else_writes_stays(tmp_path, monkeypatch, error, stays):
    with replacing(tmp_path / "a") as partial:
        partial.touch()
    other = tmp_path / partial.name.replace(f".{os.getpid()}.", f".{os.getpid() + 1}.")
    other.touch()

    def kill(process: int, number: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    remove_left(tmp_path)
    assert other.exists() is stays


def test_a_path_that_can_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")
    check_writable(tmp_path / "a")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(ValueError, match="a/b: cannot be written"):
        check_writable(tmp_path / "a" / "b")


KILLED = """
import os, signal
from pathlib import Path
from pipeline.files import remove_folder, replacing
from pipeline.temporary_folder import temporary_folder
{body}
"""


def killed(body: str, folder: Path) -> None:
    """Run statements in a process that kills itself with SIGKILL; folder: its TMPDIR."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED.format(body=body)], env=environment)
    assert done.returncode == -signal.SIGKILL


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_a_killed_write_leaves_nothing_after_the_next(tmp_path):
    body = f"with replacing(Path({str(tmp_path / 'a')!r})) as partial:\n    partial.touch()\n    {KILL}"
    killed(body, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "b", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_is_removed_where_a_process_of_the_same_number_was_killed_while_it_removed_one(tmp_path):
    """In a container a run has the same number each time."""
    for folder in (tmp_path / "a", _temporary_path(tmp_path / "a")):
        (folder / "full").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_of_a_killed_process_goes_with_the_next_one(tmp_path, monkeypatch):
    killed(f"with temporary_folder() as folder:\n    (folder / 'a').touch()\n    {KILL}", tmp_path)
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as first, temporary_folder() as second:
        assert not left.exists() and {*tmp_path.iterdir()} == {first, second}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_temporary_folder_stays_while_a_forked_process_uses_it(tmp_path, monkeypatch):
    body = (
        f"with temporary_folder():\n    if os.fork():\n        {KILL}\n    import time\n    time.sleep(1)\n"
    )
    killed(body, tmp_path)
    (used,) = tmp_path.iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder():
        assert used.exists()
        time.sleep(1.5)
    assert not list(tmp_path.iterdir()), "it was given up meanwhile"


def test_where_a_library_noted_to_write_goes_with_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "users")
    monkeypatch.setenv("MORE_PATHS", "first")
    monkeypatch.delenv("CACHE_DIR", raising=False)  # as torch notes its TORCHINDUCTOR_CACHE_DIR
    before, outer = dict(os.environ), tempfile.tempdir
    with own_temporary_files():
        folder = tempfile.gettempdir()
        assert Path(folder).parent == tmp_path and os.environ["TMPDIR"] == folder
        os.environ["CACHE_DIR"], os.environ["MORE_PATHS"] = f"{folder}/cache", f"first:{folder}"
        os.environ["OTHER"] = "stays"
    assert os.environ.pop("OTHER") == "stays"
    assert dict(os.environ) == before and tempfile.tempdir == outer


def test_links_that_look_like_temporary_folders_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / f"{TEMPORARY_FOLDER}x").symlink_to(tmp_path / "mine")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY_FOLDER}x", "mine"]


def test_a_removed_folder_is_gone_or_whole(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "a")  # nothing there: nothing to do
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    body = (
        f"import shutil; shutil.rmtree = lambda *_, **__: None\nremove_folder(Path({str(tmp_path / 'a')!r}))"
    )
    killed(f"{body}\n{KILL}", tmp_path)
    assert not (tmp_path / "a").exists() and len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "b", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path):
    write_bytes(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"


def test_text_keeps_its_line_ends_and_odd_characters(tmp_path):
    write_text(tmp_path / "a", "\ud800\r\n\u00e9")
    assert (tmp_path / "a").read_bytes() == b"\\ud800\r\n\xc3\xa9"


def test_json_comes_back_and_what_json_lacks_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"b": math.nan})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1,\n2}', r"x.json, line 2, column 1: not JSON"),
        (b'{"a": 1, "a": 2}', "x.json: 'a' stands twice in one object, want it once"),
        (b"\xff", "x.json: byte 0 is not UTF-8 text"),
        (b"[" * 100_000, "x.json: nested too deeply"),
    ],
)
def test_json_that_is_none_is_refused_by_name_and_line(data, message):
    with pytest.raises(ValueError, match=message):
        parse_json(data, where="x.json")


def test_a_byte_order_mark_is_no_error():
    assert parse_json(b"\xef\xbb\xbf[1]", where="x") == [1]


def test_sha256_of_bytes_text_and_file_agree(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 500_000)
    wanted = hashlib.sha256(b"abc" * 500_000).hexdigest()
    assert file_sha256(tmp_path / "a") == sha256_of("abc" * 500_000) == sha256_of(b"abc" * 500_000) == wanted


def test_a_part_of_a_file_is_its_own_bytes_alone(tmp_path):
    data = bytes(range(251)) * 10_000
    (tmp_path / "a").write_bytes(data)
    part = FilePart(tmp_path / "a", 100, (2 << 20) + 5)
    assert part.read() == b"".join(part.blocks()) == data[100 : (2 << 20) + 105]
    assert file_sha256(part) == sha256_of(part.read())


@pytest.mark.parametrize("was_enabled", [True, False])
def test_a_pause_of_the_collection_ends_as_it_began(was_enabled):
    gc.enable() if was_enabled else gc.disable()
    try:
        with pytest.raises(RuntimeError), collection_paused():
            assert not gc.isenabled()
            raise RuntimeError
        assert gc.isenabled() is was_enabled
    finally:
        gc.enable()
