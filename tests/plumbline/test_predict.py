"""`plumbline predict`: requests a service takes, and one bad image that spoils nothing."""

from __future__ import annotations

import httpx
import pytest

from model.errors import PlumblineError
from plumbline import predict
from plumbline.client import Client, ServiceError

BAD = b"<bad>"  # the boundary of a request is random hexadecimal digits, which may spell bad


@pytest.fixture
def service(monkeypatch):
    """A service as the contract describes it, in this process; gives the sizes it was asked."""
    asked: list[int] = []
    refusals: list[tuple[int, str, str | None]] = []  # status, code, Retry-After

    def answer(request: httpx.Request) -> httpx.Response:
        content = request.read()
        images = content.count(b'name="image"')
        asked.append(images)
        if refusals:
            status, code, wait = refusals.pop(0)
            headers = {} if wait is None else {"Retry-After": wait}
            error = {"error": {"code": code, "message": "said the service"}}
            return httpx.Response(status, json=error, headers=headers)
        if content.count(BAD) == images:
            error = {"error": {"code": "undecodable", "message": "broken"}}
            return httpx.Response(422, json=error)
        row = {"id": "1", "labels": ["cat"], "probabilities": {"cat": 1.0}}
        rows = [{**row, "out_of_domain": None, "error": None}] * images
        model = {"name": "x", "version": "1", "stage": "champion"}
        return httpx.Response(200, json={"model": model, "predictions": rows})

    def connected(url: str, *, api_key: str | None = None) -> Client:
        client = Client(url, api_key=api_key)
        client._http = httpx.Client(base_url=url, transport=httpx.MockTransport(answer))
        return client

    monkeypatch.setattr(predict, "Client", connected)
    return asked, refusals


@pytest.fixture
def waits(monkeypatch):
    """How long was waited, in seconds, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(predict.time, "sleep", waited.append)
    return waited


def files(folder, contents):
    for number, content in enumerate(contents):
        (folder / f"{number:03}.png").write_bytes(content)
    return sorted(folder.iterdir())


def ask(paths):
    return predict.predict_by_service(paths, "http://service", None)


def test_a_request_of_bad_images_alone_gives_their_rows(service, tmp_path):
    rows = ask(files(tmp_path, [BAD, BAD]))
    assert [row["error"] for row in rows] == [{"code": "undecodable", "message": "broken"}] * 2
    assert [row["file"][-7:] for row in rows] == ["000.png", "001.png"]
    assert service[0] == [2, 1, 1]


def test_requests_keep_to_a_number_of_images_and_of_bytes(service, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    monkeypatch.setattr(predict, "REQUEST_BYTES", 100)
    sizes = [10, 10, 10, 10, 90, 200, 5]
    rows = ask(files(tmp_path, [b"x" * size for size in sizes]))
    assert service[0] == [3, 2, 1, 1]
    assert len(rows) == len(sizes)


def test_an_overloaded_service_is_asked_again_when_it_says(service, waits, tmp_path):
    service[1].extend([(429, "overloaded", "7"), (429, "overloaded", None)])
    rows = ask(files(tmp_path, [b"good"]))
    assert rows[0]["labels"] == ["cat"]
    assert waits == [7, 1]


def test_a_service_that_stays_overloaded_is_given_up(service, waits, tmp_path):
    service[1].extend([(429, "overloaded", "3600")] * 100)
    with pytest.raises(ServiceError, match="overloaded") as raised:
        ask(files(tmp_path, [b"good"]))
    assert raised.value.retry_after_seconds == 3600
    assert waits == [predict.LONGEST_WAIT_SECONDS] * (predict.TRIES - 1)


def test_other_errors_end_the_command(service, tmp_path):
    service[1].append((401, "unauthorized", None))
    with pytest.raises(PlumblineError, match="unauthorized"):
        ask(files(tmp_path, [b"good", b"good"]))
    assert service[0] == [2]
