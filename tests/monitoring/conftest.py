"""A registered version whose streams are drawn at random, and records of it in production."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from model.bundle import MISTAKES, OUTLIER, REFERENCE, save_arrays
from model.store import ModelStore
from monitoring.evidence import STREAMS
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.records import Record, write_records

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
CLASSES = ("circle", "square", "star")

DrawRecords = Callable[..., list[Record]]


def draw_records(tag: str, count: int, seed: int = 0, *, darker: float = 0.0) -> list[Record]:
    """Records of images that are drawn independently; `darker` lowers their brightness."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        logits = rng.normal(size=3).astype(np.float32)
        p_value = float(rng.random())
        found.append(
            Record(
                id=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                time=START + timedelta(seconds=1000 * seed + number),
                model=tag,
                stage="champion",
                client="anna",
                image_sha256=rng.bytes(32).hex(),
                perceptual_hash=int.from_bytes(rng.bytes(8)),
                bytes=1000,
                width=28,
                height=28,
                format="png",
                brightness=float(rng.normal(0.5, 0.1) - darker),
                contrast=0.2,
                sharpness=float(rng.gamma(2.0, 0.05)),
                logits=logits,
                labels=[CLASSES[int(logits.argmax())]],
                confidence=float(rng.random()),
                outlier_score=float(rng.normal()),
                p_value=p_value,
                flagged=p_value <= 0.01,
                components=rng.normal(size=RECORD_COMPONENTS).astype(np.float32),
            )
        )
    return found


@pytest.fixture(scope="session")
def draw() -> DrawRecords:
    """`draw(tag, count, seed, darker=...)`."""
    return draw_records


@pytest.fixture
def watched(store: ModelStore, make_manifest, fill_bundle) -> Callable[..., str]:
    """`watched(calibration_images)`: registers and promotes a version; gives its tag.

    It is wrong on a tenth of its calibration split; `mistakes` says whether the bundle tells.
    """

    def add(calibration_images: int = 500, *, mistakes: bool = True) -> str:
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            rng = np.random.default_rng(7)
            arrays = {
                f"edges.{name}": np.sort(rng.normal(size=31).astype(np.float32))
                for name in STREAMS
                if name != "predicted_class"
            }
            arrays["edges.brightness"] = np.linspace(0.2, 0.8, 31, dtype=np.float32)
            arrays["edges.confidence"] = np.linspace(0.03, 0.97, 31, dtype=np.float32)
            arrays["edges.sharpness"] = np.linspace(0.01, 0.4, 31, dtype=np.float32)
            if mistakes:
                wrong = np.random.default_rng(8).random(calibration_images) < 0.1
                arrays[MISTAKES] = wrong.astype(np.int8)
            save_arrays(directory / OUTLIER, arrays)
            reference = draw_records("calibration", calibration_images, seed=99)
            write_records(Path(directory / REFERENCE), reference)
            seal(make_manifest(version=version, classes=CLASSES))
        return store.promote(f"shapes:{version}").tag

    return add
