"""What answers behind the peers: ours, or as tutorials have it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

BATCH = 8


class Ours:
    """The same decoding and predictor as ours."""

    def __init__(self, home: Path) -> None:
        from serve_parts.payloads import PHOTOGRAPHS
        from serve_parts.raw import load_predictor

        self.predictor = load_predictor(home, PHOTOGRAPHS)
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
    """As tutorials have it: torch on the CPU, Pillow and torchvision's transforms."""

    def __init__(self, home: Path) -> None:
        import torch
        from torchvision import transforms

        from model.network import create_network, load_weights
        from model.settings import ModelSettings
        from model.store import ModelStore
        from serve_parts.payloads import PHOTOGRAPHS

        store = ModelStore(ModelSettings(home=home))
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


def model_of(kind: str, home: str) -> Ours | Torch:
    """By the name of the peer: those that end in -torch are as tutorials have them."""
    return Torch(Path(home)) if kind.endswith("-torch") else Ours(Path(home))
