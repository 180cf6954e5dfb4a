"""While the service is full, requests with images are refused by their heads."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager

import httpx
import pytest

from service.keys import add_key
from service.protocol import BoundedProtocol, put_in_force
from tests.service.conftest import OpenDoor
from tests.service.test_protocol import POST, answer_of, connect, flood, rest_of
from tests.service.waiting import until

SIZE = b"Content-Length: 1000\r\n"


@contextmanager
def full_door(open_door, red, **settings):
    """A door whose one place is taken until `machine.open` is set."""
    with open_door(queue_images=1, limit_parts=1, **settings) as door:
        waiting = door.hold_up(red(1))
        yield door
        door.machine.open.set()
        assert answer_of(waiting).startswith(b"HTTP/1.1 200 ")
        waiting.close()


@pytest.fixture
def usual_tasks(monkeypatch):
    """The URLs of requests that became tasks."""
    seen = []
    usual = BoundedProtocol._start_asgi_task

    def start(protocol, cycle, app):
        seen.append(cycle.scope["path"])
        usual(protocol, cycle, app)

    monkeypatch.setattr(BoundedProtocol, "_start_asgi_task", start)
    return seen


@pytest.mark.parametrize("url", [b"/v1/predict", b"/v1/predict?coverage=0.9"])
def test_a_request_is_refused_before_its_body_and_without_a_task(
    url, open_door, red, counts, usual_tasks
):
    with full_door(open_door, red) as door, connect(door) as connection:
        usual_tasks.clear()
        connection.sendall(POST.replace(b"/v1/predict", url) + SIZE + b"\r\n")
        answer = answer_of(connection)
        assert usual_tasks == []
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b'"overloaded"' in answer
    assert counts("plumbline_shed_requests_total", reason="queue_full") == 1
    assert counts("plumbline_requests_total", route="/v1/predict", status="429") == 1


@pytest.mark.parametrize(
    ("url", "header"),
    [
        (b"/v1/predict", b""),
        (b"/v1/predict?coverage=7", b""),
        (b"/v1/predict", b"X-Request-Deadline-Ms: soon\r\n"),
    ],
)
def test_the_answer_is_that_of_the_usual_way(url, header, open_door, red, usual_tasks):
    def told(answer: bytes) -> bytes:
        answer = re.sub(rb"(?i)(x-request-id): [0-9a-f]{32}", rb"\1: ID", answer)
        answer = re.sub(rb"(?i)(date): [^\r]+", rb"\1: DATE", answer)
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        return b"\n".join([first, *sorted(headers), body])

    answers = []
    post = POST.replace(b"/v1/predict", url)
    with full_door(open_door, red) as door:
        for more in (b"", b"Expect: 100-continue\r\n"):
            with connect(door) as connection:
                usual_tasks.clear()
                connection.sendall(post + SIZE + header + more + b"\r\n")
                answers.append(told(answer_of(connection)))
                assert bool(usual_tasks) is bool(more)
    assert answers[0] == answers[1]
    assert b"DATE" in answers[0]
    assert b"ID" in answers[0]


def test_the_trace_of_a_request_is_the_id_of_its_refusal(open_door, red):
    trace = b"0af7651916cd43dd8448eb211c80319c"
    with full_door(open_door, red) as door, connect(door) as connection:
        header = b"traceparent: 00-%s-b7ad6b7169203331-01\r\n" % trace
        connection.sendall(POST + SIZE + header + b"\r\n")
        assert b"x-request-id: " + trace in answer_of(connection).lower()


@pytest.mark.parametrize("framing", [SIZE, b"Transfer-Encoding: chunked\r\n"])
def test_the_connection_goes_on_after_the_body(framing, open_door, red):
    body = b"x" * 1000 if framing is SIZE else b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n"
    with full_door(open_door, red) as door, connect(door) as connection:
        for _ in range(3):
            connection.sendall(POST + framing + b"\r\n" + body)
            assert answer_of(connection).startswith(b"HTTP/1.1 429 ")
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        door.machine.open.set()
        until(lambda: door.door.images_inside == 0)
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(red(2)) + red(2))
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_never_comes_does_not_keep_the_connection(open_door, red):
    with full_door(open_door, red, body_timeout_seconds=0.4) as door, connect(door) as connection:
        connection.sendall(POST + SIZE + b"\r\nx")
        began = time.monotonic()
        assert rest_of(connection).startswith(b"HTTP/1.1 429 ")
        assert time.monotonic() - began < 2.4


def test_trailers_of_a_refused_request_are_bounded(open_door, red):
    with full_door(open_door, red) as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 429 ")
        assert flood(connection, b"X: y\r\n" * 1_000) < 32 * 2**20


def test_requests_that_are_sent_at_once_are_answered_in_their_order(open_door, red):
    refused = POST + b"Content-Length: 1\r\n\r\nx"
    with full_door(open_door, red) as door, connect(door) as connection:
        get = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(refused + get + refused + get)
        received = b""
        until_all = time.monotonic() + 10
        while received.count(b"HTTP/1.1 ") < 4 and time.monotonic() < until_all:
            received += connection.recv(65_536)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"429", b"200", b"429", b"200"]


def test_refusals_at_once_do_not_cut_off_what_comes_after_them(open_door, red, monkeypatch):
    """Each has a time until which the connection is kept; the next request ends it."""
    monkeypatch.setattr(OpenDoor, "keep_alive_seconds", 0.5)
    refused = POST + b"Content-Length: 1\r\n\r\nx"
    with open_door(queue_images=1, limit_parts=1) as door, connect(door) as connection:
        waiting = door.hold_up(red(1))
        connection.sendall(refused * 3)
        received = b""
        while received.count(b"HTTP/1.1 429 ") < 3:
            received += connection.recv(65_536)
        door.machine.open.set()
        assert answer_of(waiting).startswith(b"HTTP/1.1 200 ")
        waiting.close()
        until(lambda: door.door.images_inside == 0)
        door.machine.open.clear()
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(red(2)) + red(2))
        time.sleep(1.5)
        door.machine.open.set()
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_connection_on_which_all_was_refused_is_closed_when_nothing_comes(
    open_door, red, monkeypatch
):
    monkeypatch.setattr(OpenDoor, "keep_alive_seconds", 0.5)
    with full_door(open_door, red) as door, connect(door) as connection:
        connection.sendall(POST + b"Content-Length: 1\r\n\r\nx")
        began = time.monotonic()
        assert rest_of(connection).startswith(b"HTTP/1.1 429 ")
        assert 0.3 < time.monotonic() - began < 3


def test_an_older_client_goes_the_usual_way(open_door, red, usual_tasks):
    head = b"POST /v1/predict HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
    with full_door(open_door, red) as door, connect(door) as connection:
        usual_tasks.clear()
        connection.sendall(head + b"Content-Length: 1\r\n\r\nx")
        assert rest_of(connection).startswith(b"HTTP/1.1 429 ")
        assert usual_tasks == ["/v1/predict"]


def test_a_connection_that_is_to_end_ends_after_the_refusal(open_door, red):
    with full_door(open_door, red) as door, connect(door) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: 1\r\n\r\nx")
        answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"connection: close" in answer.lower()


def test_what_else_is_wrong_is_told_first(open_door, red, tmp_path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "somebody", ["predict"])
    others = add_key(keys, "other", ["feedback"])

    def status(door, method="POST", path="/v1/predict", key=key) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.request(method, door.url + path, headers=headers, content=b"x").status_code

    with open_door(queue_images=1, limit_parts=1, api_keys_file=keys) as door:
        waiting = door.hold_up(red(1), Authorization=f"Bearer {key}")
        assert status(door) == 429
        assert status(door, key="unknown") == 401
        assert status(door, key=others) == 403
        assert status(door, path="/v1/nothing") == 404
        assert status(door, method="PUT") == 405
        door.machine.open.set()
        answer_of(waiting)
        waiting.close()


def test_a_client_that_reads_no_answers_does_not_fill_the_memory(open_door, red):
    """Its answers wait in the connection: past a limit it is not read from, either."""
    refused = POST + b"Content-Length: 1\r\n\r\nx"
    with full_door(open_door, red) as door, connect(door) as connection:
        connection.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 2**28:
                sent += connection.send(refused * 1_000)
        assert sent < 2**26


def test_behind_a_proxy_that_is_trusted_the_usual_way_finds_the_client(monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "refusal", None)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    put_in_force(10.0, lambda *its: None)
    assert BoundedProtocol.refusal is None
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    put_in_force(10.0, lambda *its: None)
    assert BoundedProtocol.refusal is not None
