"""What comes before a request is known is bounded, in bytes and in seconds."""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import suppress

import httpx
import pytest

from service.keys import add_key
from service.protocol import LIMIT_HEAD_BYTES
from tests.service.conftest import OpenDoor
from tests.service.waiting import until

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
TIMEOUT = 0.4


def connect(door) -> socket.socket:
    return socket.create_connection(("127.0.0.1", door.port), timeout=20)


def rest_of(connection) -> bytes:
    """All that the server says until it closes the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            received += part
    return received


def flood(connection, piece: bytes, most_bytes: int = 32 * 2**20) -> int:
    """Send the same again and again until the server closes; how many bytes it took."""
    sent = 0
    with suppress(OSError):
        while sent < most_bytes:
            connection.sendall(piece)
            sent += len(piece)
    return sent


def trickle(connection, *, seconds: float) -> float:
    """A byte now and then until the server closes; after how many seconds it did."""
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() < began + seconds:
            connection.sendall(b"x")
            time.sleep(0.02)
    return time.monotonic() - began


def answer_of(connection) -> bytes:
    """One answer on a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    while len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):
        body += connection.recv(65_536)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /", b"x" * 10_000),
        (GET + b"X: ", b"x" * 10_000),
        (GET, b"X: y\r\n" * 1_000),
        (b"", b"\r\n" * 5_000),
    ],
    ids=["url", "one header", "many headers", "empty lines"],
)
def test_an_endless_head_is_cut_off(begin, piece, open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(begin)
        assert flood(connection, piece) < 32 * 2**20
        assert httpx.get(f"{door.url}/livez").status_code == 200


@pytest.mark.parametrize("in_one_piece", [True, False])
def test_a_head_over_the_limit_is_told_so(in_one_piece, open_door, counts):
    head = GET + b"X: " + b"x" * LIMIT_HEAD_BYTES
    with open_door() as door, connect(door) as connection:
        if in_one_piece:
            connection.sendall(head + b"\r\n\r\n")
        else:
            connection.sendall(head[:1000])
            time.sleep(0.05)
            connection.sendall(head[1000:])
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in answer.lower()
    assert b'"head_too_large"' in answer
    assert counts("plumbline_requests_total", route="other", status="431") == 1


BROKEN = {
    "words": b"hello there\r\n\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "URL": b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "path": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "header": GET + b"no colon\r\n\r\n",
    "length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nnone\r\n",
}


def header_of(answer: bytes, name: bytes) -> str:
    """Of a raw answer, which has it once."""
    (found,) = re.findall(rb"^%s: (.*)\r$" % name, answer.lower(), re.MULTILINE)
    return found.decode()


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_is_no_http_gets_an_error_object_and_is_counted(broken, open_door, counts):
    with open_door() as door, connect(door) as connection:
        connection.sendall(broken)
        answer = rest_of(connection)
        assert httpx.get(f"{door.url}/livez").status_code == 200
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert header_of(answer, b"content-type") == "application/json"
    assert header_of(answer, b"connection") == "close"
    assert json.loads(body)["error"]["code"] == "malformed"
    route = "/v1/predict" if broken is BROKEN["chunk"] else "other"  # it is under way
    assert counts("plumbline_requests_total", route=route, status="400") == 1
    assert counts("plumbline_requests_total", route=route, status="499") == 0


def test_a_body_that_breaks_off_is_counted_once_and_has_one_id(open_door, counts, lines):
    with open_door(access_log=True) as door, connect(door) as connection:
        connection.sendall(BROKEN["chunk"])
        answer = rest_of(connection)
        until(lambda: counts("plumbline_requests_total", route="/v1/predict", status="400"))
    assert counts("plumbline_requests_total", route="/v1/predict", status="499") == 0
    assert counts("plumbline_requests_total", route="other", status="400") == 0
    (line,) = [its for its in lines() if its["logger"] == "plumbline.access"]
    assert line["status"] == 400
    assert line["request_id"] == header_of(answer, b"x-request-id")


def test_a_body_that_breaks_off_after_its_answer_gets_no_second_one(open_door, tmp_path):
    keys = tmp_path / "keys.json"
    add_key(keys, "somebody", ["predict"])
    with open_door(api_keys_file=keys) as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"none\r\n")
        assert rest_of(connection) == b""


def test_a_head_within_the_limit_is_answered_also_before_a_large_body(open_door, red):
    with open_door() as door, connect(door) as connection:
        long = b"X: " + b"x" * (LIMIT_HEAD_BYTES - 1_000) + b"\r\n"
        for _ in range(2):  # over one connection
            connection.sendall(GET + long + b"\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        body = b"x" * 300_000
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert answer_of(connection).startswith(b"HTTP/1.1 415 ")


def test_endless_trailers_are_cut_off(open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        assert flood(connection, b"X: y\r\n" * 1_000) < 32 * 2**20
        until(lambda: door.door.images_inside == 0)


def test_a_request_that_was_answered_gets_no_second_answer_for_its_trailers(open_door, tmp_path):
    keys = tmp_path / "keys.json"
    add_key(keys, "somebody", ["predict"])
    with open_door(api_keys_file=keys) as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 401 ")
        assert flood(connection, b"X: y\r\n" * 1_000) < 32 * 2**20
        with suppress(OSError):
            assert connection.recv(65_536) == b""


def test_a_chunk_that_describes_itself_without_end_is_cut_off(open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1;")
        assert flood(connection, b"x" * 10_000) < 32 * 2**20


def test_a_body_in_tiny_chunks_is_no_head(open_door, red):
    image = red(1) + bytes(40_000)  # what comes after a PNG's end is not looked at
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n"
    with open_door() as door, connect(door) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")


# Seconds


def test_a_connection_that_says_nothing_is_closed(open_door):
    with open_door(body_timeout_seconds=TIMEOUT) as door, connect(door) as connection:
        began = time.monotonic()
        assert rest_of(connection) == b""
        assert TIMEOUT - 0.1 < time.monotonic() - began < TIMEOUT + 2


@pytest.mark.parametrize("first", [False, True], ids=["first", "later"])
def test_a_head_that_stays_half_sent_is_given_up(first, open_door):
    with open_door(body_timeout_seconds=TIMEOUT) as door, connect(door) as connection:
        if first:
            connection.sendall(GET + b"\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
            time.sleep(TIMEOUT)  # a later request has its own time
        began = time.monotonic()
        connection.sendall(GET)
        answer = rest_of(connection)
        assert TIMEOUT - 0.1 < time.monotonic() - began < TIMEOUT + 2
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"too_slow"' in answer


def test_a_head_that_trickles_is_given_up(open_door):
    with open_door(body_timeout_seconds=TIMEOUT) as door, connect(door) as connection:
        connection.sendall(GET + b"X: ")
        assert trickle(connection, seconds=TIMEOUT + 2) < TIMEOUT + 2


def test_a_kept_connection_lives_longer_than_a_head_may_take(open_door, red):
    with open_door(body_timeout_seconds=TIMEOUT) as door, connect(door) as connection:
        for _ in range(4):
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(red(1)) + red(1))
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.7 * TIMEOUT)


def test_an_answer_may_take_longer_than_a_head(open_door, red):
    with open_door(body_timeout_seconds=TIMEOUT) as door:
        waiting = door.hold_up(red(1))
        time.sleep(3 * TIMEOUT)
        door.machine.open.set()
        assert answer_of(waiting).startswith(b"HTTP/1.1 200 ")
        waiting.close()


def refused_with(door, key: str | None) -> tuple[socket.socket, bytes]:
    """A request with a large body, answered before that came."""
    connection = connect(door)
    authorization = b"" if key is None else b"Authorization: Bearer %s\r\n" % key.encode()
    connection.sendall(POST + authorization + b"Content-Length: 1000\r\n\r\nx")
    return connection, answer_of(connection)


def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for(open_door, tmp_path):
    keys = tmp_path / "keys.json"
    add_key(keys, "somebody", ["predict"])
    with open_door(api_keys_file=keys, body_timeout_seconds=TIMEOUT) as door:
        connection, answer = refused_with(door, key=None)
        assert answer.startswith(b"HTTP/1.1 401 ")
        # Each byte would keep it open.
        assert trickle(connection, seconds=TIMEOUT + 2) < TIMEOUT + 2
        connection.close()


def test_a_refusal_whose_body_comes_in_time_keeps_the_connection(open_door, tmp_path, red):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "somebody", ["predict"])
    with open_door(api_keys_file=keys, body_timeout_seconds=TIMEOUT) as door:
        connection, answer = refused_with(door, key=None)
        assert answer.startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"x" * 999)
        time.sleep(2 * TIMEOUT)
        authorization = b"Authorization: Bearer %s\r\n" % key.encode()
        connection.sendall(
            POST + authorization + b"Content-Length: %d\r\n\r\n" % len(red(1)) + red(1)
        )
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        connection.close()


# The id of a refusal

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = b"traceparent: 00-%s-b7ad6b7169203331-01\r\n" % TRACE.encode()
UNHEARD = {
    431: GET + TRACEPARENT + b"X: " + b"x" * LIMIT_HEAD_BYTES,
    408: GET + TRACEPARENT + b"X: ",
    400: GET + TRACEPARENT + b"X: y\r\nno colon\r\n\r\n",
}


@pytest.mark.parametrize(("status", "head"), UNHEARD.items(), ids=map(str, UNHEARD))
def test_a_refused_head_has_its_trace_id_and_else_one_of_its_own(status, head, open_door):
    found = []
    with open_door(body_timeout_seconds=TIMEOUT) as door:
        for sent in (head, head.replace(TRACEPARENT, b"")):
            with connect(door) as connection:
                connection.sendall(sent)
                answer = rest_of(connection)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            found.append(header_of(answer, b"x-request-id"))
    assert found[0] == TRACE
    assert re.fullmatch("[0-9a-f]{32}", found[1])
    assert found[1] != TRACE


@pytest.mark.parametrize("sent", [b"?", b"\r\n" * LIMIT_HEAD_BYTES], ids=["words", "empty lines"])
def test_a_refusal_never_has_the_id_of_the_request_before_it(sent, open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(GET + TRACEPARENT + b"\r\n")
        assert header_of(answer_of(connection), b"x-request-id") == TRACE
        connection.sendall(sent)
        assert header_of(rest_of(connection), b"x-request-id") != TRACE


@pytest.mark.parametrize("status", UNHEARD)
def test_a_refused_head_is_logged_under_its_id_where_answers_are(status, open_door, lines, caplog):
    for access_log in (False, True):
        settings = {"access_log": access_log, "body_timeout_seconds": TIMEOUT}
        with open_door(**settings) as door, connect(door) as connection:
            connection.sendall(UNHEARD[status])
            assert header_of(rest_of(connection), b"x-request-id") == TRACE
        if not access_log:
            assert lines() == []
    (line,) = lines()
    assert (line["request_id"], line["route"], line["status"]) == (TRACE, "other", status)
    assert 0 <= line["seconds"] < 30
    assert "Invalid HTTP" not in caplog.text, "uvicorn's line has no id"


# Who is believed


def test_what_a_client_says_of_where_it_comes_from_is_not_believed(open_door, red):
    with open_door() as door:
        headers = {"X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "https"}
        answer = httpx.post(f"{door.url}/v1/predict", content=red(1), headers=headers)
        assert answer.status_code == 200, "this machine alone is served, and this is it"


def test_with_many_addresses_in_its_headers_a_client_is_still_one(open_door, red, counts):
    with open_door(queue_images=4, limit_parts=4) as door:
        waiting = [door.hold_up(red(1), X_Forwarded_For="127.0.0.2")]
        waiting += [door.send(red(2), X_Forwarded_For=f"127.0.1.{its}") for its in (1, 2)]
        until(lambda: door.door.images_inside == 3)
        headers = {"X-Forwarded-For": "127.0.0.3"}
        refused = httpx.post(f"{door.url}/v1/predict", content=red(3), headers=headers)
        assert refused.status_code == 429
        door.machine.open.set()
        for connection in waiting:
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
            connection.close()
    assert counts("plumbline_shed_requests_total", reason="share_full") == 1


# Other protocols

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_a_wish_for_another_protocol_is_not_heard_and_the_body_is_the_body(
    pieces, open_door, red, counts
):
    """As clients of HTTP/2 send it where they do not know the server."""
    request = POST + H2C + b"Content-Length: %d\r\n\r\n" % len(red(1)) + red(1)
    size = -(-len(request) // pieces)
    with open_door() as door, connect(door) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), size):
            connection.sendall(request[start : start + size])
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(red(2)) + red(2))
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
    assert door.machine.seen == [1, 2]
    assert counts("plumbline_requests_total", route="/v1/predict", status="200") == 2


def test_a_body_is_no_second_request(open_door):
    body = b"GET /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with open_door() as door, connect(door) as connection:
        connection.sendall(POST + H2C + b"Content-Length: %d\r\n\r\n" % len(body))
        time.sleep(0.05)
        connection.sendall(body)
        assert answer_of(connection).startswith(b"HTTP/1.1 415 ")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(65_536)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/predict HTTP/1.1\r\nHost: localhost\r\n", b"405"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"200"),
        (b"GET /v1/model HTTP/1.1\r\nHost: evil.example\r\n", b"403"),
    ],
)
def test_a_web_socket_is_a_request_as_every_other(head, status, open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(head + WEBSOCKET + b"\r\n")
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert header_of(answer, b"content-type") == "application/json"
    assert len(header_of(answer, b"x-request-id")) == 32


def test_an_older_client_with_such_a_wish_is_answered_as_one(open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n" + H2C + b"\r\n")
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert header_of(answer, b"connection") == "close"


def test_a_tunnel_is_refused(open_door, counts):
    with open_door() as door, connect(door) as connection:
        connection.sendall(b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org\r\n\r\n" + GET)
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert counts("plumbline_requests_total", route="other", status="405") == 1


def test_of_many_wishes_at_once_each_request_is_answered(open_door):
    with open_door() as door, connect(door) as connection:
        connection.sendall((GET + H2C + b"\r\n") * 50)
        received = b""
        deadline = time.monotonic() + 10
        while received.count(b"HTTP/1.1 200 ") < 50 and time.monotonic() < deadline:
            received += connection.recv(65_536)
    assert received.count(b"HTTP/1.1 200 ") == 50


# Connections that are kept


@pytest.fixture
def soon(monkeypatch) -> float:
    """How long an idle connection is kept."""
    monkeypatch.setattr(OpenDoor, "keep_alive_seconds", 0.5)
    return 0.5


def test_half_a_head_behind_a_whole_request_has_its_own_time(open_door):
    with open_door(body_timeout_seconds=TIMEOUT) as door, connect(door) as connection:
        began = time.monotonic()
        connection.sendall(GET + b"\r\n" + GET)
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        assert rest_of(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < TIMEOUT + 2


@pytest.mark.parametrize("half", [b"", b"POST /v1"], ids=["idle", "half a head"])
def test_a_connection_whose_body_came_late_is_closed_as_others_are(half, soon, open_door, tmp_path):
    keys = tmp_path / "keys.json"
    add_key(keys, "somebody", ["predict"])
    with open_door(api_keys_file=keys, body_timeout_seconds=TIMEOUT) as door:
        connection, answer = refused_with(door, key=None)
        assert answer.startswith(b"HTTP/1.1 401 ")
        began = time.monotonic()
        connection.sendall(b"x" * 999 + half)
        assert rest_of(connection).startswith(b"HTTP/1.1 408 " if half else b"")
        assert time.monotonic() - began < max(soon, TIMEOUT) + 2
        connection.close()
