"""The client: two ways to wait, one behaviour."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import socket
from typing import Any

import pytest

from plumbline import client as client_module
from plumbline.client import AsyncClient, Client, Retries, ServiceError


class Asking:
    """One of the clients: `asking("predict", [b"x"])`; `waits` are the seconds it would sleep."""

    def __init__(self, kind: type, url: str) -> None:
        self.kind, self.url = kind, url
        self.waits: list[float] = []

    def __call__(self, method: str, *given: Any, **options: Any) -> Any:
        settings = {"retries": Retries(count=3, jitter=lambda: 0.5), **options}
        if self.kind is Client:
            with Client(self.url, sleep=self.waits.append, **settings) as client:
                return getattr(client, method)(*given)
        return asyncio.run(self._ask(method, given, settings))

    async def _ask(self, method: str, given: Any, settings: dict[str, Any]) -> Any:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async with AsyncClient(self.url, sleep=sleep, **settings) as client:
            return await getattr(client, method)(*given)


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def asking(request, small_service) -> Asking:
    return Asking(request.param, small_service.url)


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    def methods(kind: type) -> dict[str, Any]:
        return {
            name: inspect.signature(its).parameters
            for name, its in vars(kind).items()
            if inspect.isfunction(its) and not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)
    assert set(methods(Client)) == {"predict", "feedback", "model", "is_ready", "close"}
    made, awaited = (list(inspect.signature(kind).parameters) for kind in (Client, AsyncClient))
    assert made == awaited


def test_images_come_back_in_order_and_a_bad_one_has_its_error(asking, small_service):
    answer = asking("predict", [b"cat", b"bad", b"dog"])
    cat, bad, dog = answer.predictions
    assert [its.labels for its in answer.predictions] == [("cat",), (), ("dog",)]
    assert (cat.probabilities["cat"], cat.out_of_domain.score) == (0.75, 1.5)
    assert (bad.id, bad.error) == (None, ("undecodable", "broken"))
    assert dog.prediction_set is None
    # The service said more of its model than this client knows.
    assert (answer.model.name, answer.model.version, answer.model.stage) == ("m", "1", "champion")


def test_one_image_needs_no_list(asking, small_service):
    assert asking("predict", b"cat").predictions[0].labels == ("cat",)
    assert small_service.requests == [[b"cat"]]


def test_feedback_model_and_readiness_go_to_their_paths(asking, small_service):
    asking("feedback", "an-id", ("cat", "dog"))
    assert asking("model")["version"] == "1"
    assert asking("is_ready") is True
    assert small_service.heard == [
        ("POST", "/v1/feedback", {"id": "an-id", "labels": ["cat", "dog"]}),
        ("GET", "/v1/model", None),
        ("GET", "/readyz", None),
    ]


def test_a_key_is_sent_as_bearer_and_none_is_not(asking, small_service):
    asking("model", api_key="secret")
    asking("model")
    assert small_service.keys == ["Bearer secret", None]


@pytest.mark.parametrize(("status", "code"), [(429, "overloaded"), (503, "unavailable")])
def test_a_request_turned_away_is_sent_again_after_growing_waits(
    asking, small_service, status, code
):
    small_service.refusals += [(status, code, None)] * 3
    assert asking("predict", [b"cat"]).predictions[0].labels == ("cat",)
    assert asking.waits == [0.25, 0.5, 1.0]
    assert small_service.requests == [[b"cat"]] * 4


def test_retry_after_is_waited_for_up_to_a_cap_with_the_jitter_on_top(asking, small_service):
    small_service.refusals += [
        (429, "overloaded", "7"),
        (503, "unavailable", "3600"),
        (429, "overloaded", "Wed, 21 Oct 2026 07:28:00 GMT"),
    ]
    asking("predict", [b"cat"])
    assert asking.waits == [7 + 0.25, 30 + 0.5, 1.0]


def test_after_the_last_retry_the_error_names_status_code_and_message(asking, small_service):
    small_service.refusals += [(429, "overloaded", "3600")] * 100
    with pytest.raises(ServiceError, match=r"^overloaded \(429\): said the service$") as raised:
        asking("predict", [b"cat"])
    error = raised.value
    assert (error.status, error.code, error.message) == (429, "overloaded", "said the service")
    assert error.retry_after_seconds == 3600
    assert len(small_service.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 500, 502, 504])
def test_no_other_status_is_tried_again(asking, small_service, status):
    small_service.refusals += [(status, "code", "1")] * 2
    with pytest.raises(ServiceError, match=rf"^code \({status}\)"):
        asking("predict", [b"cat"])
    assert (asking.waits, len(small_service.requests)) == ([], 1)


def test_without_retries_a_refusal_is_final(asking, small_service):
    small_service.refusals += [(503, "unavailable", "1")]
    with pytest.raises(ServiceError, match="unavailable"):
        asking("predict", [b"cat"], retries=Retries(count=0))
    assert asking.waits == []


def test_readiness_is_asked_once(asking, small_service):
    small_service.refusals += [(503, "unavailable", "1")]
    assert asking("is_ready") is False
    assert asking.waits == []


def test_a_service_that_is_not_there_is_one_error_at_once(asking):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        asking.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceError, match=f"^unreachable: {asking.url}") as raised:
            asking("predict", [b"cat"])
        assert asking("is_ready") is False
    assert (raised.value.status, asking.waits) == (None, [])


def test_an_answer_that_takes_too_long_is_unreachable(asking, small_service):
    small_service.hold_at = 0
    with pytest.raises(ServiceError, match=r"^unreachable: .*(Timeout|timed out)"):
        asking("predict", [b"cat"], timeout_seconds=0.05)
    small_service.release.set()


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b'{"predictions": []}', b'{"predictions": 1}'])
def test_what_does_not_answer_like_plumbline_is_told(asking, small_service, raw):
    small_service.raw = raw
    with pytest.raises(ServiceError, match=r"\(200\): .* is no Plumbline service"):
        asking("predict", [b"cat"])


def test_a_proxy_that_turns_requests_away_is_tried_again(asking, small_service):
    small_service.raw = b"<html>busy</html>"
    small_service.refusals += [(503, "", None)] * 100
    with pytest.raises(ServiceError, match=r"^unreachable \(503\)"):
        asking("predict", [b"cat"])
    assert len(asking.waits) == 3


@pytest.mark.parametrize(
    ("status", "code"), [(413, "too_large"), (401, "unauthorized"), (502, "unreachable")]
)
def test_what_a_proxy_refuses_is_told_as_a_proxys(asking, small_service, status, code):
    small_service.raw = b"<html>nginx</html>"
    small_service.refusals += [(status, "", None)] * 100
    with pytest.raises(ServiceError, match="a proxy before it") as refusal:
        asking("predict", [b"cat"])
    assert (refusal.value.code, refusal.value.status) == (code, status)


@pytest.mark.parametrize("lacks", ["out_of_domain", "labels", "probabilities"])
def test_a_row_that_lacks_something_is_told(asking, small_service, lacks):
    small_service.lacks = lacks
    with pytest.raises(ServiceError, match="is no Plumbline service"):
        asking("predict", [b"cat"])


def test_a_wrong_url_is_told(asking):
    asking.url = "http://127.0.0.1:port"
    with pytest.raises(ServiceError, match="is no URL"):
        asking("model")


def test_the_example_in_the_docstring_of_retries_is_true():
    done = doctest.testmod(client_module)
    assert (done.failed, done.attempted) == (0, 4)


def test_waits_have_full_jitter_and_never_leave_their_limits():
    low, high = Retries(count=5_000, jitter=lambda: 0.0), Retries(count=5_000, jitter=lambda: 1.0)
    assert [high.wait_seconds(tried, 429) for tried in (0, 1, 5, 6, 4_999)] == [0.5, 1, 16, 30, 30]
    assert {low.wait_seconds(tried, 503) for tried in range(5_000)} == {0.0}
    waits = {Retries().wait_seconds(3, 429) for _ in range(50)}
    assert len(waits) > 40
    assert all(0 <= wait <= 4 for wait in waits)


def test_many_requests_of_one_async_client_are_in_flight_together(small_service):
    small_service.hold_at = 0

    async def ask() -> list[Any]:
        async with AsyncClient(small_service.url) as client:
            first = asyncio.create_task(client.predict(b"first"))
            await asyncio.to_thread(small_service.held.wait, 240)
            second = await client.predict(b"second")  # while the first one waits
            small_service.release.set()
            return [await first, second]

    assert [its.predictions[0].labels[0] for its in asyncio.run(ask())] == ["first", "second"]
