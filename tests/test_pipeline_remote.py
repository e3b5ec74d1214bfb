"""Remote data sets: fetched once and whole, whatever serves them; what cannot be fetched is one line."""

from __future__ import annotations

import http.server
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


@pytest.mark.parametrize("tail", ["", "/", "/dataset.json", "/{00000..00002}.tar"])
def test_a_data_set_is_read_over_http(server, cache, tail):
    dataset = Dataset.open(server + tail)
    assert sorted(dataset.videos) == ["bad", "k0", "k1", "k2", "k3", "k4"]
    assert dataset.read("k4") == data_of(4) and dataset.read("k1") == data_of(1)


def test_a_data_set_is_read_over_any_file_system_of_fsspec(folder, cache):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/set", recursive=True)
    dataset = Dataset.open("memory://bucket/set")
    memory.rm("/bucket/set/00001.tar")
    assert dataset.read("k4") == data_of(4) and dataset.local_shards() == ["00002.tar"]
    with pytest.raises(ValueError, match=r"memory://bucket/set/00001\.tar: could not be fetched \(no such"):
        dataset.read("k3")


def test_a_remote_tar_is_checked_when_it_is_fetched_and_not_before(server, folder, cache):
    (folder / "00001.tar").write_bytes(b"cut")
    dataset = Dataset.open(server)
    assert dataset.read("k0") == data_of(0) and dataset.local_shards() == ["00000.tar"]
    check_tars(dataset)
    with pytest.raises(
        ValueError, match=r"00001\.tar: has 3 bytes, want 10240 .*; remove it to fetch it again"
    ):
        dataset.read("k3")
    with pytest.raises(ValueError, match=r"00001\.tar: has 3 bytes"):
        Dataset.open(server)


def test_a_repacked_remote_data_set_is_not_read_from_stale_tars(server, folder, cache):
    assert Dataset.open(server).read("k0") == data_of(0)
    videos, shards = pack_samples(folder, [(video("k0"), b"new")])
    write_dataset(folder, classes=["jump"], videos=videos, shards=shards, packing={})
    assert Dataset.open(server).read("k0") == b"new"


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

    def do_GET(self) -> None:
        self.paths.append(self.path)
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
    with served(Answers) as address:
        yield address, Answers.answers


def test_a_transfer_that_is_cut_is_no_file(answers, cache):
    address, list_of = answers
    list_of.append((200, 1000, b"only the beginning"))
    assert "not completed" in reason_of(address)


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(answers, cache, tmp_path):
    address, list_of = answers
    list_of += [(503, 0, b""), (429, 0, b""), (200, 4, b"data")]
    remote.fetch(f"{address}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"data"
    list_of += [(403, 0, b"")]
    assert reason_of(address) == "HTTP 403" and list_of == []


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
