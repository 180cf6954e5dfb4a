"""BentoML's own batching, as its documentation shows it, with our decoding and predictor.

bentoml serve serve_parts.peer_bento:Batched          PEER_HOME names the home folder
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

BATCH = 8


@bentoml.service(workers=1, traffic={"timeout": 60})
class Batched:
    """One image a request, gathered by the dispatcher."""

    def __init__(self) -> None:
        from serve_parts.payloads import PHOTOGRAPHS
        from serve_parts.raw import load_predictor

        self.predictor = load_predictor(Path(os.environ["PEER_HOME"]), PHOTOGRAPHS)
        self.predictor.warm_up(BATCH)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        """The answers, in order."""
        from model.images import prepare

        predictor = self.predictor
        prepared = [prepare(path.read_bytes(), predictor.input) for path in images]
        return [judged.as_answer(predictor.classes) for judged in predictor.predict(prepared)]
