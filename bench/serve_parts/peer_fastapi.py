"""FastAPI without batches: a plain function, which it runs in its thread pool.

python -m serve_parts.peer_fastapi KIND HOME PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from serve_parts.peer_models import model_of


def main() -> None:
    """Serve."""
    app, model = FastAPI(), model_of(sys.argv[1], sys.argv[2])

    def predict(images: UploadFile) -> dict[str, Any]:
        return model.predict([model.decode(images.file.read())])[0]

    # The annotations are strings here; FastAPI needs the types.
    predict.__annotations__ = {"images": UploadFile, "return": dict[str, Any]}
    app.post("/predict")(predict)
    app.get("/health")(lambda: {"status": "ok"})
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
