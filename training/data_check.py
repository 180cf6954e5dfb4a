"""What a look at all images tells before any training: counts, faults, duplicates, leakage, sizes.

Near duplicates are found by a difference hash of 64 bits (N. Krawetz, "Kind of Like That", 2013)
and confirmed on small grey pictures, since plain drawings share a hash without being alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.errors import DataError, ImageError
from model.formats import read_header
from model.images import InputSpec, properties
from training.raw_tables import Fault
from training.sources import Source, require_every_class
from training.splits import Split
from training.tables import some

Severity = Literal[
    "error", "warning", "note"
]  # training refuses; its figures may lie; worth knowing
Progress = Callable[[int, int], None]  # images done, images in all

MOST_COMPARED = 100_000  # images, up to which near duplicates are searched by all pairs
_SEEN = InputSpec(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
_SMALL_SIDE = 16  # px, of the grey pictures that confirm a near duplicate
_MOST_BITS = 5  # of 64, that the hashes of near duplicates differ in
_MOST_DIFFERENCE = 2.5  # of 255, mean over a grey picture, brightness taken out
_LEAST_SPREAD = 2.0  # of 255: a blank image is like every other, and says nothing
_IMBALANCE = 10  # times as many images in the largest class as in the smallest
_FEW_IMAGES = 10  # of a class in fit
_LONG = 3.0  # longer over shorter side, from which a square crop loses much
_BLOCK = 1024  # images compared with all others at a time
_READ_AT_ONCE = 256


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing, with rows or file names that show it."""

    severity: Severity
    kind: str
    sentence: str
    examples: tuple[str, ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()  # groups of rows to look at side by side


@dataclass(frozen=True)
class Sizes:
    """Of all images, in pixels; `aspect` is longer over shorter side."""

    width: tuple[int, int, int]  # least, median, most
    height: tuple[int, int, int]
    aspect: tuple[float, float, float]


@dataclass(frozen=True)
class DataCheck:
    """All that `plumbline data check` says."""

    name: str
    task: str
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # images per class and split; "" is none of the classes
    images: dict[str, int]  # per split
    sizes: Sizes | None  # None: no image could be decoded
    findings: tuple[Finding, ...]
    samples: dict[str, tuple[int, ...]]  # rows to look at, per class

    @property
    def is_clean(self) -> bool:
        """Whether `plumbline train` would take the data as they are."""
        return not any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True)
class Looked:
    """What was seen of every row that could be decoded, as columns of equal length N."""

    rows: NDArray[np.int64]
    digests: list[bytes]
    sizes: NDArray[np.int64]  # N x 2: width, height
    hashes: NDArray[np.uint64]
    small: NDArray[np.float32]  # N x pixels, brightness taken out
    spread: NDArray[np.float32]  # N: standard deviation of the grey picture


def check_data(
    source: Source,
    *,
    progress: Progress | None = None,
    skip_bad: bool = False,
    samples: int = 8,
) -> DataCheck:
    """Decode every image once and report on all of them; memory grows by 1.3 KB an image.

    Files that cannot be used are an error, or a warning where training would `skip_bad`.

    `source` is best opened with `skip_bad` and not `for_training`, so that whatever is wrong is
    found together rather than refused one by one.
    """
    looked, faults = look(source, progress)
    faults = [*source.left_out, *faults]
    kept = looked.rows.tolist()
    findings = [
        *_fault_findings(faults, len(source) + len(source.left_out), skip_bad),
        *_class_findings(source, kept),
        *_duplicate_findings(source, looked),
        *_size_findings(source, looked),
        *(Finding("note", "source", note) for note in source.notes),
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return DataCheck(
        name=source.name,
        task=source.task,
        classes=tuple(source.classes),
        counts=_counts(source, kept),
        images={split.value: sum(source.splits[row] is split for row in kept) for split in Split},
        sizes=_sizes(looked),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
        samples=_samples(source, kept, samples),
    )


def look(source: Source, progress: Progress | None = None) -> tuple[Looked, list[Fault]]:
    """Decode every row, by several threads. Returns what was seen, and the files that failed."""
    good: list[tuple[int, bytes, tuple[int, int], int, NDArray[np.float32]]] = []
    faults: list[Fault] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(source), _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, len(source)))
            answers = threads.map(lambda row: _look_at(source, row), rows)
            for row, seen in zip(rows, answers, strict=True):
                if isinstance(seen, str):
                    faults.append((source.names[row], seen))
                else:
                    good.append((row, *seen))
            if progress:
                progress(rows.stop, len(source))
    small = np.array([one[4] for one in good], np.float32).reshape(len(good), -1)
    small -= small.mean(axis=1, keepdims=True) if good else 0
    return Looked(
        rows=np.array([one[0] for one in good], np.int64),
        digests=[one[1] for one in good],
        sizes=np.array([one[2] for one in good], np.int64).reshape(len(good), 2),
        hashes=np.array([one[3] for one in good], np.uint64),
        small=small,
        spread=small.std(axis=1) if good else np.zeros(0, np.float32),
    ), faults


def _look_at(
    source: Source, row: int
) -> tuple[bytes, tuple[int, int], int, NDArray[np.float32]] | str:
    """Digest, width and height, perceptual hash and small grey picture; or what is wrong."""
    try:
        stored = source.reader.stored(row)
        pixels = source.reader.prepare(row, _SEEN)
    except (ImageError, OSError) as error:
        return str(error)
    if isinstance(stored, bytes):
        header = read_header(stored)
        size = (header.width, header.height)
    else:
        size = (stored.shape[1], stored.shape[0])
        stored = stored.tobytes()
    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float32).ravel()
    return hashlib.sha256(stored).digest(), size, properties(pixels).perceptual_hash, values


# --- counts --------------------------------------------------------------------------------


def _counts(source: Source, rows: Sequence[int]) -> dict[str, dict[str, int]]:
    counted = Counter((label, source.splits[row]) for row in rows for label in _labels(source, row))
    names = [*source.classes, *([""] if any(label == "" for label, _ in counted) else [])]
    return {name: {split.value: counted[name, split] for split in Split} for name in names}


def _labels(source: Source, row: int) -> tuple[str, ...]:
    return source.labels[row] or ("",)


def _samples(source: Source, rows: Sequence[int], count: int) -> dict[str, tuple[int, ...]]:
    """Rows of each class to look at, drawn alike at every call, those to fit on first."""
    drawn = np.random.default_rng(0).permutation(np.array(rows, np.int64)).tolist()
    drawn.sort(key=lambda row: source.splits[row] is not Split.FIT)
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row in drawn:
        for label in _labels(source, row):
            if len(found[label]) < count:
                found[label].append(row)
    return {name: tuple(found[name]) for name in [*source.classes, ""] if found[name]}


def _sizes(looked: Looked) -> Sizes | None:
    if not len(looked.rows):
        return None
    width, height = (_three(column) for column in looked.sizes.T)
    aspects = looked.sizes.max(axis=1) / looked.sizes.min(axis=1)
    least, median, most = np.quantile(aspects, (0, 0.5, 1)).round(3).tolist()
    return Sizes(width, height, (least, median, most))


def _three(values: NDArray[np.int64]) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


# --- findings ------------------------------------------------------------------------------


def _fault_findings(faults: Sequence[Fault], total: int, skip_bad: bool) -> list[Finding]:
    if not faults:
        return []
    sentence = f"{len(faults)} of {total} files cannot be used as images: " + (
        "they would be skipped." if skip_bad else "mend or remove them, or train with --skip-bad."
    )
    told = tuple(f"{name}: {fault}" for name, fault in faults)
    return [Finding("warning" if skip_bad else "error", "corrupt files", sentence, told)]


def _class_findings(source: Source, rows: Sequence[int]) -> list[Finding]:
    """Classes that are missing somewhere, have few images, or far fewer than others."""
    found: list[Finding] = []
    counts = _counts(source, rows)
    try:
        require_every_class(source, rows, always=True)
    except DataError as error:
        found.append(Finding("error", "classes", str(error)))
    untested = [name for name in source.classes if not counts[name][Split.TEST]]
    if untested and Split.TEST in source.splits:
        sentence = f"{len(untested)} classes have no test images: {some(untested)}."
        found.append(Finding("warning", "classes", sentence))
    fit = {name: counts[name][Split.FIT] for name in source.classes}
    few = [name for name, count in fit.items() if 0 < count < _FEW_IMAGES]
    if few:
        sentence = f"{len(few)} classes have under {_FEW_IMAGES} images to train on: {some(few)}."
        found.append(Finding("warning", "few images", sentence))
    if not fit:  # no label at all, which is told above
        return found
    smallest, largest = min(fit, key=lambda its: fit[its]), max(fit, key=lambda its: fit[its])
    if fit[smallest] and fit[largest] >= _IMBALANCE * fit[smallest]:
        sentence = (
            f"{largest!r} has {fit[largest] / fit[smallest]:.0f} times the images of"
            f" {smallest!r} ({fit[largest]} and {fit[smallest]} to train on): look at each class's"
            " recall, and try --sampling balanced or --class-weights balanced."
        )
        found.append(Finding("warning", "imbalance", sentence))
    return found


def _size_findings(source: Source, looked: Looked) -> list[Finding]:
    if not len(looked.rows):
        return []
    aspects = looked.sizes.max(axis=1) / looked.sizes.min(axis=1)
    long = looked.rows[aspects >= _LONG].tolist()
    if not long:
        return []
    sentence = (
        f"{len(long)} images are {_LONG:g} times as long as wide, or more: the network sees the"
        " square in their middle alone."
    )
    names = tuple(source.names[row] for row in long)
    return [Finding("warning", "aspect ratio", sentence, names)]


def _duplicate_findings(source: Source, looked: Looked) -> list[Finding]:
    exact, near = exact_duplicates(looked), near_duplicates(looked)
    found = []
    for kind, groups in (("exact", exact), ("near", near)):
        across = [group for group in groups if len({source.splits[row] for row in group}) > 1]
        torn = [group for group in groups if len({source.labels[row] for row in group}) > 1]
        severity: Severity = "warning" if kind == "exact" else "note"
        found += _groups(source, "note", f"{kind} duplicates", groups, "of {kind} duplicates.")
        found += _groups(
            source,
            "warning",
            f"leakage, {kind}",
            across,
            f"of {kind} duplicates reach across splits: figures on validation or test flatter.",
        )
        found += _groups(
            source,
            severity,
            f"conflicting labels, {kind}",
            torn,
            f"of {kind} duplicates have different labels: at most one of them is right.",
        )
    if len(looked.rows) > MOST_COMPARED:
        sentence = (
            f"Over {MOST_COMPARED} images near duplicates are searched among equal hashes alone:"
            " some are missed."
        )
        found.append(Finding("note", "near duplicates", sentence))
    return found


def _groups(
    source: Source,
    severity: Severity,
    kind: str,
    groups: Sequence[tuple[int, ...]],
    rest: str,
) -> list[Finding]:
    if not groups:
        return []
    count = sum(map(len, groups))
    rest = rest.format(kind=kind.split(maxsplit=1)[0])
    sentence = f"{count} images in {len(groups)} groups {rest}"
    examples = tuple(" = ".join(_told(source, row) for row in group) for group in groups)
    return [Finding(severity, kind, sentence, examples, tuple(groups))]


def _told(source: Source, row: int) -> str:
    labels = ", ".join(source.labels[row]) or "none"
    return f"{source.names[row]} ({source.splits[row]}, {labels})"


# --- duplicates ----------------------------------------------------------------------------


def exact_duplicates(looked: Looked) -> list[tuple[int, ...]]:
    """Groups of rows with the same bytes, in the order of the rows."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, digest in zip(looked.rows.tolist(), looked.digests, strict=True):
        groups[digest].append(row)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_duplicates(looked: Looked) -> list[tuple[int, ...]]:
    """Groups of rows that look alike without being the same bytes.

    Two are joined where their hashes differ in at most 5 of 64 bits and their grey pictures,
    brightness taken out, by at most 2.5 of 255 on average. Copies of the same bytes are left out
    but for one.
    """
    distinct = sorted({digest: place for place, digest in enumerate(looked.digests)}.values())
    places = np.array(
        [place for place in distinct if looked.spread[place] >= _LEAST_SPREAD], np.int64
    )
    if len(places) < 2:
        return []
    pairs = _close_pairs(looked.hashes[places], looked.small[places])
    if not pairs:
        return []
    first, second = np.array(pairs, np.int64).T
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(places),) * 2)
    _, group_of = connected_components(links, directed=False)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in zip(places.tolist(), group_of.tolist(), strict=True):
        groups[group].append(int(looked.rows[place]))
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _close_pairs(hashes: NDArray[np.uint64], small: NDArray[np.float32]) -> list[tuple[int, int]]:
    order: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]
    order = _pairs_by_hash(hashes) if len(hashes) > MOST_COMPARED else _pairs_by_bits(hashes)
    found: list[tuple[int, int]] = []
    for first, second in order:
        for start in range(0, len(first), 2**16):  # 64 MB of differences at once
            one, other = first[start : start + 2**16], second[start : start + 2**16]
            alike = np.abs(small[one] - small[other]).mean(axis=1) <= _MOST_DIFFERENCE
            found += zip(one[alike].tolist(), other[alike].tolist(), strict=True)
    return found


def _pairs_by_bits(
    hashes: NDArray[np.uint64],
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs whose hashes differ in few bits, block by block."""
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None]
        differing = np.bitwise_count(block ^ hashes[None, start:])
        first, second = np.nonzero(differing <= _MOST_BITS)
        later = second > first
        yield first[later] + start, second[later] + start


def _pairs_by_hash(
    hashes: NDArray[np.uint64],
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Neighbours among equal hashes: enough to join them to one group where they are alike."""
    order = np.argsort(hashes, kind="stable")
    same = np.nonzero(hashes[order][1:] == hashes[order][:-1])[0]
    yield order[same], order[same + 1]
