"""Remote data sets: fetched once and whole, whatever serves them; what cannot be fetched is one line."""

from __future__ import annotations

import http.server
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from dataset_cases import data_of, video, write_five_videos
from fsspec.registry import _registry

from pipeline import remote
from pipeline.dataset import Dataset
from pipeline.packing.shard_writer import pack_samples, write_dataset
from pipeline.packing.verify import check_tars


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_five_videos(tmp_path / "set")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LEANTAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_pipe_is_read_once_into_the_cache(folder, cache):
    location = f"pipe:cat {folder}/{{00000..00001}}.tar"
    dataset = Dataset.open(location)
    assert sorted(dataset.videos) == ["k0", "k1", "k2", "k3"] and dataset.read("k3") == data_of(3)
    assert dataset.folder.parent == cache and not list(cache.rglob("*.tmp"))
    (folder / "00001.tar").unlink()
    assert Dataset.open(location).read("k3") == data_of(3)


@pytest.mark.parametrize(
    ("location", "url", "chosen"),
    [
        ("https://h/set/", "https://h/set/{}", None),
        ("https://h/set?key=a.tar", "https://h/set/{}?key=a.tar", None),
        ("https://h/set/dataset.json?key=1", "https://h/set/{}?key=1", None),
        ("https://h/{a,b}.tar?key=1", "https://h/{}?key=1", ("a.tar", "b.tar")),
        ("https://h/old.tar/{2,1}.tar", "https://h/old.tar/{}", ("1.tar", "2.tar")),
        ("pipe:aws s3 cp s3://b/set/{0..1}.tar -", "pipe:aws s3 cp s3://b/set/{} -", ("0.tar", "1.tar")),
    ],
)
def test_the_files_of_a_data_set_lie_beside_each_other(location, url, chosen):
    found = remote.locate(location)
    assert found.url == url.format("dataset.json") and found.chosen == chosen
    assert found.url_of("00007.idx") == url.format("00007.idx")


@pytest.mark.parametrize("names", ["https://h/{a,b}/0.tar", "{folder}/{set,other}/00000.tar"])
def test_tars_of_two_data_sets_are_refused(folder, tmp_path, names):
    write_five_videos(tmp_path / "other")
    with pytest.raises(ValueError, match="names tars .* 2 .*want (the tars|those) of one"):
        remote.locate(names.replace("{folder}", str(tmp_path)))


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine that answers by `handler`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def server(folder) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    with served(Handler) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["", "/", "/dataset.json", "/{00000..00002}.tar"])
def test_a_data_set_is_read_over_http(server, cache, tail):
    dataset = Dataset.open(server + tail)
    assert sorted(dataset.videos) == ["bad", "k0", "k1", "k2", "k3", "k4"]
    assert dataset.read("k4") == data_of(4) and dataset.read("k1") == data_of(1)


def test_a_file_url_is_the_folder_itself(folder):
    assert remote.locate(f"file://{folder}") == remote.locate(folder)


def test_a_data_set_is_read_over_any_file_system_of_fsspec(folder, cache):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    dataset = Dataset.open("memory://bucket/set")
    memory.rm("/bucket/set/00001.tar")
    assert dataset.read("k4") == data_of(4) and dataset.local_shards() == ["00002.tar"]
    with pytest.raises(ValueError, match=r"memory://bucket/set/00001\.tar: could not be fetched \(no such"):
        dataset.read("k3")


def test_a_remote_tar_is_checked_when_it_is_fetched_and_not_before(server, folder, cache, monkeypatch):
    monkeypatch.setattr(remote, "DELAY_SECONDS", 0.0)
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(b"cut")
    dataset = Dataset.open(server)
    assert dataset.read("k0") == data_of(0) and dataset.local_shards() == ["00000.tar"]
    check_tars(dataset)
    with pytest.raises(ValueError, match=r"00001\.tar: could not be fetched \(has 3 bytes, want 10240 "):
        dataset.read("k3")
    assert Dataset.open(server).local_shards() == ["00000.tar"], "what is wrong does not stay"
    (folder / "00001.tar").write_bytes(whole)
    assert dataset.read("k3") == data_of(3) and len(dataset.local_shards()) == 2


def test_a_wrong_file_that_an_older_release_left_in_the_cache_is_fetched_again(server, cache):
    dataset = Dataset.open(server)
    dataset.folder.mkdir(parents=True)
    (dataset.folder / "00001.tar").write_bytes(b"<html>502 Bad Gateway</html>")
    assert Dataset.open(server).local_shards() == [] and Dataset.open(server).read("k3") == data_of(3)


def test_a_repacked_remote_data_set_is_not_read_from_stale_tars(server, folder, cache):
    assert Dataset.open(server).read("k0") == data_of(0)
    videos, shards = pack_samples(folder, [(video("k0"), b"new")])
    write_dataset(folder, classes=["jump"], videos=videos, shards=shards, packing={})
    assert Dataset.open(server).read("k0") == b"new"


@pytest.mark.slow
@pytest.mark.parametrize("location", ["{server}/no", "pipe:cat /no/such/00000.tar", "pipe:false", "s4://a/b"])
def test_a_location_that_cannot_be_fetched_is_refused_in_one_line(server, cache, location, capfd):
    with pytest.raises(ValueError, match="fetched|no tar and no") as caught:
        Dataset.open(location.format(server=server))
    assert "\n" not in str(caught.value) and not list(cache.rglob("*.tmp"))


def reason_of(url: str) -> str:
    """Why a URL cannot be fetched; the message is one line that names the URL, and nothing stays behind."""
    with pytest.raises(ValueError) as caught:
        Dataset.open(url)
    message = str(caught.value)
    before = f"{url}/dataset.json: could not be fetched ("
    assert message.startswith(before) and message.endswith(")") and "\n" not in message
    root = remote.cache_root()
    assert not root.exists() or not [path for path in root.rglob("*") if path.is_file()]
    return message.removeprefix(before).removesuffix(")")


def test_a_missing_file_and_a_refused_connection_are_named(server, cache):
    assert reason_of(f"{server}/no") == "no such file"
    with served(http.server.BaseHTTPRequestHandler) as closed:
        pass
    assert "Connect call failed" in reason_of(closed)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by its list of (status, length it states, body), one a request; then there are no more."""

    answers: list[tuple[int, int, bytes]] = []
    paths: list[str] = []
    ranges: list[str | None] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.ranges.append(self.headers.get("Range"))
        status, length, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def answers(monkeypatch) -> Iterator[tuple[str, list[tuple[int, int, bytes]]]]:
    monkeypatch.setattr(remote, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(Answers, "answers", [])
    monkeypatch.setattr(Answers, "paths", [])
    monkeypatch.setattr(Answers, "ranges", [])
    with served(Answers) as address:
        yield address, Answers.answers


def test_a_transfer_that_is_cut_is_no_file(answers, cache):
    address, list_of = answers
    list_of += [(200, 1000, b"only the beginning")] * remote.TRIES
    assert "not completed" in reason_of(address)


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(answers, cache, tmp_path):
    address, list_of = answers
    list_of += [(503, 0, b""), (429, 0, b""), (200, 4, b"data")]
    remote.fetch(f"{address}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"data"
    list_of += [(403, 0, b"")]
    assert reason_of(address) == "HTTP 403" and list_of == []


@pytest.mark.parametrize("is_reset", [True, False])
def test_a_connection_that_ends_before_an_answer_is_tried_again(tmp_path, monkeypatch, is_reset):
    def serve() -> None:
        for _ in range(4):  # aiohttp itself asks twice
            connection, _ = listening.accept()
            connection.recv(1 << 16)
            if is_reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        with listening.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndata")

    monkeypatch.setattr(remote, "DELAY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        remote.fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"data"


@pytest.mark.slow
def test_a_server_that_stays_busy_or_silent_is_given_up(answers, cache, monkeypatch):
    address, list_of = answers
    monkeypatch.setattr(remote, "TRIES", 2)
    list_of += [(503, 0, b"")] * 2
    assert reason_of(address) == "HTTP 503" and list_of == []

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            release.wait(10)

    asked: list[str] = []
    release = threading.Event()
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.2)
    with served(Silent) as silent:
        assert "imeout" in reason_of(silent)
        release.set()
    assert len(asked) == 2


PAGE = b"<!doctype html><title>502 Bad Gateway</title>" * 300  # longer than the tars here


@pytest.mark.parametrize("name", ["dataset.json", "00000.tar", "00000.idx"])
@pytest.mark.parametrize("wrong", [PAGE, b"", b"cut"])
def test_an_error_page_or_a_cut_file_is_asked_for_again_and_never_kept(answers, folder, cache, name, wrong):
    address, list_of = answers
    for file in ("dataset.json", "00000.tar", "00000.idx"):
        data = (folder / file).read_bytes()
        list_of += [(200, len(wrong), wrong)] * 2 * (file == name) + [(200, len(data), data)]
    assert Dataset.open(address).read("k0") == data_of(0) and list_of == []
    assert set(Answers.ranges) == {None}, "what was wrong is not gone on with"


@pytest.mark.parametrize("name", ["dataset.json", "00000.tar", "00000.idx"])
def test_a_server_that_stays_wrong_leaves_nothing_and_is_asked_again_once_it_is_healed(
    answers, folder, cache, name
):
    address, list_of = answers
    good = {file: (folder / file).read_bytes() for file in ("dataset.json", "00000.tar", "00000.idx")}
    for file, data in good.items():
        list_of += [(200, len(PAGE), PAGE)] * remote.WRONG_TRIES if file == name else [(200, len(data), data)]
        if file == name:
            break
    with pytest.raises(ValueError, match=rf"{name}: could not be fetched .*web page") as caught:
        Dataset.open(address).read("k0")
    assert len(str(caught.value)) < 500 and list_of == []
    assert not list(cache.rglob(f"*{name}")) and not list(cache.rglob("*.tmp"))
    list_of += [(200, len(good["dataset.json"]), good["dataset.json"])]
    missing = [file for file in ("00000.tar", "00000.idx") if not list(cache.rglob(file))]
    list_of += [(200, len(good[file]), good[file]) for file in missing]
    assert Dataset.open(address).read("k0") == data_of(0)


def test_a_tar_of_the_right_size_with_other_bytes_is_refused(answers, folder, cache):
    address, list_of = answers
    description = (folder / "dataset.json").read_bytes()
    list_of.append((200, len(description), description))
    tar = bytearray((folder / "00000.tar").read_bytes())
    tar[700] ^= 1
    list_of += [(200, len(tar), bytes(tar))] * remote.WRONG_TRIES
    with pytest.raises(ValueError, match=r"00000\.tar: could not be fetched \(sha256 differs from"):
        Dataset.open(address).read("k0")
    assert not list(cache.rglob("*.tar"))


class Resumes(http.server.BaseHTTPRequestHandler):
    """Breaks off once; then answers by its list of (status, the range it states, body), one a request."""

    answers: list[tuple[int, str, bytes]] = []
    asked: list[tuple[str | None, str | None]] = []

    def do_GET(self) -> None:
        self.asked.append((self.headers.get("Range"), self.headers.get("Accept-Encoding")))
        status, stated, body = self.answers.pop(0)
        self.send_response(status)
        if stated:
            self.send_header("Content-Range", stated)
        self.send_header("Content-Length", "6" if not stated and status == 200 else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize(
    "later",
    [
        [(206, "bytes 3-5/6", b"def")],
        [(206, "bytes 0-5/6", b"abcdef")],  # not the range that was asked for
        [(200, "", b"abcdef")],
        [(416, "bytes */3", b""), (200, "", b"abcdef")],  # another file than before
    ],
)
def test_whatever_a_server_answers_for_the_rest_of_a_file_the_file_is_right(tmp_path, monkeypatch, later):
    monkeypatch.setattr(remote, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(Resumes, "answers", [(200, "", b"abc"), *later])
    monkeypatch.setattr(Resumes, "asked", [])
    with served(Resumes) as address:
        remote.fetch(f"{address}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"abcdef" and Resumes.answers == []
    assert [asked for asked, _ in Resumes.asked] == [None, "bytes=3-", None][: 1 + len(later)]
    assert {encoding for _, encoding in Resumes.asked} == {"identity"}, "a range is of the bytes themselves"


class Breaks(http.server.BaseHTTPRequestHandler):
    """Closes the connection in the middle of every answer; honours ranges, or says that it does not."""

    data, most, ranges, asked = b"", 1000, True, list[str | None]()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(self.data) - begin))
        self.end_headers()
        self.wfile.write(self.data[begin : begin + self.most])

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_goes_on_where_it_was_if_the_server_can(tmp_path, monkeypatch, ranges):
    data = bytes(range(256)) * 14  # three answers of up to 1,400 bytes
    monkeypatch.setattr(remote, "DELAY_SECONDS", 0.0)
    for name, value in {"data": data, "most": 1400, "ranges": ranges, "asked": []}.items():
        monkeypatch.setattr(Breaks, name, value)
    with served(Breaks) as address:
        if ranges:
            remote.fetch(f"{address}/x", tmp_path / "x", most=len(data))
            assert (tmp_path / "x").read_bytes() == data
            assert Breaks.asked == [None, "bytes=1400-", "bytes=2800-"]
        else:
            with pytest.raises(ValueError, match="could not be fetched"):
                remote.fetch(f"{address}/x", tmp_path / "x", most=len(data))
            assert len(Breaks.asked) == remote.TRIES and not list(tmp_path.iterdir())


def test_pauses_grow_and_end(answers, tmp_path, monkeypatch):
    address, list_of = answers
    pauses: list[float] = []
    monkeypatch.setattr(remote, "DELAY_SECONDS", 1.0)
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    list_of += [(503, 0, b"")] * remote.TRIES
    with pytest.raises(ValueError, match="HTTP 503"):
        remote.fetch(f"{address}/x", tmp_path / "x")
    assert pauses == [1, 2, 4, 8, 16, 30, 30] and list_of == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_every_status_of_a_busy_server_is_asked_again(answers, tmp_path, status):
    address, list_of = answers
    list_of += [(status, 0, b""), (200, 4, b"data")]
    remote.fetch(f"{address}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"data"


def test_a_proxy_of_the_environment_is_asked(answers, tmp_path, monkeypatch):
    address, list_of = answers
    list_of.append((200, 1, b"x"))
    monkeypatch.setenv("http_proxy", address)
    remote.fetch("http://shards.example/set/00000.tar", tmp_path / "x")
    assert Answers.paths == ["http://shards.example/set/00000.tar"]


def test_a_file_that_is_too_large_is_not_fetched_from_a_bucket(tmp_path):
    fsspec.filesystem("memory").pipe("/large/x", b"data")
    remote.fetch("memory://large/x", tmp_path / "x", most=4)
    with pytest.raises(ValueError, match=r"x: could not be fetched \(has 4 bytes, more than the 3 "):
        remote.fetch("memory://large/x", tmp_path / "y", most=3)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_endless_dataset_json_is_left_there(tmp_path, cache, monkeypatch):
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    sent.append(self.wfile.write(b'{"a": "' + b"x" * 100_000))
            except OSError:
                pass

        def log_message(self, *_) -> None:
            pass

    sent: list[int] = []
    monkeypatch.setattr("pipeline.dataset.DESCRIPTION_BYTES", 3 << 20)
    with served(Endless) as address, pytest.raises(ValueError, match="more than the 3145728 bytes") as caught:
        Dataset.open(address)
    assert "dataset.json: could not be fetched" in str(caught.value) and len(str(caught.value)) < 500
    assert sum(sent) < 30 << 20, "read once, and no further; sockets buffer some"


def test_a_signed_url_is_sent_as_it_was_written(answers, cache, tmp_path):
    address, list_of = answers
    list_of.append((200, 1, b"x"))
    remote.fetch(f"{address}/set/00000.tar?key=a%2Fb%3D&sign=%7E", tmp_path / "x")
    assert Answers.paths == ["/set/00000.tar?key=a%2Fb%3D&sign=%7E"]


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("http://127.0.0.1/set", "aiohttp"),
        ("s3://bucket/set", "s3fs"),
        ("gs://bucket/set", "gcsfs"),
        ("hf://datasets/somebody/set", "huggingface_hub"),
    ],
)
def test_a_package_that_is_not_installed_is_named(cache, monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)  # what another test has loaded
    assert reason_of(url) == f"pip install {package}"
