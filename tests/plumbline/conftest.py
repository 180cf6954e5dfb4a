"""A small service that speaks the contract over real HTTP, refuses when told, and writes down."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from python_multipart.multipart import parse_options_header

from service.admission import split_multipart

BAD = b"bad"  # an image that starts so cannot be decoded


@dataclass
class SmallService:
    """What it says, and what it was sent."""

    url: str = ""
    version: str = "1"
    limits: dict[str, int] | None = None
    refusals: list[tuple[int, str, str | None]] = field(default_factory=list)  # with Retry-After
    requests: list[list[bytes]] = field(default_factory=list)  # images of each POST
    heard: list[tuple[str, str, Any]] = field(default_factory=list)  # method, path, JSON or None
    keys: list[str | None] = field(default_factory=list)
    raw: bytes | None = None  # what it answers instead of the contract
    lacks: str | None = None  # which key of a row it leaves out
    change_after: int | None = None  # requests, after which another version answers
    hold_at: int | None = None  # the request, from 0, that waits for `release`
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def images(self) -> list[bytes]:
        """All that were sent."""
        return [image for images in self.requests for image in images]

    def model(self) -> dict[str, Any]:
        described = {"name": "m", "version": self.version, "stage": "champion", "alpha": 0.01}
        return described if self.limits is None else {**described, "limits": self.limits}

    def predict(self, images: list[bytes]) -> tuple[int, dict[str, Any]]:
        rows = [self._row(image) for image in images]
        if all(row["error"] for row in rows):
            return 422, {"error": rows[0]["error"]}
        if self.change_after is not None and len(self.requests) > self.change_after:
            self.version = "2"
        model = {"name": "m", "version": self.version, "stage": "champion", "since": "today"}
        return 200, {"model": model, "predictions": rows}

    def _row(self, image: bytes) -> dict[str, Any]:
        if image.startswith(BAD):
            error = {"code": "undecodable", "message": "broken"}
            return {**_NOTHING, "error": error}
        row = {
            **_NOTHING,
            "id": str(uuid.uuid4()),
            "labels": [image.decode()],
            "probabilities": {image.decode(): 0.75, "other": 0.25},
            "out_of_domain": {"flagged": False, "p_value": 0.5, "score": 1.5},
        }
        return {name: value for name, value in row.items() if name != self.lacks}


_NOTHING: dict[str, Any] = {
    "id": None,
    "labels": [],
    "probabilities": {},
    "out_of_domain": None,
    "error": None,
}


@pytest.fixture
def small_service() -> Iterator[SmallService]:
    """One on a port of its own."""
    its = SmallService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._hear(None)
            self._answer(*self._refused_or(200, its.model()))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/v1/feedback"):
                self._hear(json.loads(body))
                self._answer(*self._refused_or(202, {}))
                return
            self._hear(None)
            _, options = parse_options_header(self.headers["Content-Type"])
            images = split_multipart(body, options[b"boundary"], 64)
            its.requests.append(images)
            if its.hold_at == len(its.requests) - 1:
                its.held.set()
                its.release.wait(240)
            self._answer(*self._refused_or(*its.predict(images)))

        def _hear(self, content: Any) -> None:
            its.heard.append((self.command, self.path, content))
            its.keys.append(self.headers["Authorization"])

        def _refused_or(self, status: int, content: dict[str, Any]) -> tuple[int, Any, str | None]:
            if self.path != "/v1/model" and its.refusals:
                status, code, wait = its.refusals.pop(0)
                return status, {"error": {"code": code, "message": "said the service"}}, wait
            return status, content, None

        def _answer(self, status: int, content: Any, wait: str | None) -> None:
            data = json.dumps(content).encode() if its.raw is None else its.raw
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if wait is not None:
                self.send_header("Retry-After", wait)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *of: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *of: object) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    its.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield its
    its.release.set()
    server.shutdown()
    thread.join()
    server.server_close()
