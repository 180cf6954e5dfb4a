"""The gates: each engine, in each precision, is held to torch in float32 on validation images.

An engine that decides otherwise than the network that was trained is not this model, however fast
it is. Four things are asked of it, and what it was seen to do stands in the manifest either way:

- labels: it gives those of torch for 99.5 % of the images, or for all but two of few;
- accuracy: it loses no more than chance would take. Where 99.5 % of the labels are the same, no
  more than half a point can be lost, so half a point would ask nothing new. What is asked is that
  the loss is no habit: the paired 95 % interval of it must reach down to a tenth of one;
- calibration: its expected calibration error is not more than a point over torch's by the lower
  end of the paired bootstrap interval;
- outlier flag: of the images of the classes the share flagged is not over twice alpha, by a
  binomial test. Negatives among the validation images are to be flagged.

Labels are counted. The other three refuse what was shown, not what could not be excluded: of 40
images nothing could, and the interval in the manifest says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.bundle import EngineGate, Metric
from model.decision import decide
from model.engines import Outputs
from training.calibration import expected_calibration_error
from training.engine_runs import EngineRun
from training.evaluate import Decider
from training.findings import Rows
from training.metrics import bootstrap, has_label, mirrored, share_of, weighted_calibration_error

LEAST_LABEL_AGREEMENT = 0.995
FEW_OTHER_LABELS = 2  # images that may get other labels, however few there are
MOST_ACCURACY_LOST = 0.001
MOST_ECE_ADDED = 0.01
MOST_FLAGGED_ALPHAS = 2  # the flagged share that a gate lets pass, in units of alpha,
FLAGGED_TOO_OFTEN = 0.001  # unless chance would do it with more than this probability

_NORMAL_95 = 1.96


def hold_to_torch(
    run: EngineRun, by_torch: Outputs, validation: Rows, decider: Decider
) -> EngineGate:
    """Judge an engine by its run, beside the outputs of torch in float32 for all of `validation`.

    Both decide by the same calibration, thresholds and outlier score.
    """
    rows = validation
    if run.rows is not None:
        rows = validation.take(run.rows)
        by_torch = Outputs(by_torch.logits[run.rows], by_torch.embedding[run.rows])
    given, expected = (decider.probabilities(its) for its in (run.outputs, by_torch))
    labels, torch_labels = (
        decide(chances, decider.thresholds, decider.classes, decider.task)
        for chances in (given, expected)
    )
    truth = decider.label_names(rows.targets)
    right, torch_right = _same(labels, truth), _same(torch_labels, truth)
    same = _same(labels, torch_labels)
    lost = paired_loss(right, torch_right)
    ece, ece_added = _calibration_errors(given, expected, rows, decider)
    shares = {"label_agreement": same, "accuracy": right}
    in_domain = has_label(rows.targets, decider.task)
    flags = decider.flags(run.outputs)[in_domain]
    if len(flags):
        shares["flagged_share"] = flags
    measured = {name: share_of(int(its.sum()), len(its)) for name, its in shares.items()}
    reasons = [
        *_other_labels(same),
        *_lost_accuracy(lost),
        *_lost_calibration(None if ece is None else ece.value, ece_added),
        *_flags_too_often(flags, decider),
    ]
    return EngineGate(
        precision=run.precision,
        label_agreement=float(same.mean()),
        largest_probability_difference=float(np.abs(given - expected).max()),
        accuracy=float(right.mean()),
        flagged_share=float(flags.mean()) if len(flags) else 0.0,
        passed=not reasons,
        images=len(rows),
        accuracy_lost=lost,
        ece=None if ece is None else ece.value,
        images_per_second=run.images_per_second,
        reason="; ".join(reasons),
        measured=measured if ece is None else {**measured, "ece": ece},
    )


def gives_the_labels(labels: Sequence[list[str]], by_torch: Sequence[list[str]]) -> bool:
    """Whether an engine gives enough images the labels that torch gives them."""
    return not _other_labels(_same(labels, by_torch))


def paired_loss(right: NDArray[np.bool_], torch_right: NDArray[np.bool_]) -> Metric:
    """Torch's accuracy minus the engine's on the same N images, with its 95 % interval.

    By Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data": only images that one of them gets right count, and one is
    added to either kind, so that without any the interval is not a point.

    >>> always = np.ones(38, bool)
    >>> loss = paired_loss(always, always)
    >>> loss.value, round(loss.high, 3)
    (0.0, 0.069)
    """
    count = len(right)
    lost, won = int((torch_right & ~right).sum()), int((right & ~torch_right).sum())
    share_lost, share_won = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    middle = share_lost - share_won
    spread = np.sqrt((share_lost + share_won - middle**2) / (count + 2))
    return Metric(
        value=(lost - won) / count,
        low=float(middle - _NORMAL_95 * spread),
        high=float(middle + _NORMAL_95 * spread),
        count=count,
    )


def _same(labels: Sequence[list[str]], others: Sequence[list[str]]) -> NDArray[np.bool_]:
    return np.array([a == b for a, b in zip(labels, others, strict=True)])


def _other_labels(same: NDArray[np.bool_]) -> list[str]:
    others = int((~same).sum())
    if others <= max(FEW_OTHER_LABELS, (1 - LEAST_LABEL_AGREEMENT) * len(same)):
        return []
    return [
        f"{others} of {len(same)} images get other labels than by torch;"
        f" at least {LEAST_LABEL_AGREEMENT:.1%} are to get the same"
    ]


def _lost_accuracy(lost: Metric) -> list[str]:
    if lost.value is None or lost.low is None or lost.low <= MOST_ACCURACY_LOST:
        return []
    return [
        f"{lost.value:.2%} of accuracy are lost, by more than chance"
        f" (at least {lost.low:.2%}; at most {MOST_ACCURACY_LOST:.1%} may be)"
    ]


def _calibration_errors(
    given: NDArray[np.float32], expected: NDArray[np.float32], rows: Rows, decider: Decider
) -> tuple[Metric | None, float]:
    """The engine's, and by how much it exceeds torch's by the lower end of its 95 % interval."""
    labelled = has_label(rows.targets, decider.task)
    if not labelled.any():
        return None, 0.0
    targets = rows.targets[labelled]
    tables = given[labelled], expected[labelled]
    its, torchs = (weighted_calibration_error(table, targets) for table in tables)
    drawn = bootstrap(
        lambda weights: np.stack([its(weights), torchs(weights)], axis=-1), len(targets)
    )
    ece = expected_calibration_error(tables[0], targets)
    low, high = mirrored(ece, np.quantile(drawn[:, 0], [0.025, 0.975]).tolist())
    measured = Metric(value=ece, low=low, high=high, count=len(targets))
    return measured, float(np.quantile(drawn[:, 0] - drawn[:, 1], 0.025))


def _lost_calibration(ece: float | None, added: float) -> list[str]:
    if ece is None or added <= MOST_ECE_ADDED:
        return []
    return [
        f"its calibration error is {ece:.3f}, over torch's by at least {added:.3f};"
        f" at most {MOST_ECE_ADDED:g} may be added"
    ]


def _flags_too_often(flags: NDArray[np.bool_], decider: Decider) -> list[str]:
    """Whether the share flagged lies over twice alpha by more than chance (binomial test)."""
    from scipy.stats import binomtest

    if decider.alpha < decider.outlier.smallest_alpha or not len(flags):
        return []
    most = min(1.0, MOST_FLAGGED_ALPHAS * decider.alpha)
    test = binomtest(int(flags.sum()), len(flags), most, alternative="greater")
    if float(test.pvalue) >= FLAGGED_TOO_OFTEN:
        return []
    return [f"it flags {flags.mean():.1%} of the images as out of domain; at most {most:.1%} may"]
