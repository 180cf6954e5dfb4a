"""What thresholds of a multi-label model are tuned for: F-beta, costs, or a target.

    macro_f1, micro_f1, macro_f2, micro_f0.5   F-beta, the mean over classes or of all labels
    cost                                       what mistakes cost, by class
    precision>=0.9                             the largest recall at such a precision
    recall>=0.8                                the largest precision at such a recall

An objective reads counts and never probabilities, so that it judges a grid of thresholds at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import SettingsError
from training.metrics import mean_of_present

Floats = NDArray[np.float64]

FALLBACK = 0.5
COST = "cost"
ONE_SIDED_95 = 1.6449  # of the normal distribution
VALID = (
    "valid are macro_f1, micro_f1 or another F-beta such as macro_f2 and micro_f0.5, cost (with"
    " --cost-matrix), precision>=P and recall>=R, such as 'precision>=0.9'"
)


class Counts(NamedTuple):
    """What C classes would answer at each of G thresholds, counted by weight of rows."""

    true: Floats  # C x G, right among the answered
    answered: Floats  # C x G
    positives: Floats  # C x 1
    negatives: Floats  # C x 1

    def of_class(self, index: int) -> Counts:
        """One class alone."""
        return Counts(*(part[index : index + 1] for part in self))

    def others_at(self, index: int, column: int) -> Counts:
        """One class at each of its thresholds, the others all at that of `column`."""
        moved = []
        for part in (self.true, self.answered):
            still = np.repeat(part[:, column : column + 1], part.shape[1], axis=1)
            still[index] = part[index]
            moved.append(still)
        return Counts(moved[0], moved[1], self.positives, self.negatives)

    def total(self) -> Counts:
        """All classes as if they were one."""
        return Counts(*(part.sum(axis=0, keepdims=True) for part in self))


class Objective(ABC):
    """What thresholds are tuned for."""

    lower_is_better = False

    @property
    @abstractmethod
    def name(self) -> str:
        """As given to `--objective`."""

    @property
    @abstractmethod
    def curve_name(self) -> str:
        """What `score` measures, in words."""

    @abstractmethod
    def score(self, counts: Counts) -> Floats:
        """What is sought, by threshold: G values, NaN where undefined; higher is better.

        Where `lower_is_better` these are the negated ones.
        """

    @property
    def fallback(self) -> float:
        """The threshold that is kept where nothing can be tuned."""
        return FALLBACK

    def scale(self, counts: Counts) -> float:
        """The difference of scores that counts as much as one whole F1."""
        return 1.0

    def for_class(self, index: int) -> Objective:
        """The same for a threshold of one class."""
        return self

    def counts_for_class(self, counts: Counts, index: int, column: int) -> Counts:
        """What that one judges: the class alone, where it does not depend on the others."""
        return counts.of_class(index)

    def belongs_at(self, best: float) -> tuple[float, str] | None:
        """Where the threshold of a calibrated model belongs, and by which rule; None: no rule.

        `best` is the best score.
        """
        return None


@dataclass(frozen=True)
class FScore(Objective):
    """F-beta: recall counts beta times as much as precision (van Rijsbergen 1979).

    Macro is the mean over the classes that have positives, micro that of all labels together.
    `of_class` names the class whose threshold alone is moved, in micro.
    """

    beta: float = 1.0
    average: Literal["macro", "micro"] = "macro"
    of_class: int | None = None

    @property
    def name(self) -> str:
        """Such as macro_f1."""
        return f"{self.average}_f{self.beta:g}"

    @property
    def curve_name(self) -> str:
        """Such as macro F1."""
        return f"{self.average} F{self.beta:g}"

    def score(self, counts: Counts) -> Floats:
        """F-beta, 0 to 1; NaN without positives."""
        its = counts.total() if self.average == "micro" else counts
        weight = self.beta**2
        with np.errstate(invalid="ignore", divide="ignore"):
            each = (1 + weight) * its.true / (its.answered + weight * its.positives)
        return mean_of_present(np.where(its.positives > 0, each, np.nan).T)

    def scale(self, counts: Counts) -> float:
        """In micro one class moves the score by no more than its share of the positives."""
        if self.of_class is None:
            return 1.0
        return float(counts.positives[self.of_class, 0] / max(counts.positives.sum(), 1))

    def for_class(self, index: int) -> Objective:
        """Micro F of one class is not what its threshold is to serve: the whole is."""
        return FScore(self.beta, "micro", index) if self.average == "micro" else self

    def counts_for_class(self, counts: Counts, index: int, column: int) -> Counts:
        """Macro: the class alone. Micro: with the others where they are."""
        if self.average == "macro":
            return counts.of_class(index)
        return counts.others_at(index, column)

    def belongs_at(self, best: float) -> tuple[float, str]:
        """Half the best F1 (Lipton et al. 2014); for F-beta the best over 1 + beta squared.

        One more answer that is right with probability p adds (1 + beta^2) p to the numerator of
        F and 1 to its denominator, so it pays where p is over F / (1 + beta^2).
        """
        parts = 1 + self.beta**2
        rule = "half the best F1" if self.beta == 1 else f"the best F{self.beta:g} over {parts:g}"
        return best / parts, rule


@dataclass(frozen=True)
class Cost(Objective):
    """What mistakes cost on average per image; costs by class, in any unit."""

    false_positive: tuple[float, ...]
    false_negative: tuple[float, ...]

    lower_is_better = True

    @property
    def name(self) -> str:
        """The word cost."""
        return COST

    @property
    def curve_name(self) -> str:
        """In words."""
        return "mean cost per image"

    @property
    def fallback(self) -> float:
        """Where the costs alone would put the threshold of calibrated probabilities."""
        wrong, missed = sum(self.false_positive), sum(self.false_negative)
        return wrong / (wrong + missed) if wrong + missed else FALLBACK

    def score(self, counts: Counts) -> Floats:
        """The negated mean cost per image."""
        wrong, missed = self._columns()
        costs = wrong * (counts.answered - counts.true) + missed * (counts.positives - counts.true)
        return np.asarray(-costs.sum(axis=0) / _rows(counts))

    def scale(self, counts: Counts) -> float:
        """What a model costs that always says all of the classes, or none, the cheaper of both."""
        wrong, missed = self._columns()
        every, none = (wrong * counts.negatives).sum(), (missed * counts.positives).sum()
        return float(min(every, none) / _rows(counts))

    def for_class(self, index: int) -> Objective:
        """With the costs of that class."""
        return Cost((self.false_positive[index],), (self.false_negative[index],))

    def belongs_at(self, best: float) -> tuple[float, str] | None:
        """Cost of a false positive over the sum of both (Elkan 2001), where all classes agree."""
        pairs = zip(self.false_positive, self.false_negative, strict=True)
        ratios = {round(wrong / (wrong + missed), 9) for wrong, missed in pairs if wrong + missed}
        return (ratios.pop(), "the ratio of the costs") if len(ratios) == 1 else None

    def to_dict(self, classes: Sequence[str]) -> dict[str, dict[str, float]]:
        """By class, JSON-ready."""
        triples = zip(classes, self.false_positive, self.false_negative, strict=True)
        return {
            name: {"false_positive": wrong, "false_negative": missed}
            for name, wrong, missed in triples
        }

    def _columns(self) -> tuple[Floats, Floats]:
        wrong, missed = np.array(self.false_positive), np.array(self.false_negative)
        return wrong[:, None], missed[:, None]


@dataclass(frozen=True)
class Target(Objective):
    """The largest recall whose precision is at least so much, or the reverse.

    Both are of all labels together (micro). What holds on a few validation rows may be luck, so
    the target must be met by the lower end of a one-sided 95 % interval (Wilson 1927). That
    interval takes the labels for independent, which those of one image are not quite; the
    re-draws of whole rows, which the evidence shows beside it, do not.
    """

    of: Literal["precision", "recall"]
    least: float

    @property
    def name(self) -> str:
        """Such as precision>=0.9."""
        return f"{self.of}>={self.least:g}"

    @property
    def curve_name(self) -> str:
        """The measure that the target leaves free."""
        return "recall" if self.of == "precision" else "precision"

    def score(self, counts: Counts) -> Floats:
        """The measure that the target leaves free, 0 to 1."""
        return self._share(counts, self.curve_name)

    def measured(self, counts: Counts) -> Floats:
        """The targeted measure as it is on these rows; NaN where undefined."""
        return self._share(counts, self.of)

    def assured(self, counts: Counts) -> Floats:
        """The lower end of the targeted measure's interval; 0 where there is nothing to go by."""
        share, trials = self.measured(counts), self._trials(counts, self.of)
        return np.nan_to_num(wilson_lower(np.nan_to_num(share), trials))

    def _share(self, counts: Counts, measure: str) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(counts.total().true[0] / self._trials(counts, measure))

    @staticmethod
    def _trials(counts: Counts, measure: str) -> Floats:
        total = counts.total()
        trials = total.answered if measure == "precision" else total.positives
        return np.asarray(np.broadcast_to(trials, total.true.shape)[0])


def wilson_lower(share: Floats, trials: Floats) -> Floats:
    """The lower end of the one-sided 95 % interval of a share (Wilson 1927); NaN of no trials.

    >>> float(wilson_lower(np.array([1.0]), np.array([5.0]))[0].round(3))
    0.649
    """
    square = ONE_SIDED_95**2
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = share + square / (2 * trials)
        spread = np.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
        return np.asarray((centre - ONE_SIDED_95 * spread) / (1 + square / trials))


def _rows(counts: Counts) -> float:
    return float((counts.positives + counts.negatives).max()) or 1.0


MACRO_F1 = FScore()


def parse_objective(text: str, costs: Cost | None = None) -> Objective:
    """What `--objective` names.

    Raises `SettingsError` for anything else, and for costs without the word cost or the reverse.

    >>> parse_objective("micro_f0.5")
    FScore(beta=0.5, average='micro', of_class=None)
    >>> parse_objective("precision>=0.9").name
    'precision>=0.9'
    """
    if (text == COST) != (costs is not None):
        raise SettingsError(
            f"--objective {text}: costs are read from --cost-matrix FILE.csv alone, and give"
            " --objective cost; give both or neither"
        )
    if costs is not None:
        return costs
    score = re.fullmatch(r"(macro|micro)_f(\d+(?:\.\d+)?)", text)
    if score:
        return FScore(_beta(text, score[2]), "macro" if score[1] == "macro" else "micro")
    target = re.fullmatch(r"(precision|recall) *>= *(\d*\.?\d+)", text)
    if target:
        of: Literal["precision", "recall"] = "precision" if target[1] == "precision" else "recall"
        return Target(of, _least(text, target[2]))
    raise SettingsError(f"--objective {text!r}: {VALID}")


def _beta(text: str, number: str) -> float:
    beta = float(number)
    if not 0.01 <= beta <= 100:
        raise SettingsError(f"--objective {text}: beta must lie in 0.01 to 100, got {number}")
    return beta


def _least(text: str, number: str) -> float:
    least = float(number)
    if not 0 < least < 1:
        raise SettingsError(
            f"--objective {text!r}: {number} must lie over 0 and under 1; that no mistake is ever"
            " made cannot be assured from any number of images"
        )
    return least


def costs_of(objective: Objective, classes: Sequence[str]) -> dict[str, Any] | None:
    """The costs by class, for the manifest; None of an objective without."""
    return objective.to_dict(classes) if isinstance(objective, Cost) else None
