"""Peers on the same core, in turns with ours: images per second at full load, one image a request.

    .venv/bin/python bench/serve.py peers [--payload 256] [--peers litserve ...] [--rounds N]

Given our decoding, engine, decision and outlier score: LitServe with its batches, FastAPI without,
BentoML's adaptive batching. As tutorials have it, with torch on the CPU: LitServe and FastAPI. The
peers live in an environment of their own, var/peers-env, made the first time. Asked for: ours at
least 1.1 times LitServe, 1.7 times FastAPI, 1.15 times BentoML's; 2 times LitServe with torch.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peer_environment import peer_python

from serve_parts import load
from serve_parts.figures import Figures, parser_of
from serve_parts.pace import CLIENTS
from serve_parts.payloads import PAYLOADS, PHOTOGRAPHS, images, train_once
from serve_parts.servers import SERVER_CORE, Server, free_port, plumbline, started

ENVIRONMENT = Path("var/peers-env")
REQUIREMENTS = ("litserve==0.2.19", "fastapi>=0.116", "python-multipart", "uvicorn")
LEAST = {"litserve": 1.1, "fastapi": 1.7, "bentoml": 1.15, "litserve-torch": 2.0}
PEERS = (*LEAST, "fastapi-torch")
SENDS = {"litserve": "json", "fastapi": "file", "bentoml": "file"}
OURS = "plumbline"
BENTOML = {"bentoml": "Batched", "bentoml-safe": "Safe"}
HERE = Path(__file__).parent


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--payload", choices=PAYLOADS[:-1], default="256")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    home = options.home.absolute()
    train_once(home, PHOTOGRAPHS)
    python = peer_python(ENVIRONMENT, *REQUIREMENTS).absolute()
    figures = Figures(
        "peers", options, others=versions_of(python, "litserve", "fastapi", "uvicorn")
    )
    found: dict[str, list[float]] = {}
    lost: dict[str, int] = {}
    for _ in range(options.rounds):
        for name in (OURS, *options.peers):
            with ExitStack() as stack:
                server = stack.enter_context(
                    plumbline(home, PHOTOGRAPHS) if name == OURS else peer(python, name, home)
                )
                plan = load.plan_for(
                    server.url + ("/v1/predict" if name == OURS else "/predict"),
                    images(options.payload),
                    seconds=options.seconds,
                    clients=CLIENTS[1],
                    sends="body" if name == OURS else SENDS[name.partition("-")[0]],
                )
                seen = load.run(plan)
            found.setdefault(name, []).append(seen.images_per_second)
            lost[name] = lost.get(name, 0) + sum(seen.statuses.values()) - seen.statuses[200]
    for name, paces in found.items():
        figures.add(f"{name}, images/s", paces)
        if lost[name]:
            figures.add(f"{name}, requests without an answer", [lost[name]], ".0f")
    for name in options.peers:
        ratios = [one / other for one, other in zip(found[OURS], found[name], strict=True)]
        figures.add(f"ours / {name}", ratios, ".2f", least=LEAST.get(name))
    figures.end()


def versions_of(python: Path, *libraries: str) -> dict[str, str]:
    """In the peers' environment."""
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    said = subprocess.run([python, "-c", ask, *libraries], stdout=subprocess.PIPE, check=True)
    return dict(zip(libraries, said.stdout.decode().split(), strict=True))


@contextmanager
def peer(python: Path, name: str, home: Path) -> Iterator[Server]:
    """A peer's server, on our server's core."""
    port = free_port()
    environment = {
        "PEER_HOME": str(home),
        "PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}",
        "PYTHONWARNINGS": "ignore",
    }
    module = f"serve_parts.peer_{name.partition('-')[0]}"
    command: list[str | Path] = [python, "-m", module, name, home, str(port)]
    path = "/health"
    if name in BENTOML:
        service = f"serve_parts.peer_bento:{BENTOML[name]}"
        command = [sys.executable, "-m", "bentoml", "serve", service]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        path = "/readyz"
    with started(command, port, path, environment, cores={SERVER_CORE}) as server:
        yield server
