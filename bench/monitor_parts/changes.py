"""Populations of images that clean and changed streams are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from decisions_parts.foreign_kinds import blurred, noisy
from numpy.typing import NDArray

from model.images import Pixels
from monitor_parts.clean import Edges
from monitor_parts.emoji import emoji_of, in_other_styles
from monitor_parts.peers import Sample
from monitor_parts.versions import Seen, Version, garments_of, join
from training.splits import Split

Rows = NDArray[np.int64]

QUIET = 2_000  # clean images before the change
AFTER = 4_000  # images after it, at most
CLEAN = 10_000  # images of a stream in which nothing changes
OTHER_STYLE = "new drawing style 50 %"
TRIPLED = "tripled class prior"
TRIPLED_CLASSES = 3
_SPLITS = (Split.CALIBRATION, Split.TEST)  # nothing was fitted on them


@dataclass(frozen=True)
class Stream:
    """A reference, and the images after it."""

    reference: Sample
    images: Sample


@dataclass(frozen=True)
class World:
    """Images that nothing was fitted on, as they are and changed, row by row the same.

    `bag` of them start the evidence; `again`: there are so few that streams are drawn with
    replacement. `changes` are the shares of changed images, by name; `targets` are classes.
    """

    name: str
    clean: Sample
    changed: Mapping[str, Sample]
    changes: Mapping[str, float]
    targets: Rows
    edges: Edges
    bag: int
    again: bool

    def unchanged(self, seed: int, images: int = CLEAN) -> Stream:
        """Nothing changes."""
        bag, rest = self._deal(np.random.default_rng([seed, 0]), images)
        return Stream(self.clean[bag], self.clean[rest])

    def with_change(self, change: str, seed: int) -> Stream:
        """QUIET clean images, then a share of changed ones."""
        rng = np.random.default_rng([seed, 1])
        bag, rest = self._deal(rng, QUIET + AFTER if self.again else CLEAN)
        quiet, after = rest[:QUIET], rest[QUIET:]
        if change == TRIPLED:
            return Stream(self.clean[bag], self.clean[np.append(quiet, self._tripled(after, rng))])
        after = after[:AFTER]
        is_changed = rng.random(len(after)) < self.changes[change]
        rows, marks = rest[: QUIET + len(after)], np.append(np.zeros(QUIET, bool), is_changed)
        clean, changed = self.clean[rows], self.changed[change][rows]
        mixed = Sample(
            np.where(marks[:, None], changed.vectors, clean.vectors),
            np.where(marks[:, None], changed.components, clean.components),
        )
        return Stream(self.clean[bag], mixed)

    def _deal(self, rng: np.random.Generator, images: int) -> tuple[Rows, Rows]:
        if self.again:
            drawn = rng.integers(len(self.clean), size=self.bag + images)
        else:
            drawn = rng.permutation(len(self.clean))[: self.bag + images]
        return drawn[: self.bag], drawn[self.bag :]

    def _tripled(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Some of these, three random classes three times as frequent as the others."""
        classes = np.unique(self.targets)
        weights = np.ones(len(classes))
        weights[rng.permutation(len(classes))[:TRIPLED_CLASSES]] = 3
        wanted = rng.choice(classes, size=AFTER, p=weights / weights.sum())
        waiting = {index: iter(rows[self.targets[rows] == index].tolist()) for index in classes}
        found: list[int] = []
        for index in wanted:
            row = next(waiting[index], None)
            if row is None:  # none of this class is left
                break
            found.append(row)
        return np.array(found)


def garments(home: Path) -> World:
    """Calibration and test images of Fashion-MNIST, 15,000."""
    version = garments_of(home)
    random = np.random.default_rng(0)
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        "noise 25 %": lambda image: noisy(image, random),
        "dark 25 %": lambda image: image // 2,
        "blur 25 %": lambda image: blurred(image, 1.0),
    }
    changed = {name: _changed(version, name, way) for name, way in ways.items()}
    return World(
        name="Fashion-MNIST",
        clean=_sample(version, join(*map(version.split, _SPLITS))),
        changed={name: _sample(version, seen) for name, seen in changed.items()},
        changes={**dict.fromkeys(ways, 0.25), TRIPLED: 1.0},
        targets=np.concatenate([version.targets(split) for split in _SPLITS]),
        edges=version.edges(),
        bag=len(version.split(Split.CALIBRATION)),
        again=False,
    )


def emoji(home: Path) -> World:
    """Calibration and test drawings of Twemoji; changed ones are OpenMoji's of the same emoji."""
    version = emoji_of(home)
    styles, codes = in_other_styles(home, version, _SPLITS)
    both = join(*map(version.split, _SPLITS))
    rows = np.flatnonzero(codes)
    seen = version.seen("OpenMoji colour of calibration and test", lambda: styles["colour"])
    return World(
        name="emoji",
        clean=_sample(version, both)[rows],
        changed={OTHER_STYLE: _sample(version, seen)},
        changes={OTHER_STYLE: 0.5},
        targets=np.concatenate([version.targets(split) for split in _SPLITS])[rows],
        edges=version.edges(),
        bag=len(version.split(Split.CALIBRATION)),
        again=True,
    )


def _changed(version: Version, name: str, way: Callable[[Pixels], Pixels]) -> Seen:
    def images() -> Pixels:
        grey = [
            image[:, :, 0] for split in _SPLITS for image in version.opened.splits[split].images
        ]
        return np.stack([np.repeat(way(image)[:, :, None], 3, axis=2) for image in grey])

    return version.seen(f"changed {name.partition(' ')[0]}", images)


def _sample(version: Version, seen: Seen) -> Sample:
    return Sample(version.vectors(seen), version.components(seen))
