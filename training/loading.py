"""Items -> prepared images and targets, decoded once and kept in a memory-mapped cache.

The cache holds one file of raw uint8 per split, keyed by the content of the source and the
input spec. It is written beside its place and renamed, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError, ImageError
from model.images import InputSpec
from training.raw_tables import Fault, images_below, refuse_or_note_bad
from training.readers import Pixels
from training.sources import Source, require_every_class
from training.splits import Split

Progress = Callable[[int, int], None]  # images done, images in all

NONE_OF_THEM = -1  # target of a single-label item without a label
MOST_FOREIGN = 1_000  # images that the outlier score is judged by
_FORMAT = 1  # of the cache; raise it when what is stored changes
_BLOCK = 64  # images a thread prepares at a time
_BLOCKS_AHEAD = 16  # blocks in memory at once
_INDEX = "index.json"
_LOADING = ".loading-"  # then the process that writes it


@dataclass(frozen=True)
class LoadedSplit:
    """One split, ready to train on; all of equal length N."""

    images: Pixels  # N x H x W x 3, read-only, memory-mapped
    targets: NDArray[Any]  # single: int64 N, -1 for none of the classes; multi: float32 N x C
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


def load(
    source: Source,
    spec: InputSpec,
    cache_directory: Path,
    *,
    progress: Progress | None = None,
) -> dict[Split, LoadedSplit]:
    """Prepared images and targets of every split; a second call decodes nothing.

    These are the very pixels that serving sees. Files that turn out to be broken are a
    `DataError`, or skipped and told in `source.notes` where the source allows that. `progress`
    is called after every few images.
    """
    return _load(source, spec, cache_directory, tuple(Split), None, progress)


def load_presized(
    source: Source,
    size: int,
    spec: InputSpec,
    cache_directory: Path,
    *,
    seed: int,
    progress: Progress | None = None,
) -> LoadedSplit:
    """Images to fit on, larger than the network takes, for `training.warp` to read from.

    The first step of presizing (fastai book, chapter 5): all of one size, `size` px a side, cut
    from anywhere along the longer side, seeded. Otherwise as `load`.
    """
    larger = presized_spec(spec, size)
    return _load(source, larger, cache_directory, (Split.FIT,), seed, progress)[Split.FIT]


def load_foreign(folder: Path, spec: InputSpec, seed: int, skip_bad: bool) -> Pixels:
    """At most MOST_FOREIGN of the images below a folder, prepared: N x H x W x 3 uint8.

    Raises `DataError` for files that are no images, where they may not be skipped.
    """
    table = images_below(folder, skip_bad)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(table.names))[:MOST_FOREIGN])
    images, bad = [], []
    for row in chosen.tolist():
        try:
            images.append(table.reader.prepare(row, spec))
        except (ImageError, OSError) as error:
            bad.append((table.names[row], str(error)))
    refuse_or_note_bad(bad, len(chosen), skip_bad)
    return np.stack(images)


def presized_spec(spec: InputSpec, size: int) -> InputSpec:
    """How images are presized for a network that takes `spec`.

    Bicubic: sharper than is right for the eye, it makes up for what sampling a warp blurs.
    """
    return spec.model_copy(update={"size": size, "crop": 1.0, "interpolation": "bicubic"})


def _load(
    source: Source,
    spec: InputSpec,
    cache_directory: Path,
    splits: Sequence[Split],
    crop_seed: int | None,
    progress: Progress | None,
) -> dict[Split, LoadedSplit]:
    place = cache_directory / _key(source, spec, splits, crop_seed)
    index = _read_index(place, spec)
    if index is None:
        index = _write_cache(source, spec, place, splits, crop_seed, progress)
    skipped = [(name, fault) for name, fault in index["skipped"]]
    notes = refuse_or_note_bad(skipped, len(source), source.skip_bad)
    source.notes.extend(note for note in notes if note not in source.notes)
    left_out = {name for name, _ in skipped}
    kept = [row for row, name in enumerate(source.names) if name not in left_out]
    require_every_class(source, kept)
    return {split: _loaded(source, split, kept, place, spec) for split in splits}


def targets_of(source: Source, rows: list[int]) -> NDArray[Any]:
    """Targets of some rows: class indices N, or 0 and 1 of N x C for multi-label."""
    index = {name: position for position, name in enumerate(source.classes)}
    if source.task == "single":
        numbers = [
            index[source.labels[row][0]] if source.labels[row] else NONE_OF_THEM for row in rows
        ]
        return np.array(numbers, np.int64)
    table = np.zeros((len(rows), len(index)), np.float32)
    for position, row in enumerate(rows):
        table[position, [index[label] for label in source.labels[row]]] = 1
    return table


def _loaded(
    source: Source, split: Split, kept: list[int], place: Path, spec: InputSpec
) -> LoadedSplit:
    rows = [row for row in kept if source.splits[row] is split]
    shape = (len(rows), spec.size, spec.size, 3)
    images: Pixels = np.zeros(shape, np.uint8)
    if rows:  # an empty file cannot be mapped
        images = np.memmap(_file(place, split), np.uint8, "r", shape=shape)
    return LoadedSplit(images, targets_of(source, rows), [source.names[row] for row in rows])


def _key(source: Source, spec: InputSpec, splits: Sequence[Split], crop_seed: int | None) -> str:
    text = f"{_FORMAT} {source.fingerprint} {spec.model_dump_json()} {list(splits)} {crop_seed}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _file(place: Path, split: Split) -> Path:
    return place / f"{split}.u8"


def _read_index(place: Path, spec: InputSpec) -> dict[str, Any] | None:
    """The index of a whole cache, or None where there is none to be used."""
    try:
        index: dict[str, Any] = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        for split, count in index["counts"].items():
            if _file(place, Split(split)).stat().st_size != count * spec.size**2 * 3:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return index


def _write_cache(
    source: Source,
    spec: InputSpec,
    place: Path,
    splits: Sequence[Split],
    crop_seed: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Decode everything into a temporary folder, then rename it."""
    temporary: str | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep_left_over(place.parent)
        temporary = tempfile.mkdtemp(dir=place.parent, prefix=f"{_LOADING}{os.getpid()}-")
        index = _write_splits(source, spec, Path(temporary), splits, crop_seed, progress)
        refuse_or_note_bad(index["skipped"], len(source), source.skip_bad)
        shutil.rmtree(place, ignore_errors=True)  # one that was not whole
        os.replace(temporary, place)
    except OSError as error:
        raise DataError(
            f"cannot write the cache of prepared images to {place.parent}: {error}; it needs "
            f"{len(source) * spec.size**2 * 3 / 2**20:.0f} MiB there"
        ) from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return index


def sweep_left_over(cache_directory: Path) -> None:
    """Remove what processes that were killed in the middle of writing have left."""
    for folder in cache_directory.glob(f"{_LOADING}*"):
        writer = folder.name.removeprefix(_LOADING).partition("-")[0]
        if not (writer.isdecimal() and Path("/proc", writer).exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _write_splits(
    source: Source,
    spec: InputSpec,
    place: Path,
    splits: Sequence[Split],
    crop_seed: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    total = sum(len(source.rows(split)) for split in splits)
    counts: dict[str, int] = {}
    skipped: list[Fault] = []
    done = 0
    for split in splits:
        counts[split] = 0
        with _file(place, split).open("wb") as file:
            for block in _prepared(source, spec, source.rows(split), crop_seed):
                for result in block:
                    if isinstance(result, tuple):
                        skipped.append(result)
                    else:
                        file.write(result.tobytes())
                        counts[split] += 1
                done += len(block)
                if progress:
                    progress(done, total)
    index = {"counts": counts, "skipped": skipped}
    (place / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    return index


def _prepared(
    source: Source, spec: InputSpec, rows: list[int], crop_seed: int | None
) -> Iterator[list[Pixels | Fault]]:
    """Blocks of prepared images or faults, in the order of the rows, by several threads."""
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]

    def prepare_block(block: list[int]) -> list[Pixels | Fault]:
        return [_prepare(source, spec, row, crop_seed) for row in block]

    with ThreadPoolExecutor() as threads:
        for start in range(0, len(blocks), _BLOCKS_AHEAD):
            yield from threads.map(prepare_block, blocks[start : start + _BLOCKS_AHEAD])


def _prepare(source: Source, spec: InputSpec, row: int, crop_seed: int | None) -> Pixels | Fault:
    place = 0.5 if crop_seed is None else float(np.random.default_rng((crop_seed, row)).random())
    try:
        return source.reader.prepare(row, spec, place)
    except (ImageError, OSError) as error:
        return source.names[row], str(error)
