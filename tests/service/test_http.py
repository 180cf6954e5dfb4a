"""The door as clients meet it: deadlines, overload, hanging up, the end, and what is told of it."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY

from service.keys import add_key
from tests.service.waiting import until

FRESH = re.compile("[0-9a-f]{32}")
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def ask(door, body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{door.url}/v1/predict", content=body, headers=named, timeout=30)


def code(response):
    return response.status_code, response.json()["error"]["code"]


def answer_of(connection) -> bytes:
    """Everything until the server closes the connection, or the whole of one answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65_536)
    connection.close()
    return head + b"\r\n\r\n" + body


# Deadlines


@pytest.mark.parametrize(
    "given",
    ["", "0", "-5", "+5", "1.5", "1e3", "soon", "0x10", "1 000", "60001", "9" * 400, "100, 100"],
)
def test_a_deadline_that_is_none_gets_one_clear_error(open_door, red, given):
    with open_door() as door:
        response = ask(door, red(1), X_Request_Deadline_Ms=given)
        assert code(response) == (422, "invalid")
        assert "a whole number of milliseconds, 1 to 60000, once" in response.text
        assert door.machine.seen == []


def test_a_deadline_that_is_named_twice_is_none(open_door, red):
    with open_door() as door:
        twice = [("X-Request-Deadline-Ms", "500")] * 2
        response = httpx.post(f"{door.url}/v1/predict", content=red(1), headers=twice)
        assert code(response) == (422, "invalid")


def test_nobody_may_wait_longer_than_the_setting_unless_that_is_allowed(open_door, red):
    with open_door(deadline_seconds=2.0, limit_deadline_seconds=None) as door:
        refused = ask(door, red(1), X_Request_Deadline_Ms="2001")
        assert code(refused) == (422, "invalid")
        assert "1 to 2000, once" in refused.text
        assert ask(door, red(1), X_Request_Deadline_Ms="2000").status_code == 200


@pytest.mark.parametrize("given", ["60000", "000900"])
def test_a_deadline_within_the_limit_is_taken(open_door, red, given):
    with open_door() as door:
        assert ask(door, red(1), X_Request_Deadline_Ms=given).status_code == 200


def test_what_is_past_the_deadline_that_its_request_names_is_not_computed(open_door, red, counts):
    with open_door() as door:
        first = door.hold_up(red(1))
        late = ask(door, red(2), X_Request_Deadline_Ms="100")
        assert code(late) == (504, "deadline_exceeded")
        door.machine.open.set()
        assert answer_of(first).startswith(b"HTTP/1.1 200")
        assert ask(door, red(3)).status_code == 200
        assert door.machine.seen == [1, 3]
    assert counts("plumbline_dropped_images_total", reason="deadline") == 1
    assert counts("plumbline_requests_total", route="/v1/predict", status="504") == 1


def test_the_deadline_of_the_request_wins_over_the_setting(open_door, red):
    with open_door(deadline_seconds=0.1) as door:
        first = door.hold_up(red(1), X_Request_Deadline_Ms="30000")
        with ThreadPoolExecutor(1) as thread:
            patient = thread.submit(ask, door, red(2), X_Request_Deadline_Ms="30000")
            until(lambda: door.batcher.waiting)
            assert code(ask(door, red(3))) == (504, "deadline_exceeded")
            door.machine.open.set()
            assert patient.result().status_code == 200
        assert answer_of(first).startswith(b"HTTP/1.1 200")
        assert door.machine.seen == [1, 2]


def test_the_deadline_runs_from_the_arrival_of_the_request_not_from_the_end_of_its_body(
    open_door, red, counts
):
    with open_door() as door:
        answer = answer_of(door.send(red(1), sent=20, X_Request_Deadline_Ms="100"))
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"connection: close" in answer.lower()
        assert ask(door, red(2)).status_code == 200
        assert door.machine.seen == [2]
    assert counts("plumbline_dropped_images_total", reason="deadline") == 1


# Clients that hang up


def test_the_work_of_a_client_that_hung_up_is_not_computed(open_door, red, counts):
    with open_door() as door:
        first = door.hold_up(red(1))
        gone = door.send(red(2))
        until(lambda: door.batcher.waiting == 1)
        gone.close()
        until(lambda: counts("plumbline_requests_total", route="/v1/predict", status="499") == 1)
        assert door.door.images_inside == 1, "its room is given back at once"
        assert door.batcher.waiting == 0, "and its place in the queue"
        door.machine.open.set()
        assert answer_of(first).startswith(b"HTTP/1.1 200")
        assert ask(door, red(3)).status_code == 200
        assert door.machine.seen == [1, 3]
    assert counts("plumbline_dropped_images_total", reason="client_gone") == 1
    assert counts("plumbline_images_total", outcome="ok") == 2


def test_a_client_that_stays_is_not_taken_for_one_that_hung_up(open_door, red, counts):
    with open_door() as door, httpx.Client() as client:
        for _ in range(20):  # over one connection
            assert client.post(f"{door.url}/v1/predict", content=red(1)).status_code == 200
    assert counts("plumbline_requests_total", route="/v1/predict", status="499") == 0


# Overload


def test_overload_is_told_with_the_seconds_that_the_queue_takes(open_door, red, counts):
    with open_door(queue_images=4, limit_parts=4) as door:
        waiting = [door.hold_up(red(1)), door.send(red(2)), door.send(red(3))]
        until(lambda: door.door.images_inside == 3)
        refused = ask(door, red(4))
        assert code(refused) == (429, "overloaded")
        assert int(refused.headers["Retry-After"]) >= 1
        door.machine.open.set()
        assert all(answer_of(connection).startswith(b"HTTP/1.1 200") for connection in waiting)
        assert sorted(door.machine.seen) == [1, 2, 3]
    # All are of one client, which may not have the last quarter of the room.
    assert counts("plumbline_shed_requests_total", reason="share_full") == 1
    assert counts("plumbline_shed_requests_total", reason="queue_full") == 0
    assert counts("plumbline_requests_total", route="/v1/predict", status="429") == 1


def test_a_single_image_is_let_in_beside_forms_of_the_same_client(open_door, red, counts):
    form = [("image", ("x", red(1)))] * 64
    with open_door(batch_images=64) as door, ThreadPoolExecutor(5) as threads:
        door.machine.open.clear()

        def send(**request):
            return threads.submit(httpx.post, f"{door.url}/v1/predict", timeout=30, **request)

        forms = []
        for images in (64, 128, 192):
            forms.append(send(files=form))
            until(lambda images=images: door.door.images_inside == images)
        assert code(httpx.post(f"{door.url}/v1/predict", files=form)) == (429, "overloaded")
        single = send(content=red(2))
        until(lambda: door.door.images_inside == 193)
        door.machine.open.set()
        answers = [each.result() for each in (*forms, single)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert counts("plumbline_shed_requests_total", reason="share_full") == 1


def test_a_service_without_any_room_says_so_and_keys_still_come_first(
    open_door, red, counts, tmp_path
):
    keys = tmp_path / "keys.json"
    first, second = (add_key(keys, name, ["predict"]) for name in ("first", "second"))
    with open_door(queue_images=1, limit_parts=1, api_keys_file=keys) as door:
        waiting = door.hold_up(red(1), Authorization=f"Bearer {first}")
        refused = ask(door, red(2), Authorization=f"Bearer {second}")
        assert code(refused) == (429, "overloaded")
        assert len(refused.headers["X-Request-Id"]) == 32
        assert code(ask(door, red(3))) == (401, "unauthorized")
        door.machine.open.set()
        assert answer_of(waiting).startswith(b"HTTP/1.1 200")
    assert counts("plumbline_shed_requests_total", reason="queue_full") == 1


def test_a_body_without_room_for_its_bytes_is_counted_as_that(open_door, red, counts):
    with open_door(limit_bytes_in_flight=50) as door:
        assert code(ask(door, red(1))) == (429, "overloaded")
    assert counts("plumbline_shed_requests_total", reason="memory_full") == 1


# Start and end


def test_before_there_is_a_model_work_is_turned_away_and_counted(open_door, red, counts):
    with open_door() as door:
        door.rollout.champion = None
        for response in (ask(door, red(1)), httpx.get(f"{door.url}/readyz")):
            assert code(response) == (503, "unavailable")
            assert response.headers["Retry-After"] == "1"
    assert counts("plumbline_shed_requests_total", reason="starting") == 1  # not the probe


def test_the_end_is_told_first_then_work_is_refused_and_what_is_inside_finished(
    open_door, red, counts
):
    with open_door() as door:
        assert "connection" not in ask(door, red(1)).headers
        door.door.lifecycle.is_leaving = True
        assert code(httpx.get(f"{door.url}/readyz")) == (503, "unavailable")
        answered = ask(door, red(2))
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")
        in_flight = door.hold_up(red(3))
        ending = door.begin(door.door.lifecycle.end(grace_seconds=0, limit_seconds=60))
        until(lambda: door.door.lifecycle.is_refusing)
        refused = ask(door, red(4))
        assert code(refused) == (503, "unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert httpx.get(f"{door.url}/livez").status_code == 200
        assert not ending.done()
        door.machine.open.set()
        assert answer_of(in_flight).startswith(b"HTTP/1.1 200")
        ending.result(30)
        assert door.machine.seen == [1, 2, 3]
    assert counts("plumbline_shed_requests_total", reason="stopping") == 1


def test_what_is_not_done_within_the_limit_is_answered_so(open_door, red):
    with open_door() as door:
        hanging = [door.hold_up(red(1)), door.send(red(2), sent=10)]
        until(lambda: door.door.images_inside == 2)
        door.begin(door.door.lifecycle.end(grace_seconds=0, limit_seconds=0.1)).result(30)
        for connection in hanging:
            answer = answer_of(connection)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer


# What is told


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("POST", "/v1/predict", 400),
        ("GET", "/v1/predict", 405),
        ("GET", "/nothing", 404),
    ],
)
def test_every_answer_names_its_request(open_door, method, path, status):
    with open_door() as door, httpx.Client() as client:

        def named(**headers: str) -> str:
            response = client.request(method, f"{door.url}{path}", headers=headers)
            assert response.status_code == status
            return response.headers["x-request-id"]

        assert named(traceparent=TRACEPARENT) == TRACE
        fresh = {named(), named(), named(traceparent="00-junk"), named(traceparent="")}
        assert len(fresh) == 4
        assert all(FRESH.fullmatch(name) for name in fresh)


async def statuses(app, requests) -> list[int]:
    """Of requests without a body, asked of the application itself: thousands in a second."""
    found = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            found.append(message["status"])

    for method, path in requests:
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        await app(scope, receive, send)
    return found


def test_thousands_of_unknown_paths_and_methods_do_not_make_one_series_more(open_door, counts):
    def series() -> int:
        return sum(len(metric.samples) for metric in REGISTRY.collect())

    paths = [("GET", f"/v{number}/{number:x}") for number in range(5_000)]
    methods = [(f"METHOD{number}", "/v1/model") for number in range(1_000)]
    with open_door() as door:
        door.begin(statuses(door.app, [paths[0], methods[0]])).result(30)
        before = series()
        found = door.begin(statuses(door.app, paths + methods)).result(240)
        assert series() == before
    assert found == [404] * 5_000 + [405] * 1_000
    assert counts("plumbline_requests_total", route="other", status="404") == 5_001
    assert counts("plumbline_requests_total", route="other", status="405") == 1_001


def test_a_prediction_is_seen_in_every_metric_of_its_way(open_door, red, counts):
    with open_door() as door:
        ask(door, red(1))
        door.machine.labels, door.machine.flagged = [], True
        ask(door, red(2))
        ask(door, b"junk")
    for step, times in {"decode": 2, "queue": 2, "compute": 2, "respond": 3}.items():
        assert counts("plumbline_step_seconds_count", step=step) == times, step
    assert counts("plumbline_request_seconds_count") == 2
    assert counts("plumbline_images_total", outcome="ok") == 2
    assert counts("plumbline_images_total", outcome="unsupported_type") == 1
    assert counts("plumbline_requests_total", route="/v1/predict", status="200") == 2
    assert counts("plumbline_requests_total", route="/v1/predict", status="415") == 1
    assert counts("plumbline_labels_total", label="star") == 1
    assert counts("plumbline_unlabelled_total") == 1
    assert counts("plumbline_flagged_total") == 1
    assert counts("plumbline_confidence_bucket", le="0.7") == 0
    assert counts("plumbline_confidence_bucket", le="0.8") == 2
    assert counts("plumbline_outlier_p_value_bucket", le="0.005") == 1
    assert counts("plumbline_outlier_p_value_bucket", le="0.5") == 2


def test_a_failure_is_logged_under_the_id_of_its_request(open_door, red, lines):
    with open_door() as door:
        door.machine.fault = KeyError("odd")
        response = httpx.post(
            f"{door.url}/v1/predict?coverage=0.9",
            content=red(1),
            headers={"traceparent": TRACEPARENT},
        )
        assert code(response) == (500, "internal")
    (line,) = lines()
    assert (line["level"], line["message"]) == ("error", "POST /v1/predict failed")
    assert line["request_id"] == response.headers["x-request-id"] == TRACE
    assert "KeyError" in line["exception"]


def test_an_image_that_cannot_be_judged_is_logged_under_the_id_of_its_request(
    open_door, red, lines
):
    with open_door() as door:
        door.machine.cannot_judge = RuntimeError("the network broke")
        response = ask(door, red(1), traceparent=TRACEPARENT)
        assert code(response) == (500, "internal")
    (line,) = [its for its in lines() if "could not be judged" in its["message"]]
    assert line["request_id"] == response.headers["x-request-id"]
    assert "the network broke" in line["exception"]


@pytest.mark.parametrize(
    "odd",
    [
        {"score": float("nan")},
        {"score": float("inf")},
        {"probabilities": np.array([np.nan, 0.1, 0.2], np.float32), "confidence": float("nan")},
    ],
    ids=["score", "infinite score", "probability"],
)
def test_an_image_whose_judgement_is_no_number_is_one_error_and_its_neighbours_are_answered(
    odd, open_door, red, counts, lines
):
    with open_door() as door:
        door.machine.odd = {2: odd}
        files = [("image", ("x", red(value))) for value in (1, 2, 3)]
        answer = httpx.post(f"{door.url}/v1/predict", files=files)
        alone = ask(door, red(2))
    rows = answer.json()["predictions"]
    assert (answer.status_code, [row["labels"] for row in rows]) == (200, [["star"], [], ["star"]])
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "internal", None]
    assert code(alone) == (500, "internal")
    assert counts("plumbline_images_total", outcome="internal") == 2
    assert counts("plumbline_images_total", outcome="ok") == 2
    assert any("no finite number" in line.get("exception", "") for line in lines())


def test_requests_are_logged_only_where_that_is_asked_for(open_door, red, lines):
    with open_door() as door:
        ask(door, red(1))
    assert lines() == []
    with open_door(access_log=True) as door:
        named = ask(door, red(1)).headers["x-request-id"]
        httpx.get(f"{door.url}/secret-path?secret=query")
    first, second = lines()
    assert (first["route"], first["status"], first["method"]) == ("/v1/predict", 200, "POST")
    assert first["request_id"] == named
    assert 0 < first["seconds"] < 30
    assert (second["route"], second["status"]) == ("other", 404)
    assert "secret" not in json.dumps(second)


def test_neither_images_nor_keys_are_logged(open_door, red, lines, tmp_path):
    keys = tmp_path / "keys.json"
    secret = add_key(keys, "anna", ["predict"])
    with open_door(access_log=True, api_keys_file=keys) as door:
        for key in (secret, "wrong-key"):
            for body in (red(1), b"raw image content", b""):
                ask(door, body, Authorization=f"Bearer {key}")
        door.machine.fault = KeyError("odd")
        httpx.post(
            f"{door.url}/v1/predict?coverage=0.9",
            content=b"raw image content",
            headers={"Authorization": f"Bearer {secret}"},
        )
    assert len(lines()) == 8
    told = json.dumps(lines())
    for private in (secret, "wrong-key", "raw image content", "Bearer"):
        assert private not in told


def test_a_share_of_the_predictions_is_recorded(open_door, red):
    kept = []
    with open_door(record_share=0.5) as door:
        door.door._records = SimpleNamespace(offer=kept.append)
        for _ in range(200):
            assert ask(door, red(1)).status_code == 200
    assert 60 < len(kept) < 140  # beyond it by chance: once in fifty million runs
