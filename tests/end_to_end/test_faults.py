"""Faults under load: what is lost, what is not, and how soon it is over."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet
import pytest

from tests.end_to_end.test_lifecycle import children_of, metric, wait_until
from tests.end_to_end.test_service import a_sneaker, encode

pytestmark = pytest.mark.faults


@dataclass
class Seen:
    """What the clients of a load saw; each answer with the time when it came."""

    good: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def pace(self, since: float, until: float) -> float:
        """Good answers a second."""
        return sum(since <= moment < until for moment in self.good) / (until - since)


Example = tuple[bytes, str]  # an image and its label


class Load:
    """Clients that ask again as soon as they are answered, each of one image after the other.

    `next_url` says where. Without `keep_alive` every request has a connection of its own, which
    any worker may take.
    """

    def __init__(
        self, next_url, images: list[Example], clients: int, *, keep_alive: bool = True
    ) -> None:
        self.seen = Seen()
        self._next_url, self._images = next_url, images
        self._limits = httpx.Limits(max_keepalive_connections=None if keep_alive else 0)
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(clients)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        turns = itertools.islice(itertools.cycle(self._images), number, None)
        with httpx.Client(timeout=20, limits=self._limits) as client:
            for image, label in turns:
                if self._done.is_set():
                    return
                url = self._next_url()
                try:
                    answer = client.post(f"{url}/v1/predict", content=image)
                except httpx.TransportError:
                    self.seen.lost.append(time.monotonic())
                    time.sleep(0.05)
                    continue
                labels = [its["labels"] for its in answer.json().get("predictions", [])]
                if answer.status_code == 200 and labels == [[label]]:
                    self.seen.good.append(time.monotonic())
                else:
                    self.seen.wrong.append(f"{label}: {answer.status_code} {answer.text}")


@pytest.fixture
def home(trained, tmp_path):
    return trained.copy(tmp_path / "home")


@pytest.fixture
def image(garment_images):
    return a_sneaker(garment_images)


def workers_of(server) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return children_of(server)
    return []


def are_ready(server, count: int) -> bool:
    with suppress(httpx.TransportError):
        return metric(server.url, "plumbline_workers_ready") == count
    return False


def one_of_each_class(server, garment_images) -> list[Example]:
    """Images that the model knows: of each class the first that it names as it is labelled."""
    classes = httpx.get(f"{server.url}/v1/model").json()["classes"]
    known: dict[str, bytes] = {}
    with httpx.Client() as client:
        for pixels, index in zip(garment_images["images"], garment_images["labels"], strict=True):
            label, image = classes[index], encode(pixels)
            if label not in known:
                answer = client.post(f"{server.url}/v1/predict", content=image).json()
                if answer["predictions"][0]["labels"] == [label]:
                    known[label] = image
            if len(known) == 6:
                break
    return [(image, label) for label, image in known.items()]


def kill(worker: psutil.Process, server) -> int:
    """Kill it as it works; gives how many connections it held."""
    worker.suspend()  # it takes no other while they are counted
    port = int(server.url.rpartition(":")[2])
    held = [
        its
        for its in worker.net_connections("tcp")
        if its.laddr.port == port and its.status == psutil.CONN_ESTABLISHED
    ]
    worker.kill()
    return len(held)


def work_of(workers: list[psutil.Process], *, seconds: float) -> list[float]:
    """CPU seconds that each takes in that time."""
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    time.sleep(seconds)
    after = [sum(worker.cpu_times()[:2]) for worker in workers]
    return [end - start for start, end in zip(before, after, strict=True)]


@pytest.mark.slow
def test_workers_that_are_killed_under_load_lose_what_they_held_and_nothing_else(
    home, serving, garment_images
):
    """Every 20 seconds; full pace again within 10, each of three times. Labels are six."""
    clients, choose = 4, random.Random(0)
    with serving(home, workers="2") as server:
        wait_until(lambda: are_ready(server, 2))
        images = one_of_each_class(server, garment_images)
        assert len(images) == 6
        with Load(lambda: server.url, images, clients, keep_alive=False) as seen:
            time.sleep(8)
            now = time.monotonic()
            before = seen.pace(now - 6, now)
            for _ in range(3):
                lost_before = len(seen.lost)
                held = kill(choose.choice(workers_of(server)), server)
                time.sleep(10)
                wait_until(lambda: are_ready(server, 2), seconds=1)
                work = work_of(workers_of(server), seconds=6)
                assert min(work) > max(work) / 4, "both take their share"
                now = time.monotonic()
                assert seen.pace(now - 6, now) > before / 2  # what else runs here has its say
                assert len(seen.lost) - lost_before <= held <= clients
                time.sleep(4)
    assert seen.wrong == []


@pytest.mark.slow
def test_when_all_workers_are_killed_at_once_the_service_is_back_in_15_seconds(
    home, serving, image
):
    with serving(home, workers="2") as server:
        wait_until(lambda: are_ready(server, 2))
        with Load(lambda: server.url, [(image, "sneaker")], 2) as seen:
            time.sleep(1)
            killed = time.monotonic()
            for worker in workers_of(server):
                worker.kill()
            wait_until(lambda: any(moment > killed + 0.5 for moment in seen.good), seconds=15)
    assert seen.wrong == []


@pytest.mark.slow
def test_behind_two_instances_no_request_fails_when_one_is_told_to_end(home, serving, image):
    """The client follows readiness, as a load balancer does, ten times a second."""
    grace = {"drain_grace_seconds": "2"}
    with serving(home, **grace) as first, serving(home, **grace) as second:
        ready = [first.url, second.url]
        turns, done = itertools.count(), threading.Event()

        def follow() -> None:
            while not done.is_set():
                found = []
                for url in (first.url, second.url):
                    with suppress(httpx.TransportError):
                        if httpx.get(f"{url}/readyz").status_code == 200:
                            found.append(url)
                ready[:] = found
                time.sleep(0.1)

        def next_url() -> str:
            now = list(ready)
            return now[next(turns) % len(now)]

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            with Load(next_url, [(image, "sneaker")], 4) as seen:
                time.sleep(2)
                told = time.monotonic()
                first.process.terminate()
                assert first.process.wait(30) == 0
                time.sleep(1)
        finally:
            done.set()
            follower.join()
    assert (seen.wrong, seen.lost) == ([], [])
    assert sum(moment > told for moment in seen.good) > 10


@pytest.mark.parametrize("fault", ["gone", "broken"])
@pytest.mark.slow
def test_predictions_go_on_without_the_state_database(fault, home, serving, image):
    state = home / "state.sqlite"
    with serving(home) as server:
        if fault == "gone":
            for path in home.glob("state.sqlite*"):
                path.unlink()
        else:
            state.write_bytes(b"not a database at all" * 1000)
        with Load(lambda: server.url, [(image, "sneaker")], 2) as seen:
            time.sleep(3)  # the worker looks for a new champion every second
        answer = httpx.post(f"{server.url}/v1/predict", content=image)
        told = {"id": answer.json()["predictions"][0]["id"], "labels": ["sneaker"]}
        assert httpx.post(f"{server.url}/v1/feedback", json=told).status_code == 503
        lost = 'plumbline_shed_requests_total{reason="state_database"}'
        wait_until(lambda: metric(server.url, lost) == 1)
    assert (seen.wrong, seen.lost) == ([], [])
    assert len(seen.good) > 20


@contextmanager
def in_the_way(records: Path) -> Iterator[None]:
    """A file in the folder's place."""
    while not records.is_file():  # one of its files may just be written
        shutil.rmtree(records, ignore_errors=True)
        with suppress(FileExistsError, IsADirectoryError):
            records.write_text("in the way")
    yield
    records.unlink()


@contextmanager
def full(records: Path) -> Iterator[None]:
    """A disk with room for the beginning of a file, and no more."""
    filler = records.with_name("filler")
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65_536))
    os.truncate(filler, filler.stat().st_size - 4_096)
    yield
    filler.unlink()


@contextmanager
def read_only(records: Path) -> Iterator[None]:
    """A mount: root writes wherever mode bits forbid it."""
    before = files_of(records)
    wait_until(lambda: files_of(records) - before)  # between two of them: none is half written
    wait_until(lambda: remounted(records.parent, "ro"))
    yield
    assert remounted(records.parent, "rw")


def files_of(records: Path) -> set[Path]:
    return set(records.rglob("*.parquet"))


def remounted(disk: Path, way: str) -> bool:
    mount = ["mount", "-o", f"remount,{way}", str(disk)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("fault", "disk"),
    [
        (in_the_way, "tmp_path"),
        pytest.param(full, "small_disk", marks=pytest.mark.slow),
        pytest.param(read_only, "small_disk", marks=pytest.mark.slow),
    ],
)
def test_predictions_go_on_when_records_cannot_be_written(
    fault, disk, request, home, serving, image
):
    """Every image is in a file or counted as lost, and files are written again once they can be."""
    records = request.getfixturevalue(disk) / "records"
    lost, written = "plumbline_records_dropped_total", "plumbline_records_written_total"
    with serving(home, records_url=str(records), record_flush_seconds="0.5") as server:
        with Load(lambda: server.url, [(image, "sneaker")], 2) as seen:
            wait_until(lambda: files_of(records))
            with fault(records):
                before = files_of(records)
                wait_until(lambda: metric(server.url, lost) > 0)
                count = len(seen.good)
                wait_until(lambda: len(seen.good) > count + 20)
                assert files_of(records) == before
                assert httpx.get(f"{server.url}/readyz").status_code == 200
            wait_until(lambda: files_of(records) - before)
        wait_until(lambda: metric(server.url, lost) + metric(server.url, written) == len(seen.good))
    assert all(pyarrow.parquet.read_table(file).num_rows for file in files_of(records))
    assert list(records.rglob("*.partial")) == []
    assert (seen.wrong, seen.lost) == ([], [])


# Bodies that lie, trickle or never end


def raw(server, head: str, body: bytes = b"", *, seconds: float = 20) -> bytes:
    """What comes back for bytes on a connection, until it is closed or says nothing more."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        answer = b""
        with suppress(TimeoutError):
            while part := connection.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b'"error"' in answer:
                    break
        return answer


HEAD = "POST /v1/predict HTTP/1.1\nHost: localhost\nContent-Type: image/png\n"


def test_an_endless_chunked_body_is_cut_off_and_memory_stays(home, serving):
    with serving(home, limit_part_bytes="1000000") as server:
        (worker,) = workers_of(server)
        before = worker.memory_info().rss
        host, port = server.url.removeprefix("http://").split(":")

        def flood(_: int) -> bytes:
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                head = HEAD + "Transfer-Encoding: chunked\n\n"
                connection.sendall(head.replace("\n", "\r\n").encode())
                with suppress(OSError):  # when it is closed
                    for _ in range(2_000):  # 130 MB, were they taken
                        connection.sendall(chunk)
                with suppress(OSError):
                    return connection.recv(65536)
            return b""

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(flood, range(4)))
        grown = worker.memory_info().rss - before
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    # The answer may be lost where the rest of the body meets a closed connection, not every time.
    assert any(answers)
    assert all(b"413" in answer for answer in answers if answer)
    assert grown < 50 * 2**20


@pytest.mark.slow
def test_endless_heads_are_cut_off_and_memory_stays(home, serving):
    with serving(home) as server:
        (worker,) = workers_of(server)
        before = worker.memory_info().rss
        host, port = server.url.removeprefix("http://").split(":")

        def flood(number: int) -> bytes:
            lines = b"".join(b"X-%d: %s\r\n" % (its, b"x" * 1000) for its in range(100))
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
                with suppress(OSError):  # when it is closed
                    for _ in range(200):  # 20 MB, were they taken
                        connection.sendall(lines if number % 2 else b"x" * len(lines))
                with suppress(OSError):
                    return connection.recv(65536)
            return b""

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(flood, range(20)))
        grown = worker.memory_info().rss - before
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert all(b" 431 " in answer for answer in answers if answer)
    assert grown < 20 * 2**20


@pytest.mark.slow
def test_connections_that_say_nothing_or_half_a_head_are_closed(home, serving):
    with serving(home, body_timeout_seconds="1") as server:
        silent = raw(server, "")
        half = raw(server, "GET /livez HTTP/1.1\nHost: local")
    assert silent == b""
    assert half.startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_a_real_server_does_not_believe_where_a_request_says_it_comes_from(home, serving):
    with serving(home) as server:
        answer = httpx.get(f"{server.url}/v1/model", headers={"X-Forwarded-For": "10.1.2.3"})
        assert answer.status_code == 200


def test_a_length_that_lies_is_refused_or_given_up(home, serving):
    with serving(home, body_timeout_seconds="0.5") as server:
        too_long = raw(server, HEAD + "Content-Length: 999999999999\n\n", b"x")
        too_short = raw(server, HEAD + "Content-Length: 1000\n\n", b"x" * 10)
        negative = raw(server, HEAD + "Content-Length: -1\n\n", b"x")
        both = raw(server, HEAD + "Content-Length: 5\nTransfer-Encoding: chunked\n\n", b"0\r\n\r\n")
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert b" 413 " in too_long.splitlines()[0]
    assert b" 408 " in too_short.splitlines()[0]
    assert b" 400 " in negative.splitlines()[0]
    assert b" 400 " in both.splitlines()[0]


@pytest.mark.slow
def test_many_slow_senders_do_not_keep_others_waiting(home, serving, image):
    with serving(home, body_timeout_seconds="2") as server:
        host, port = server.url.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port)), timeout=20) for _ in range(50)]
        try:
            head = (HEAD + "Content-Length: 100000\n\n").replace("\n", "\r\n").encode()
            for connection in slow:
                connection.sendall(head + b"x")
            answer = httpx.post(f"{server.url}/v1/predict", content=image, timeout=20)
            assert answer.status_code == 200
            assert all(b" 408 " in connection.recv(65536) for connection in slow)
        finally:
            for connection in slow:
                connection.close()


def test_one_broken_image_of_eight_at_once_is_one_error_and_seven_answers(
    home, serving, garment_images
):
    images = [encode(garment_images["images"][number]) for number in range(8)]
    alone = {}
    with serving(home) as server:

        def ask(image: bytes) -> httpx.Response:
            return httpx.post(f"{server.url}/v1/predict", content=image, timeout=20)

        for number, image in enumerate(images):
            alone[number] = ask(image).json()["predictions"][0]["labels"]
        images[3] = images[3][:-20]
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(ask, images))
    assert [answer.status_code for answer in together] == [200] * 3 + [422] + [200] * 4
    for number, answer in enumerate(together):
        if number != 3:
            assert answer.json()["predictions"][0]["labels"] == alone[number]
