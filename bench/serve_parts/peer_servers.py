"""Peers' servers, each as its documentation shows it.

    python bench/serve_parts/peer_servers.py KIND HOME PORT

litserve, fastapi, bentoml        our decoding, engine, decision and outlier score behind the peer
litserve-torch, fastapi-torch     as its tutorial has it: torch, torchvision's transforms, Pillow

The tutorials' network is the same EfficientNet-Lite0 with the same weights.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

KIND, HOME, PORT = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:3], sys.argv[3:4]
BATCH, TIMEOUT_SECONDS = 8, 0.01


class Ours:
    """The same decoding and predictor as ours."""

    def __init__(self) -> None:
        from serve_parts.payloads import PHOTOGRAPHS
        from serve_parts.raw import load_predictor

        self.predictor = load_predictor(Path(HOME[0]), PHOTOGRAPHS)
        self.predictor.warm_up(BATCH)

    def decode(self, data: bytes) -> Any:
        """The prepared image."""
        from model.images import prepare

        return prepare(data, self.predictor.input)

    def predict(self, images: Any) -> list[dict[str, Any]]:
        """An answer for each."""
        classes = self.predictor.classes
        return [judged.as_answer(classes) for judged in self.predictor.predict(list(images))]


class Torch:
    """As tutorials have it."""

    def __init__(self) -> None:
        import torch
        from torchvision import transforms

        from model.network import create_network, load_weights
        from model.settings import ModelSettings
        from model.store import ModelStore
        from serve_parts.payloads import PHOTOGRAPHS

        store = ModelStore(ModelSettings(home=Path(HOME[0])))
        bundle = store.load(store.champion(PHOTOGRAPHS))
        its = bundle.manifest
        self.torch = torch
        self.network = create_network(its.architecture, len(its.classes), its.input).eval()
        load_weights(self.network, bundle.directory / "network.safetensors")
        self.transform = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])

    def decode(self, data: bytes) -> Any:
        """The prepared image."""
        import numpy as np
        from PIL import Image

        image = self.transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return self.torch.from_numpy(np.array(image))

    def predict(self, images: Any) -> list[dict[str, Any]]:
        """An answer for each."""
        with self.torch.inference_mode():
            logits, _ = self.network(self.torch.stack(list(images)))
            chances = logits.softmax(dim=1)
        return [{"label": int(row.argmax()), "probability": float(row.max())} for row in chances]


def model_of(kind: str) -> Ours | Torch:
    """What answers behind the peer."""
    return Torch() if kind.endswith("-torch") else Ours()


def litserve() -> None:
    """LitServe with its batching: images as base64 in JSON, decoded in the worker."""
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.model = model_of(KIND)

        def decode_request(self, request: dict[str, str]) -> Any:
            return self.model.decode(base64.b64decode(request["image"]))

        def batch(self, inputs: list[Any]) -> list[Any]:
            return inputs

        def predict(self, images: list[Any]) -> list[dict[str, Any]]:
            return self.model.predict(images)

        def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return output

        def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
            return output

    api = Api(max_batch_size=BATCH, batch_timeout=TIMEOUT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(PORT[0]), generate_client_file=False, log_level="warning")


def fastapi() -> None:
    """FastAPI without batches: a plain function, which it runs in its thread pool."""
    import uvicorn
    from fastapi import FastAPI, UploadFile

    app, model = FastAPI(), model_of(KIND)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def predict(images: UploadFile) -> dict[str, Any]:
        return model.predict([model.decode(images.file.read())])[0]

    uvicorn.run(app, host="127.0.0.1", port=int(PORT[0]), log_level="warning", access_log=False)


if __name__ == "__main__":
    sys.path[0:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    {"litserve": litserve, "fastapi": fastapi}[KIND.partition("-")[0]]()
