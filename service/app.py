"""The BentoML service: BentoML packages it and runs its workers; requests go straight to our door.

BentoML's own application, with its input types, dispatcher and middleware, is not made at all;
`docs/service.md` tells what was measured of them. Its client, its schema and its page work: the
door calls the API method below.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import bentoml
from _bentoml_sdk.service import Service
from starlette.types import ASGIApp

from model.errors import PlumblineError
from model.logs import configure_logging
from model.settings import read_settings
from service.errors import unavailable
from service.native import CLASSIFY_ROUTE, Judge, NativeApi, Predictions, decode_base64
from service.settings import ServiceSettings
from service.start import Start
from service.without_pandas import keep_pandas_out

SETTINGS = read_settings(ServiceSettings)


class DoorService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose ASGI application is our own."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that a worker process runs; it starts and stops with its lifespan."""
        keep_pandas_out()
        # Imported here: the process that only starts the workers needs none of it.
        from service.protocol import put_in_force
        from service.worker import Worker

        configure_logging(SETTINGS.log_format)
        try:
            native = NativeApi(self, limit_images=SETTINGS.limit_parts)
            worker = Worker(SETTINGS, native)
        except PlumblineError as error:  # an unreachable state database, say
            start = Start.of_this_worker()
            if start is None:
                raise
            start.refuse(str(error))
            raise SystemExit(1) from error
        put_in_force(
            SETTINGS.body_timeout_seconds, worker.early_refusal, access_log=SETTINGS.access_log
        )
        return worker.app


async def _nobody(images: Any) -> Any:
    raise unavailable("no door is open: start the service, and ask it over HTTP")


class Plumbline:
    """Classifies images, and says of each how foreign it is to the model."""

    def __init__(self, judge: Judge = _nobody) -> None:
        """`judge` is the way of one request to the model: made for each."""
        self._judge = judge

    @bentoml.api(route=CLASSIFY_ROUTE)  # type: ignore[untyped-decorator]
    async def classify(self, images: list[str]) -> Predictions:
        """Classify images: each a JPEG, PNG or WebP file as base64."""
        # In a thread: they may have many megabytes.
        decoded = await asyncio.to_thread(decode_base64, images)
        return cast(Predictions, await self._judge(decoded))


service = bentoml.service(
    name="plumbline",
    service_class=DoorService,
    workers=SETTINGS.workers or "cpu_count",
)(Plumbline)
