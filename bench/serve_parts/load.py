"""The load generator: a process of its own on its own core.

    python bench/serve_parts/load.py < PLAN          a JSON object; prints what it saw, as JSON

A closed loop of clients asks again as soon as it is answered. An open loop asks at times that are
drawn beforehand, whether or not the server keeps up, and counts latency from the time that was
drawn, not from when the request could be sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import socket
import sys
import time
import urllib.parse
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import aiohttp
import httpx
import numpy as np


@dataclass
class Plan:
    """What to ask for. `images` are base64; `form` sends several a request as a form.

    `sends` is how an image goes: `body`, `form`, or for peers `json` ({"image": base64}),
    `file` (a form field `images`). Answers to the requests of `apart`, by their places, are not
    counted. `keep_answers` keeps each answer with its time and the version that gave it. `bare` is
    for one client of a closed loop that sends bodies: over a socket, without aiohttp, whose own
    work would be counted as the server's.
    """

    url: str
    images: list[str]
    seconds: float
    clients: int = 1
    rate: float | None = None  # requests a second; None: a closed loop
    evenly: bool = False  # spaced, not at random times as independent clients would
    images_per_request: int = 1
    sends: str = "body"
    deadline_seconds: float = 60.0
    warm_up_requests: int = 8
    apart: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    keep_answers: bool = False
    bare: bool = False


class Answer(NamedTuple):
    """When it came, by `time.perf_counter`, and how long after it was asked for, in seconds."""

    moment: float
    seconds: float
    status: int  # 0 is no answer
    version: str  # of the model; of ours alone


@dataclass
class Seen:
    """By status, the latencies in seconds of all its answers; 0 is no answer."""

    seconds: float
    images_per_request: int
    latencies: dict[int, list[float]]
    answers: list[Answer] = field(default_factory=list)  # where they were to be kept

    @property
    def images_per_second(self) -> float:
        """Of answers with status 200."""
        return len(self.latencies.get(200, [])) * self.images_per_request / self.seconds

    def milliseconds(self, share: float) -> float:
        """A quantile of the latency of answers with status 200."""
        return 1e3 * float(np.quantile(self.latencies[200], share))

    @property
    def statuses(self) -> dict[int, int]:
        """How many answers of each status."""
        return {status: len(its) for status, its in sorted(self.latencies.items())}


def request_of(plan: Plan, images: list[bytes]) -> dict[str, Any]:
    """The arguments of a post."""
    if plan.sends == "json":
        body = json.dumps({"image": base64.b64encode(images[0]).decode()}).encode()
        return {"data": body, "headers": {"Content-Type": "application/json"}}
    if plan.sends == "body":
        return {"data": images[0], "headers": {"Content-Type": "image/jpeg", **plan.headers}}
    name = "images" if plan.sends == "file" else "image"
    files = [(name, ("x.jpg", image, "image/jpeg")) for image in images]
    form = httpx.Request("POST", plan.url, files=files)
    headers = {"Content-Type": form.headers["Content-Type"], **plan.headers}
    return {"data": form.read(), "headers": headers}


async def ask_for(plan: Plan, requests: list[dict[str, Any]]) -> Seen:
    """Play the plan."""
    latencies: dict[int, list[float]] = {}
    answers: list[Answer] = []
    supply = itertools.cycle(enumerate(requests))
    timeout = aiohttp.ClientTimeout(total=plan.deadline_seconds)

    async def ask(session: aiohttp.ClientSession, since: float | None = None) -> None:
        since = time.perf_counter() if since is None else since
        status, body = 0, b""
        place, request = next(supply)
        try:
            async with session.post(plan.url, **request) as answer:
                body = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = 0
        now = time.perf_counter()
        if place not in plan.apart:
            latencies.setdefault(status, []).append(now - since)
        if plan.keep_answers:
            version = json.loads(body)["model"]["version"] if status == 200 else ""
            answers.append(Answer(now, now - since, status, version))

    async def ask_again(session: aiohttp.ClientSession, until: float) -> None:
        while time.perf_counter() < until:
            await ask(session)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for _ in range(plan.warm_up_requests):
            await ask(session)
        latencies.clear()
        answers.clear()
        start = time.perf_counter()
        if plan.rate is None:
            until = start + plan.seconds
            await asyncio.gather(*(ask_again(session, until) for _ in range(plan.clients)))
        else:
            count = int(2 * plan.rate * plan.seconds) + 10
            pauses = np.full(count, 1 / plan.rate)
            if not plan.evenly:
                pauses = np.random.default_rng(0).exponential(1 / plan.rate, count)
            due = start + np.cumsum(pauses)
            async with asyncio.TaskGroup() as tasks:
                for moment in due[due < start + plan.seconds]:
                    await asyncio.sleep(max(0, moment - time.perf_counter()))
                    tasks.create_task(ask(session, float(moment)))
        return Seen(time.perf_counter() - start, plan.images_per_request, latencies, answers)


def ask_bare(plan: Plan, bodies: list[bytes]) -> Seen:
    """Play the plan of one client; requests are put together before they are timed."""
    address = urllib.parse.urlsplit(plan.url)
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\n"
        "Content-Length: {}\r\n\r\n"
    )
    supply = itertools.cycle([head.format(len(body)).encode() + body for body in bodies])
    latencies: dict[int, list[float]] = {}
    place = (address.hostname or "", address.port or 80)
    with socket.create_connection(place, plan.deadline_seconds) as connection:
        for _ in range(plan.warm_up_requests):
            ask_once(connection, next(supply))
        start = time.perf_counter()
        until = start + plan.seconds
        while (since := time.perf_counter()) < until:
            status = ask_once(connection, next(supply))
            latencies.setdefault(status, []).append(time.perf_counter() - since)
        return Seen(time.perf_counter() - start, 1, latencies)


def ask_once(connection: socket.socket, request: bytes) -> int:
    """Send a request and read the whole answer; gives its status."""
    connection.sendall(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    if found is None:
        raise SystemExit(f"an answer without a length: {head!r}")
    left = int(found[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(65_536))
    return int(head.split(b" ", 2)[1])


def run(plan: Plan, core: int | None = None) -> Seen:
    """In a process of its own, on its own core: LOAD_CORE where none is named."""
    import subprocess

    from serve_parts.servers import LOAD_CORE, pin

    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(plan)),
        preexec_fn=pin({LOAD_CORE if core is None else core}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    seen["latencies"] = {int(status): its for status, its in seen["latencies"].items()}
    seen["answers"] = [Answer(*its) for its in seen["answers"]]
    return Seen(**seen)


def plan_for(url: str, images: list[bytes], **options: Any) -> Plan:
    """A plan for images that are bytes."""
    return Plan(url, [base64.b64encode(image).decode() for image in images], **options)


def main() -> None:
    """Play the plan on standard input."""
    plan = Plan(**json.load(sys.stdin))
    images = [base64.b64decode(image) for image in plan.images]
    if plan.bare:
        print(json.dumps(asdict(ask_bare(plan, images))))
        return
    several = plan.images_per_request
    groups = [
        [images[(start + place) % len(images)] for place in range(several)]
        for start in range(0, len(images), several)
    ]
    requests = [request_of(plan, group) for group in groups]
    seen = asyncio.run(ask_for(plan, requests))
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
