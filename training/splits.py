"""The four splits, and how rows are dealt to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

Labels = tuple[str, ...]  # of one row; empty: none of the classes


class Split(StrEnum):
    """The four splits and their one meaning (design.md, "Splits")."""

    FIT = "fit"  # weights
    VALIDATION = "validation"  # every choice
    CALIBRATION = "calibration"  # conformal scores, nothing else
    TEST = "test"  # reported once


# What sources call them, in folders and tables.
SPLIT_WORDS = {
    "fit": Split.FIT,
    "train": Split.FIT,
    "training": Split.FIT,
    "valid": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "calibration": Split.CALIBRATION,
    "test": Split.TEST,
}

Shares = dict[Split, float]

# Where a source names nothing, only training, training and test, or training and validation.
_PLAIN: Shares = {
    Split.FIT: 0.60,
    Split.VALIDATION: 0.15,
    Split.CALIBRATION: 0.15,
    Split.TEST: 0.10,
}
_TRAIN_OF_TRAIN_AND_TEST: Shares = {
    Split.FIT: 10 / 12,
    Split.VALIDATION: 1 / 12,
    Split.CALIBRATION: 1 / 12,
}
_VALIDATION_OF_FIT: Shares = {Split.FIT: 0.85, Split.VALIDATION: 0.15}
_VALIDATION_HALVES: Shares = {Split.VALIDATION: 0.5, Split.CALIBRATION: 0.5}

_NEGATIVES: Shares = {Split.FIT: 0.8, Split.VALIDATION: 0.2}
_MORE: Shares = {Split.FIT: 0.8, Split.VALIDATION: 0.1, Split.CALIBRATION: 0.1}

# Under 99 calibration images nothing is ever flagged at 1 %; some may yet turn out broken.
LEAST_CALIBRATION = 120
_NO_TEST = "The data name no test rows: nothing is reported on unseen images."
_ENOUGH_TO_SPARE = 400  # images in all, from which fit can spare that many


def deal_splits(
    labels: Sequence[Labels],
    named: Sequence[Split | None],
    seed: int,
    content: Sequence[bytes] | None = None,
) -> tuple[list[Split], list[str]]:
    """A split for every row, seeded and stratified, keeping to what the source names.

    `content` is a digest of each row's image: of rows that are dealt, copies of one image go with
    the first of them.
    """
    if content is not None and len(set(content)) < len(content):
        return _deal_with_copies(labels, named, seed, content)
    names = set(named)
    kind: Split | None
    if {Split.VALIDATION, Split.CALIBRATION} <= names:
        return _named_splits(labels, named, seed)
    if Split.VALIDATION in names:
        kind, shares = Split.VALIDATION, _VALIDATION_HALVES
        notes = ["Calibration is a seeded half of the rows that the data name as validation."]
    elif Split.CALIBRATION in names:
        kind, shares = Split.FIT, _VALIDATION_OF_FIT
        notes = ["The data name calibration and no validation: that is 15 % of the rows to fit on."]
    elif Split.TEST in names:
        kind, shares = Split.FIT, _TRAIN_OF_TRAIN_AND_TEST
        notes = []
    else:
        kind, shares = (Split.FIT if Split.FIT in names else None), _PLAIN
        notes = ["The data name no splits: dealt at random, stratified, 60/15/15/10 %."]
    splits = [split or Split.FIT for split in named]
    rows = [row for row, split in enumerate(named) if split is kind]
    dealt = _deal([labels[row] for row in rows], shares, seed)
    for row, split in zip(rows, dealt, strict=True):
        splits[row] = split
    if shares is _PLAIN and len(splits) >= _ENOUGH_TO_SPARE:
        notes += _fill_calibration(labels, splits, seed)
    if Split.TEST not in splits:
        notes.append(_NO_TEST)
    return splits, notes


def _deal_with_copies(
    labels: Sequence[Labels], named: Sequence[Split | None], seed: int, content: Sequence[bytes]
) -> tuple[list[Split], list[str]]:
    """Deal the first row of every image, for each split that is named; copies follow it."""
    first: dict[tuple[bytes, Split | None], int] = {}
    keys = zip(content, named, strict=True)
    leader = [first.setdefault(key, row) for row, key in enumerate(keys)]
    kept = sorted(first.values())
    dealt, notes = deal_splits([labels[row] for row in kept], [named[row] for row in kept], seed)
    split_of = dict(zip(kept, dealt, strict=True))
    copies = len(leader) - len(kept)
    if copies:
        notes.append(f"{copies} rows repeat an image: each was dealt to the split of the first.")
    return [split_of[row] for row in leader], notes


def _named_splits(
    labels: Sequence[Labels], named: Sequence[Split | None], seed: int
) -> tuple[list[Split], list[str]]:
    """The source names validation and calibration: nothing is dealt, rows without a name train."""
    notes = [] if Split.TEST in named else [_NO_TEST]
    return [split or Split.FIT for split in named], notes


def deal_negatives(count: int, seed: int) -> list[Split]:
    """A split for each of so many images of none of the classes; none calibrates or tests."""
    return _deal([()] * count, _NEGATIVES, seed)


def deal_more(labels: Sequence[Labels], seed: int) -> list[Split]:
    """A split for every row that is added to data dealt before; none of them is for testing."""
    return _deal(labels, _MORE, seed)


def _fill_calibration(labels: Sequence[Labels], splits: list[Split], seed: int) -> list[str]:
    """Move rows from fit until calibration has LEAST_CALIBRATION; a note where any were moved.

    Every label gives in proportion to its rows, and keeps at least one to fit on.
    """
    lacking = LEAST_CALIBRATION - splits.count(Split.CALIBRATION)
    if lacking <= 0:
        return []
    fit = np.array([row for row, split in enumerate(splits) if split is Split.FIT])
    strata = {row: labels[row] or ("",) for row in fit.tolist()}
    sizes = Counter(label for row in strata.values() for label in row)
    seen: Counter[str] = Counter()
    places: dict[int, float] = {}  # of a row within its rarest label, 0 to 1
    for row in np.random.default_rng(seed).permutation(fit).tolist():
        rarest = min(strata[row], key=lambda name: (sizes[name], name))
        if all(seen[label] for label in strata[row]):
            places[row] = seen[rarest] / sizes[rarest]
        seen.update(strata[row])
    moved = sorted(places, key=lambda row: places[row])[:lacking]
    for row in moved:
        splits[row] = Split.CALIBRATION
    return [
        f"{len(moved)} images more than 15 % went from fit to calibration, which has"
        f" {splits.count(Split.CALIBRATION)}: under 99 a flag rate of 1 % cannot be promised."
    ]


def _deal(labels: Sequence[Labels], shares: Shares, seed: int) -> list[Split]:
    """Iterative stratification (Sechidis et al. 2011), rarest label first.

    Each row goes to the split that still wants most of the row's rarest label; in a tie to the
    one named first, so that a class of two has one to validate on.
    """
    # Rows without a label form a stratum of their own.
    strata = [row or ("",) for row in labels]
    counts = Counter(label for row in strata for label in row)
    members: dict[str, list[int]] = {label: [] for label in counts}
    for row in np.random.default_rng(seed).permutation(len(strata)).tolist():
        for label in strata[row]:
            members[label].append(row)
    wanted = {label: [share * counts[label] for share in shares.values()] for label in counts}
    order = list(shares)
    dealt: list[Split | None] = [None] * len(strata)
    for label in sorted(counts, key=lambda name: (counts[name], name)):
        for row in members[label]:
            if dealt[row] is None:
                choice = _most_wanted(wanted[label])
                dealt[row] = order[choice]
                for shared in strata[row]:
                    wanted[shared][choice] -= 1
    return [split for split in dealt if split is not None]


def _most_wanted(wants: list[float]) -> int:
    # Rounded, so that equal wants are a tie whatever the last bits say.
    return max(range(len(wants)), key=lambda index: (round(wants[index], 6), -index))
