"""The model as files: manifest, atomic write, verified load. No pickle, no torch.

A bundle is one directory. `manifest.json` names every other file with its SHA-256; loading
checks the schema number, then the hashes, and refuses anything else. A bundle is complete or
absent, also after a power cut: it is written beside its destination, and renamed into place when
all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.decision import Calibration, Task, Thresholds
from model.embedding import PENULTIMATE, EmbeddingPart
from model.errors import BundleError
from model.images import InputSpec

SCHEMA = 2
# 1 lacks what has a default in the manifest of today, and is read as that.
OLDER_SCHEMAS = (1,)
MANIFEST = "manifest.json"
NETWORK = "network.safetensors"
ONNX = "network.onnx"
OPENVINO = "network.xml"
INT8 = "network.int8.xml"  # and its .bin: there where it was asked for and passed its gate
OUTLIER = "outlier.safetensors"
CONFORMAL_SETS = "conformal.safetensors"  # bundles made before there were sets lack it
REFERENCE = "reference.parquet"
TRUTH = "truth.safetensors"  # true labels of its rows; bundles made before there were any lack it
DISCREPANCY = "discrepancy.safetensors"  # made from its rows; bundles made before it lack it
REPORT = "report.html"
BENTOML_DESCRIPTION = "model.yaml"
REQUIRED_FILES = (NETWORK, ONNX, OPENVINO, "network.bin", OUTLIER, REFERENCE, REPORT)

_MANIFEST_LIMIT_BYTES = 16 * 2**20
_PARTIAL = ".partial"
_LEFT_OVER_SECONDS = 24 * 3600


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Strict):
    """One measured figure with its 95 % confidence interval; None where it is not defined.

    `count` is the number of images that it was measured on, of the manifest's `metrics_split`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None


class EngineGate(_Strict):
    """What one engine was seen to do on the validation split, against torch in float32.

    `flagged_share` is the realised share of validation images flagged as out of domain.
    `accuracy_lost` is torch's accuracy minus the engine's on the same images, with its paired
    interval; `ece` is null where no image has a label. `images_per_second` was measured when the
    bundle was packed: one thread, batches of 8. `reason` says why an engine is refused. `measured`
    holds label_agreement, accuracy, ece and flagged_share again, with intervals and counts. Bundles
    made before there were these six lack them, and `images` is then 0.
    """

    precision: str
    label_agreement: float
    largest_probability_difference: float
    accuracy: float
    flagged_share: float
    passed: bool
    images: int = 0
    accuracy_lost: Metric | None = None
    ece: float | None = None
    images_per_second: float | None = None
    reason: str = ""
    measured: dict[str, Metric] = Field(default_factory=dict)


def _without_interval(value: Any) -> Any:
    return {"value": value} if isinstance(value, float | int) else value


# In bundles made before there were intervals a number stands in its place.
MetricOrNumber = Annotated[Metric, BeforeValidator(_without_interval)]


class ForeignMeasure(_Strict):
    """How images of one foreign kind were told from validation images.

    `auroc` with the interval of Hanley and McNeil 1982, `flagged` the share flagged at the
    summary's alpha, with Wilson's; their `count` is the number of foreign images.
    """

    auroc: Metric
    flagged: Metric


class OutlierSummary(_Strict):
    """What the outlier flag of this model can promise, and how well it was seen to work.

    `smallest_alpha` is 1 / (n + 1) for n calibration images: below it nothing is ever flagged.
    `self_check` holds the AUROC per kind of foreign images, `foreign` the same with intervals and
    counts (bundles made before there were any lack it), `embedding` and `detector` what the
    score reads and how, `candidates` the AUROC that each pair of those reached, by kind, and
    `baselines` that of scores which were never to be chosen. Of every foreign kind one half of the
    images chose, on which the latter two are measured, and `self_check` and `foreign` are of the
    other half (in bundles made before that, all of these are of the same images).
    """

    alpha: float = Field(gt=0, lt=1)
    calibration_images: int
    smallest_alpha: float
    self_check: dict[str, float]
    foreign: dict[str, ForeignMeasure] = Field(default_factory=dict)
    self_check_passed: bool
    statement: str
    embedding: str = PENULTIMATE
    detector: str = "KNN + ViM"
    candidates: dict[str, dict[str, MetricOrNumber]] = Field(default_factory=dict)
    baselines: dict[str, dict[str, MetricOrNumber]] = Field(default_factory=dict)


class SetsMeasure(_Strict):
    """What prediction sets were seen to do at one coverage.

    `realised` is the mean share of an image's true labels that its set holds, `mean_size` the mean
    number of classes in a set, over the `images` with a label. `size_one` (single label alone) and
    `empty` are the shares of sets of one class and of none.
    """

    coverage: float
    images: int
    realised: Metric
    mean_size: Metric
    size_one: Metric | None = None
    empty: Metric


class SetsSummary(_Strict):
    """Which coverages can be asked for, and what they were seen to give on `measured_on`.

    `highest_coverage` is n / (n + 1) for n calibration images with a label; any lower one can be
    asked for.
    """

    calibration_images: int
    highest_coverage: float
    promise: str
    statement: str
    measured_on: Literal["test", "validation"]
    measured: tuple[SetsMeasure, ...] = ()


class DataSummary(_Strict):
    """Where the training images came from; `fingerprint` changes when any of them does.

    `base_fingerprint` is that of the source without images added from production, None where it
    is not known.
    """

    source: str
    fingerprint: str
    base_fingerprint: str | None = None
    images: dict[str, int]
    notes: tuple[str, ...] = ()


class Manifest(_Strict):
    """Everything about a model version that is not an array.

    `engines` is by engine and precision, such as `openvino-bf16`; in schema 1 by engine alone.
    `engines_left_out` holds why others could not be measured at all. `decided_by` is the one whose
    outputs everything that decides was fitted to, and measured with; it is served by default.
    `metrics_split` is calibration where a version was made without training: adjusted to another
    class mix (its images are then weighted by class), or recalibrated on images of production.
    Such a version keeps `threshold_evidence` with the tag it was measured of (`measured_of`); its
    self-check and `engines` are of that version too, as `outlier.statement` says.
    """

    schema_number: int = SCHEMA
    name: str
    version: str
    created: datetime
    task: Task
    none_allowed: bool
    classes: tuple[str, ...] = Field(min_length=2)
    architecture: str
    embedding_size: int
    embedding_parts: tuple[EmbeddingPart, ...] = ()  # none: the penultimate layer alone
    input: InputSpec
    calibration: Calibration
    thresholds: Thresholds
    threshold_evidence: dict[str, Any] = Field(default_factory=dict)
    outlier: OutlierSummary
    engines: dict[str, EngineGate]
    engines_left_out: dict[str, str] = Field(default_factory=dict)
    decided_by: str | None = None
    metrics: dict[str, Metric]
    metrics_split: Literal["test", "validation", "calibration"] = "test"
    prediction_sets: SetsSummary | None = None
    data: DataSummary
    intended_use: str = ""
    training: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The BentoML tag, `name:version`."""
        return f"{self.name}:{self.version}"

    def gates_of(self, engine: str) -> list[EngineGate]:
        """The gates of an engine, one for each precision that it was measured in."""
        return [gate for key, gate in self.engines.items() if key.partition("-")[0] == engine]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    directory: Path
    manifest: Manifest
    manifest_sha256: str

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.directory / name

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of one safetensors file of the bundle."""
        return dict(load_file(self.path(name)))


@contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """Give an empty directory to fill; rename it to `directory` when the block ends well.

    Whatever goes wrong, a full disk included, `directory` is then absent and the partial files
    are removed. Raises `BundleError` when `directory` exists.
    """
    if directory.exists():
        raise BundleError(f"{directory} exists already; a bundle is never overwritten")
    made = [folder for folder in directory.parents if not folder.exists()]
    partial = directory.with_name(_partial_name(directory.name))
    try:
        partial.mkdir(parents=True)
        yield partial
        flush_to_disk([partial, *partial.rglob("*")])
        # A folder's name stands in the folder above it.
        _move(partial, directory, names_in=directory.parents[: len(made) + 1])
    except (OSError, SafetensorError) as error:  # the latter where safetensors meets a full disk
        raise BundleError(f"the bundle {directory} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep_partials(folder: Path) -> None:
    """Remove what interrupted writers left in a folder, whole bundles aside.

    A partial bundle is left over when the process that wrote it is gone, or where that cannot be
    told (it was written on another machine) when it is older than a day.
    """
    for partial in folder.glob(f".*{_PARTIAL}"):
        with suppress(OSError):  # another process may be sweeping too
            if _is_left_over(partial):
                shutil.rmtree(partial, ignore_errors=True)


def _partial_name(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.{os.getpid()}@{platform.node()}{_PARTIAL}"


def _is_left_over(partial: Path) -> bool:
    writer, _, machine = partial.name.removesuffix(_PARTIAL).partition("@")
    number = writer.rpartition(".")[2]
    if machine == platform.node() and number.isdecimal() and not _is_running(int(number)):
        return True
    return time.time() - partial.stat().st_mtime > _LEFT_OVER_SECONDS


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or can be none
        return True
    return True


def _move(partial: Path, directory: Path, names_in: Iterable[Path]) -> None:
    partial.rename(directory)
    try:
        flush_to_disk(names_in)
    except BaseException:
        shutil.rmtree(directory)
        raise


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` over the files now in `directory`; return it with their hashes.

    Raises `BundleError` when a file that every bundle needs is missing.
    """
    missing = [name for name in REQUIRED_FILES if not (directory / name).is_file()]
    if missing:
        raise BundleError(f"the bundle {manifest.tag} lacks {', '.join(missing)}")
    hashes = {
        path.relative_to(directory).as_posix(): file_sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    sealed = manifest.model_copy(update={"files": hashes})
    (directory / MANIFEST).write_text(sealed.model_dump_json(indent=1) + "\n")
    return sealed


def load(directory: Path) -> Bundle:
    """Verify the bundle in `directory` and return it.

    Raises `BundleError` that names the file and the reason.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _MANIFEST_LIMIT_BYTES:
            raise BundleError(f"{path} is larger than {_MANIFEST_LIMIT_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{directory} is no model bundle: {error}") from error
    manifest = _parse_manifest(data, path)
    _verify_files(directory, manifest)
    return Bundle(directory, manifest, hashlib.sha256(data).hexdigest())


def _parse_manifest(data: bytes, path: Path) -> Manifest:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    schema = content.get("schema_number") if isinstance(content, dict) else None
    if schema not in (*OLDER_SCHEMAS, SCHEMA):
        is_newer = isinstance(schema, int) and schema > SCHEMA
        raise BundleError(
            f"{path} has schema {schema!r}; this Plumbline reads"
            f" {', '.join(map(str, OLDER_SCHEMAS))} and {SCHEMA}. "
            + (
                "A newer schema needs a newer Plumbline: pip install --upgrade plumbline"
                if is_newer
                else "Make the version anew: plumbline train"
            )
        )
    try:
        return Manifest.model_validate({**content, "schema_number": SCHEMA})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}") from error


def _verify_files(directory: Path, manifest: Manifest) -> None:
    unlisted = set(REQUIRED_FILES) - set(manifest.files)
    if unlisted:
        raise BundleError(f"{directory / MANIFEST} does not list {', '.join(sorted(unlisted))}")
    for name, expected in manifest.files.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError(f"{directory / MANIFEST} names {name!r}, outside the bundle")
        path = directory / name
        if not _is_own_file(path, directory):
            raise BundleError(f"{path} is missing from the bundle {manifest.tag}")
        try:
            found = file_sha256(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}") from error
        if found != expected:
            raise BundleError(
                f"{path} is corrupt: its SHA-256 is not the one in the manifest."
                " Restore the file, or train again"
            )
    _refuse_unlisted(directory, manifest)


def _refuse_unlisted(directory: Path, manifest: Manifest) -> None:
    # The first versions wrote BentoML's description after the manifest.
    known = {*manifest.files, MANIFEST, BENTOML_DESCRIPTION}
    for path in sorted(directory.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and path.relative_to(directory).as_posix() not in known:
            raise BundleError(
                f"{path} is no part of the bundle {manifest.tag}: its manifest does not list it."
                " Remove the file"
            )


def _is_own_file(path: Path, directory: Path) -> bool:
    """Whether a regular file lies there, and no link on the way leads elsewhere."""
    try:
        return path.is_file() and path.resolve() == directory.resolve() / path.relative_to(
            directory
        )
    except OSError:  # a name that is too long
        return False


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays as safetensors, made contiguous first."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(paths: Iterable[Path]) -> None:
    """Files and folders; a folder holds the names of what is in it."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
