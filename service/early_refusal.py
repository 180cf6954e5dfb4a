"""Refusals at the end of a request's head, while the service is full.

Overload is when the cost of a refusal counts: at ten times the load there are more than ten for
every image that is answered, on the core that computes. So of such a request there is nothing but
its head: no task, no body, no answer that goes through ASGI.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from service import metrics
from service.clients import Clients
from service.errors import RequestError
from service.lifecycle import Lifecycle
from service.native import CLASSIFY_ROUTE
from service.occupancy import Occupancy
from service.rollout import Rollout

_WITH_IMAGES = {route.encode(): route for route in ("/v1/predict", CLASSIFY_ROUTE)}


class EarlyRefusal:
    """Tells of a head why its request is refused, as the usual way would.

    What comes before that, such as a key that is none, is left to the usual way.
    """

    def __init__(
        self, *, clients: Clients, rollout: Rollout, lifecycle: Lifecycle, occupancy: Occupancy
    ) -> None:
        self._clients = clients
        self._rollout = rollout
        self._lifecycle = lifecycle
        self._occupancy = occupancy

    def __call__(
        self,
        method: bytes,
        url: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        address: tuple[str, int] | None,
    ) -> RequestError | None:
        """The refusal, counted; None where the request goes the usual way.

        Takes method and URL as they were sent, lower-case names of headers, host and port.
        """
        if self._occupancy.is_roomy or method != b"POST":
            return None
        route = _WITH_IMAGES.get(url.partition(b"?")[0])
        if route is None or self._lifecycle.is_leaving or self._rollout.champion is None:
            return None
        request = Request({"type": "http", "headers": headers, "client": address})
        try:
            client = self._clients.admit(request, "predict")
        except RequestError:
            return None
        refusal = self._occupancy.refusal(client)
        if refusal is not None:
            if refusal.shed is not None:
                metrics.SHED[refusal.shed].inc()
            metrics.REQUEST[route, refusal.status].inc()
        return refusal
