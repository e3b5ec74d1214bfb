"""Files are whole or absent, JSON is strict."""

from __future__ import annotations

import hashlib
import math

import pytest

from pipeline.files import (
    TEMPORARY,
    file_sha256,
    parse_json,
    read_json,
    replacing,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)


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
        (b'{"a": 1,\n}', r"x.json, line 2, column 1: not JSON"),
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
