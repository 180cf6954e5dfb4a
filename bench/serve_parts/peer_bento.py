"""BentoML's own batching with our decoding and predictor; PEER_HOME names the home folder.

bentoml serve serve_parts.peer_bento:Batched     as its documentation shows it
bentoml serve serve_parts.peer_bento:Safe        a bounded door, result or error per image, and a
                                                 wait for more images that is capped
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.marshal.dispatcher import Optimizer

from model.errors import ImageError
from model.images import Pixels, prepare
from serve_parts.payloads import PHOTOGRAPHS
from serve_parts.raw import load_predictor
from service.predictor import Predictor

BATCH = 8
MOST_WAITING = 256  # requests, as our queue holds by default
MOST_WAIT_SECONDS = 0.002


def opened() -> Predictor:
    """The champion, warm."""
    predictor = load_predictor(Path(os.environ["PEER_HOME"]), PHOTOGRAPHS)
    predictor.warm_up(BATCH)
    return predictor


@bentoml.service(workers=1, traffic={"timeout": 60})
class Batched:
    """One image a request, gathered by the dispatcher."""

    def __init__(self) -> None:
        self.predictor = opened()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        """The answers, in order."""
        predictor = self.predictor
        prepared = [prepare(path.read_bytes(), predictor.input) for path in images]
        return [judged.as_answer(predictor.classes) for judged in predictor.predict(prepared)]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": MOST_WAITING})
class Safe:
    """The same made safe, as far as can be without a dispatcher of one's own."""

    def __init__(self) -> None:
        # What it waits for more images is the mean of what requests have waited so far: after a
        # burst that is long.
        Optimizer.wait = property(
            lambda optimizer: min(optimizer.__dict__.get("wait", 0), MOST_WAIT_SECONDS),
            lambda optimizer, seconds: optimizer.__dict__.update(wait=seconds),
        )
        self.predictor = opened()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        """An answer or an error each, in order."""
        predictor = self.predictor
        found = [self._prepared(path) for path in images]
        usable = [its for its in found if not isinstance(its, ImageError)]
        judged = iter(predictor.predict(usable) if usable else [])
        return [
            {"error": its.code}
            if isinstance(its, ImageError)
            else next(judged).as_answer(predictor.classes)
            for its in found
        ]

    def _prepared(self, path: Path) -> Pixels | ImageError:
        try:
            return prepare(path.read_bytes(), self.predictor.input)
        except ImageError as error:
            return error
