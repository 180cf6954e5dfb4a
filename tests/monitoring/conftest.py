"""A registered version whose streams are drawn at random, and records of it in production."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from model.bundle import (
    CONFORMAL_SETS,
    DISCREPANCY,
    OUTLIER,
    REFERENCE,
    REPORT,
    TRUTH,
    SetsSummary,
    save_arrays,
)
from model.conformal_sets import ConformalSets
from model.decision import Calibration, Thresholds, probabilities, softmax
from model.settings import ModelSettings
from model.store import ModelStore
from monitoring.discrepancy import write_discrepancy
from monitoring.evidence import STREAMS
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.records import Record, write_records
from monitoring.samples import Sample
from monitoring.sampling import usual_sampler
from monitoring.truth import truth_arrays

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
    `discrepancy` are the arrays that it keeps of that name, `True` for its own, None as older ones.
    """

    def add(
        calibration_images: int = 500,
        *,
        mistakes: bool = True,
        temperature: float = 1.5,
        discrepancy: dict[str, np.ndarray] | bool | None = None,
    ) -> str:
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
            save_arrays(directory / OUTLIER, arrays)
            reference = draw_records("calibration", calibration_images, seed=99)
            write_records(Path(directory / REFERENCE), reference)
            if discrepancy is True:
                write_discrepancy(directory, usual_sampler())
            elif discrepancy:
                save_arrays(directory / DISCREPANCY, discrepancy)
            if mistakes:
                wrong = np.random.default_rng(8).random(calibration_images) < 0.1
                given = np.array([CLASSES.index(its.labels[0]) for its in reference])
                targets = np.where(wrong, (given + 1) % len(CLASSES), given)
                save_arrays(directory / TRUTH, truth_arrays(targets))
            calibration = Calibration(method="temperature", temperature=temperature)
            seal(make_manifest(version=version, classes=CLASSES, calibration=calibration))
        return store.promote(f"shapes:{version}").tag

    return add


@dataclass(frozen=True)
class World:
    """Images of three classes whose probabilities are known exactly.

    An image is three numbers of deviation one; that of its class is `SEPARATION` higher.
    """

    logits: np.ndarray  # N x C; softmax gives the probabilities under equal shares
    targets: np.ndarray  # N
    sample: Sample


SEPARATION = 1.7


def draw_world(
    count: int, seed: int, shares=(1 / 3, 1 / 3, 1 / 3), *, brighter: float = 0.0
) -> World:
    """`brighter` moves the brightness of images within classes, which is another for each class."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(3, count, p=shares)
    images = rng.normal(size=(count, 3))
    images[np.arange(count), targets] += SEPARATION
    logits = (images * SEPARATION).astype(np.float32)
    chances = softmax(logits).astype(np.float64)
    numbers = {
        "outlier_score": rng.normal(size=count) + 0.2 * targets,
        "confidence": chances.max(axis=1),
        "brightness": rng.normal(0.4, 0.1, count) + 0.1 * targets + brighter,
        "sharpness": rng.gamma(2.0, 0.05, count),
    }
    given = chances == chances.max(axis=1, keepdims=True)
    sample = Sample(chances, given, numbers, images, rng.random(count) < 0.01, targets)
    return World(logits, targets, sample)


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    """`world(count, seed, shares=..., brighter=...)`."""
    return draw_world


@pytest.fixture
def of_world(world, draw):
    """`of_world(tag, count, seed, shares)`: of a world; gives them with their classes.

    Images that the model is less sure of than `threshold` are answered as none of the classes.
    """

    def make(tag: str, count: int, seed: int, shares=(1 / 3, 1 / 3, 1 / 3), *, threshold=0.0):
        its = world(count, seed, shares)
        sample = its.sample
        p_values = np.random.default_rng(seed).random(count)
        made = [
            replace(
                record,
                logits=its.logits[row],
                labels=(
                    [CLASSES[int(its.logits[row].argmax())]]
                    if sample.chances[row].max() >= threshold
                    else []
                ),
                confidence=float(sample.chances[row].max()),
                brightness=float(sample.numbers["brightness"][row]),
                sharpness=float(sample.numbers["sharpness"][row]),
                outlier_score=float(sample.numbers["outlier_score"][row]),
                p_value=float(p_values[row]),
                flagged=bool(p_values[row] <= 0.01),
            )
            for row, record in enumerate(draw(tag, count, seed))
        ]
        return made, its.targets

    return make


@pytest.fixture
def champion(store, make_manifest, fill_bundle, of_world):
    """`champion(truth=True)`: a bundle whose calibration split is of a world.

    With a `threshold` it answers none of the classes where it is less sure.
    """

    def make(*, truth: bool = True, threshold: float | None = None):
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            made, targets = of_world("calibration", 3_000, 99, threshold=threshold or 0.0)
            arrays = {
                f"edges.{name}": np.linspace(-3, 3, 31, dtype=np.float32)
                for name in STREAMS
                if name != "predicted_class"
            }
            arrays["edges.confidence"] = np.linspace(0.35, 0.99, 31, dtype=np.float32)
            arrays["edges.brightness"] = np.linspace(0.2, 0.9, 31, dtype=np.float32)
            arrays["edges.sharpness"] = np.linspace(0.01, 0.4, 31, dtype=np.float32)
            arrays["calibration"] = np.sort([its.outlier_score for its in made]).astype(np.float32)
            save_arrays(directory / OUTLIER, arrays)
            write_records(Path(directory / REFERENCE), made)
            (directory / REPORT).write_text("<html><main>the card</main></html>")
            as_it_is = Calibration(method="temperature", temperature=1.0)
            chances = probabilities(np.stack([its.logits for its in made]), as_it_is, "single")
            sets = ConformalSets.fit(chances, targets, "single")
            save_arrays(directory / CONFORMAL_SETS, sets.to_arrays())
            if truth:
                save_arrays(directory / TRUTH, truth_arrays(targets))
            seal(
                make_manifest(
                    version=version,
                    classes=CLASSES,
                    calibration=as_it_is,
                    thresholds=Thresholds(objective="most probable class", value=threshold),
                    prediction_sets=SetsSummary(
                        calibration_images=3_000,
                        highest_coverage=0.999,
                        promise="a promise",
                        statement="a statement",
                        measured_on="test",
                    ),
                )
            )
        return store.load(store.promote(f"shapes:{version}"))

    return make


@pytest.fixture
def store_on_postgresql(tmp_path, postgresql):
    """In sessions far from UTC."""
    url = postgresql.new_database(timezone="Asia/Kolkata")
    store = ModelStore(ModelSettings(home=tmp_path / "home", state_url=url))
    yield store
    store.state.dispose()
    gc.collect()
