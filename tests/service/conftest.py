"""A door over a real connection, with a machine that tests hold up in the place of the network."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from prometheus_client import REGISTRY
from starlette.applications import Starlette

from model.bundle import Manifest
from model.logs import JsonLines
from service import metrics
from service.admission import Admission
from service.batcher import Batcher
from service.clients import Clients
from service.http import Door
from service.predictor import Judgement
from service.protocol import put_in_force
from service.settings import ServiceSettings
from tests.service.waiting import until


class Machine:
    """Judges every image as a star; tells images apart by their red. Can be held up, or fail."""

    def __init__(self, manifest: Manifest) -> None:
        self.bundle = SimpleNamespace(manifest=manifest)
        self.engine = SimpleNamespace(name="openvino", precision="f32")
        self.input, self.classes, self.stage = manifest.input, manifest.classes, "champion"
        self.batch_images = 8
        self.seen: list[int] = []
        self.entered = 0
        self.open = threading.Event()
        self.open.set()
        self.labels, self.flagged = ["star"], False
        self.fault: Exception | None = None
        self.cannot_judge: Exception | None = None
        self.odd: dict[int, dict[str, Any]] = {}  # what differs in judgements, by red

    def predict(self, images: list[np.ndarray]) -> list[Judgement]:
        self.entered += 1
        assert self.open.wait(30)
        if self.cannot_judge is not None:
            raise self.cannot_judge
        self.seen += [int(image[0, 0, 0]) for image in images]
        usual = Judgement(
            labels=self.labels,
            probabilities=np.array([0.1, 0.15, 0.75], np.float32),
            confidence=0.75,
            score=1.0,
            p_value=0.004 if self.flagged else 0.4,
            flagged=self.flagged,
            logits=np.zeros(3, np.float32),
            components=np.zeros(2, np.float32),
        )
        return [replace(usual, **self.odd.get(int(image[0, 0, 0]), {})) for image in images]

    def least_probability(self, coverage: float) -> float:
        if self.fault is not None:
            raise self.fault
        return 1 - coverage


class OpenDoor:
    """A door that listens, with its parts; `url` is where."""

    keep_alive_seconds = 5.0

    def __init__(self, settings: ServiceSettings, machine: Machine) -> None:
        self.machine = machine
        self.rollout = SimpleNamespace(champion=machine, classes=frozenset(machine.classes))
        self._admission = Admission(settings, on_drop=metrics.drop)
        self.batcher: Batcher[Any, Any] = Batcher(
            lambda key, images: key.predict(images),
            batch_images=lambda key: settings.batch_images or 8,
            on_drop=metrics.drop,
        )
        self.door = Door(
            settings,
            clients=Clients(settings),
            rollout=self.rollout,
            admission=self._admission,
            batcher=self.batcher,
            records=None,
            images=None,
            feedback=None,
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = self.door.app(self._lifespan)
        put_in_force(
            settings.body_timeout_seconds,
            self.door.early_refusal,
            access_log=settings.access_log,
        )
        config = uvicorn.Config(
            self.app,
            log_config=None,
            server_header=False,
            timeout_keep_alive=OpenDoor.keep_alive_seconds,  # type: ignore[arg-type] # part of one
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.batcher.start()
        yield
        await self.batcher.stop()
        self._admission.close()

    def start(self) -> None:
        self._thread.start()
        until(lambda: self._server.started)

    def stop(self) -> None:
        self.machine.open.set()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the door's event loop; gives its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def send(self, body: bytes, *, sent: int | None = None, **headers: str) -> socket.socket:
        """A request over a connection of its own, or the first bytes of its body; unanswered."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        lines = ["POST /v1/predict HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[:sent])
        return connection

    def hold_up(self, image: bytes, **headers: str) -> socket.socket:
        """Keep the machine busy with one image, so that what comes after it queues."""
        self.machine.open.clear()
        before = self.machine.entered
        connection = self.send(image, **headers)
        until(lambda: self.machine.entered > before)
        return connection


OpenTheDoor = Callable[..., Any]


@pytest.fixture
def open_door(make_manifest: Callable[..., Manifest], tmp_path: Path) -> OpenTheDoor:
    """`with open_door(setting=value) as door`."""

    @contextmanager
    def open_(**settings: Any) -> Iterator[OpenDoor]:
        patient = {"limit_deadline_seconds": 60.0, **settings}
        given = ServiceSettings(home=tmp_path / "home", **patient)
        door = OpenDoor(given, Machine(make_manifest()))
        door.start()
        try:
            yield door
        finally:
            door.stop()

    return open_


@pytest.fixture(scope="session")
def red() -> Callable[[int], bytes]:
    """`red(7)`: a PNG whose every pixel has that red, by which the machine knows it."""

    def encode(value: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (value, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


class Counts:
    """What the samples of the metrics have grown by since this was made."""

    def __init__(self) -> None:
        self._before = _samples()

    def __call__(self, name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        return _samples().get(key, 0.0) - self._before.get(key, 0.0)


def _samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
    }


@pytest.fixture
def counts() -> Counts:
    """`counts("plumbline_images_total", outcome="ok")`: how much it has grown in this test."""
    return Counts()


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What Plumbline logs meanwhile, as JSON objects."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("plumbline")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)
