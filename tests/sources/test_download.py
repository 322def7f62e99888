from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.storage import partial_place
from cvl_pipeline.sources.download import ATTEMPTS, download
from cvl_pipeline.testing.builders import names_in

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several chunks


class Requests(BaseHTTPRequestHandler):
    """Gives the answers in order, one per request, and then repeats the last one."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A web server on this machine.

    Attributes:
        answers: answers in order, one per request.
        requests: number of requests.
        url: URL of its only file.
    """

    def __init__(self, *answers: Callable[[BaseHTTPRequestHandler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.answers = list(answers)
        self.requests = 0
        self.url = f"http://127.0.0.1:{self.server_port}/some/where/log.hdf5?version=2"


@contextmanager
def serving(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Server]:
    with Server(*answers) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def sending(content: bytes, length: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer with these bytes and this Content-Length, after which the connection is closed."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def sending_half_in_pieces(request: BaseHTTPRequestHandler) -> None:
    """An answer in HTTP chunks without a length, whose last chunks are missing."""
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(b"80000\r\n" + CONTENT[: 1 << 19] + b"\r\n")


whole = sending(CONTENT, len(CONTENT))
half = sending(CONTENT[: len(CONTENT) // 2], len(CONTENT))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_fetched_whole_under_the_name_in_its_url(tmp_path: Path) -> None:
    with serving(whole) as server:
        path = download(server.url, tmp_path / "cache" / "deep")
    assert path == tmp_path / "cache" / "deep" / "log.hdf5"
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["log.hdf5"]


def test_an_existing_file_is_used_without_the_network(tmp_path: Path) -> None:
    with serving(whole) as server:
        first = download(server.url, tmp_path)
        before = first.stat().st_mtime_ns
        assert download(server.url, tmp_path) == first
        assert server.requests == 1
    assert download(server.url, tmp_path) == first  # the server is stopped
    assert first.stat().st_mtime_ns == before


def test_a_connection_that_the_system_refuses_is_not_the_folders_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # a firewall

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(InputError, match="the server cannot be reached"):
        download("http://127.0.0.1:9/log.hdf5", tmp_path)


@pytest.mark.parametrize("cut", [half, sending_half_in_pieces, sending(b"", 1), sending(CONTENT, 1 << 21)])
def test_an_interrupted_download_leaves_nothing_and_a_rerun_works(
    tmp_path: Path, cut: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    with serving(cut) as server:
        with pytest.raises(
            InputError, match=r"the connection was interrupted 3 times; .* or give dataset\.path"
        ) as caught:
            download(server.url, tmp_path)
        assert server.requests == ATTEMPTS
        assert server.url in str(caught.value)
        assert str(tmp_path / "log.hdf5") in str(caught.value)
        assert names_in(tmp_path) == []
        server.answers = [whole]
        assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert names_in(tmp_path) == ["log.hdf5"]


def test_a_connection_that_is_cut_once_or_twice_is_tried_again(tmp_path: Path) -> None:
    with serving(half, half, whole) as server:
        assert download(server.url, tmp_path).read_bytes() == CONTENT
        assert server.requests == 3
    assert names_in(tmp_path) == ["log.hdf5"]


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (500, "500 ")])
def test_an_error_status_is_reported_and_leaves_nothing(tmp_path: Path, status: int, words: str) -> None:
    with serving(lambda request: request.send_error(status)) as server:
        with pytest.raises(
            InputError, match=f"log.hdf5: the server answers '{words}.*check the URL"
        ) as caught:
            download(server.url, tmp_path)
        assert server.requests == 1
        assert server.url in str(caught.value)
        assert names_in(tmp_path) == []
        server.answers = [whole]
        assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_silent_server_causes_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pooch.downloaders.DEFAULT_TIMEOUT", 0.2)
    finished = Event()

    def silent(request: BaseHTTPRequestHandler) -> None:
        half(request)
        request.wfile.flush()
        finished.wait(10.0)

    with serving(silent) as server:
        with pytest.raises(
            InputError, match=r"log\.hdf5: the server cannot be reached or stopped responding"
        ):
            download(server.url, tmp_path)
        finished.set()
        assert names_in(tmp_path) == []
        server.answers = [whole]
        assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path: Path) -> None:
    with socket.socket() as held:  # bound but not listening, so connections are refused
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/log.hdf5"
        with pytest.raises(InputError) as caught:
            download(url, tmp_path)
    for part in (
        url, str(tmp_path / "log.hdf5"), "cannot be reached", "download it elsewhere and put it at that path",
        "dataset.path",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    # The partial file is a link to a device without space.
    place = partial_place(tmp_path / "log.hdf5")
    place.mkdir()
    (place / "log.hdf5").symlink_to("/dev/full")
    with serving(whole) as server:
        with pytest.raises(
            InputError, match=r"log\.hdf5: the disk is full \(No space left on device\); free"
        ):
            download(server.url, tmp_path)
        assert names_in(tmp_path) == []
        assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_disk_that_fills_halfway_leaves_no_half_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(whole) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, limits[1]))
        try:
            with pytest.raises(InputError, match=r"log\.hdf5: the disk is full \(File too large\)"):
                download(server.url, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names_in(tmp_path) == []
        assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with (
        serving(whole) as server,
        pytest.raises(InputError, match=r"cache/log\.hdf5: (File exists|Not a directory); make the folder"),
    ):
        download(server.url, tmp_path / "cache")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/log.hdf5", "file:///etc/hostname", "/etc/hostname", "http://example.org",
        "http://example.org/", "http://example.org/a/..", "http://[example.org/log.hdf5", "http:///log.hdf5",
        "http://example.org/log%00.hdf5", "",
    ],
)  # fmt: skip
def test_only_web_addresses_of_files_are_taken(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"^cannot download .*: .*(correct|check the URL)"):
        download(url, tmp_path)
    assert names_in(tmp_path) == []
