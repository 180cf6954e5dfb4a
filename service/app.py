"""The BentoML service: BentoML packages it and runs its workers; requests go straight to our door.

BentoML's own application, with its routes, input types, dispatcher and middleware, is not made at
all; `docs/service.md` tells what was measured of them.
"""

from __future__ import annotations

from typing import Any

import bentoml
from _bentoml_sdk.service import Service
from starlette.types import ASGIApp

from model.errors import PlumblineError
from model.logs import configure_logging
from model.settings import read_settings
from service.settings import ServiceSettings
from service.start import Start

SETTINGS = read_settings(ServiceSettings)


class DoorService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose ASGI application is our own."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that a worker process runs; it starts and stops with its lifespan."""
        # Imported here: the process that only starts the workers needs none of it.
        from service.worker import Worker

        configure_logging(SETTINGS.log_format)
        try:
            return Worker(SETTINGS).app
        except PlumblineError as error:  # an unreachable state database, say
            start = Start.of_this_worker()
            if start is None:
                raise
            start.refuse(str(error))
            raise SystemExit(1) from error


class Plumbline:
    """What `service` names; BentoML asks for a class."""


service = bentoml.service(
    name="plumbline",
    service_class=DoorService,
    workers=SETTINGS.workers or "cpu_count",
)(Plumbline)
