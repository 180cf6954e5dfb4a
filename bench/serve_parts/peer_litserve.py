"""LitServe with its batching, as its documentation shows it: base64 in JSON, decoded in the worker.

python -m serve_parts.peer_litserve KIND HOME PORT
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

from serve_parts.peer_models import BATCH, model_of

TIMEOUT_SECONDS = 0.01


class Api(litserve.LitAPI):
    """One image a request."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.model = model_of(sys.argv[1], sys.argv[2])

    def decode_request(self, request: dict[str, str]) -> Any:
        """The prepared image."""
        return self.model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are."""
        return inputs

    def predict(self, images: list[Any]) -> list[dict[str, Any]]:
        """An answer for each."""
        return self.model.predict(images)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=TIMEOUT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    port = int(sys.argv[3])
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
