"""The BentoML service: BentoML starts, restarts, packages and stops the workers; requests go
straight to our own door.

BentoML's routes, input types, dispatcher and middleware stay out of the way of requests;
`docs/service.md` tells what was measured of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import bentoml
from _bentoml_sdk.service import Service
from starlette.types import ASGIApp, Receive, Scope, Send

from model.settings import read_settings
from service.logs import configure_logging
from service.settings import ServiceSettings

if TYPE_CHECKING:
    from service.worker import Worker

log = logging.getLogger("plumbline.service")

SETTINGS = read_settings(ServiceSettings)


class DoorService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose ASGI application hands every request to our door.

    BentoML's own application gets the lifespan alone, which makes the instance and runs its
    start and stop hooks.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that a worker runs."""
        configure_logging()
        lifecycle: ASGIApp = super().to_asgi(is_main=is_main)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await lifecycle(scope, receive, send)
            elif scope["type"] == "http":
                door = Plumbline.worker.app if Plumbline.worker else _not_started
                await door(scope, receive, send)

        return app


class Plumbline:
    """What BentoML makes in each worker process."""

    worker: Worker | None = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """Put the parts together; loading goes on in the background, `/readyz` tells."""
        # Imported here: the process that starts the workers needs none of it.
        from service.worker import Worker

        Plumbline.worker = Worker(SETTINGS)
        Plumbline.worker.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Finish what is in flight."""
        if Plumbline.worker is not None:
            await Plumbline.worker.stop()
            Plumbline.worker = None


async def _not_started(scope: Scope, receive: Receive, send: Send) -> None:
    from service.errors import unavailable
    from service.http import error_response

    await error_response(unavailable("the service is starting"))(scope, receive, send)


service = bentoml.service(
    name="plumbline",
    service_class=DoorService,
    workers=SETTINGS.workers or "cpu_count",
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    traffic={"timeout": 3600},
)(Plumbline)
