"""What the report of a bundle shows: the findings of training, arranged for `report`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import EngineGate, Manifest
from model.decision import Calibration, probabilities
from training.answers import Answers, answers_of
from training.calibration import expected_calibration_error, reliability
from training.confusions import most_confused
from training.findings import Findings, Rows, Trained
from training.heat import draw_heat
from training.label_errors import can_be_judged
from training.metrics import has_label
from training.report import write_report
from training.report_data import EngineRow, Mistake, OutlierCheck, ReportData
from training.slices import slices_of
from training.top_losses import top_losses
from training.wrong_labels import (
    NOBODY,
    OWN_PROBABILITIES,
    LabelCheck,
    WrongLabel,
    wrong_labels_of,
)

MOST_MISTAKES = 12
MOST_WRONG_LABELS = 12
HEAT_SECONDS = 5.0  # that Grad-CAM may take, by the first image


def write_model_card(path: Path, manifest: Manifest, trained: Trained, findings: Findings) -> None:
    """Write `report.html` of a bundle."""
    rows, logits = _shown(trained, findings)
    before, after = (
        probabilities(logits, its, manifest.task)
        for its in (_uncalibrated(manifest), manifest.calibration)
    )
    answers = _answers(trained, findings)
    mistakes, no_heat = _mistakes(answers, trained)
    wrong_labels, label_checks = _wrong_labels(trained, findings)
    splits = {name: getattr(trained, name) for name in ("fit", "validation", "calibration", "test")}
    report = ReportData(
        name=manifest.name,
        version=manifest.version,
        created=f"{manifest.created:%Y-%m-%d %H:%M} UTC",
        task=manifest.task,
        classes=manifest.classes,
        architecture=manifest.architecture,
        input_size=manifest.input.size,
        metrics=findings.test_metrics,
        validation_metrics=findings.validation_metrics,
        counts={name: _class_counts(split, trained) for name, split in splits.items()},
        split_sizes={name: len(split) for name, split in splits.items()},
        notes=manifest.data.notes,
        **trained.curves,
        calibration=manifest.calibration,
        reliability_before=reliability(before, rows.targets),
        reliability_after=reliability(after, rows.targets),
        ece_before=expected_calibration_error(before, rows.targets),
        ece_after=expected_calibration_error(after, rows.targets),
        reliability_split=manifest.metrics_split,
        thresholds=findings.choice,
        prediction_sets=manifest.prediction_sets,
        outlier=_outlier_check(manifest, trained, findings),
        engines=_engine_rows(manifest),
        mistakes=mistakes,
        no_heat=no_heat,
        confused=most_confused([answers]),
        slices=slices_of([answers], [_sizes(answers, trained)]),
        label_checks=label_checks,
        wrong_labels=wrong_labels,
        data_source=manifest.data.source,
        fingerprint=manifest.data.fingerprint,
        intended_use=manifest.intended_use,
        command=manifest.tag,
        settings=manifest.training,
        versions=manifest.libraries,
    )
    write_report(path, report)


def _shown(trained: Trained, findings: Findings) -> tuple[Rows, NDArray[np.float32]]:
    """The test rows with a label and their logits; those of validation where there is no test."""
    outputs, rows = findings.outputs.test, trained.test
    if outputs is None:
        outputs, rows = findings.outputs.validation, trained.validation
    if trained.task == "multi":
        return rows, outputs.logits
    labelled = np.flatnonzero(rows.targets >= 0)
    return rows.take(labelled), outputs.logits[labelled]


def _uncalibrated(manifest: Manifest) -> Calibration:
    count = len(manifest.classes)
    return Calibration(
        method=manifest.calibration.method, slopes=(1.0,) * count, intercepts=(0.0,) * count
    )


def _class_counts(rows: Rows, trained: Trained) -> dict[str, int]:
    if trained.task == "multi":
        counts = rows.targets.sum(axis=0)
    else:
        counts = np.bincount(rows.targets[rows.targets >= 0], minlength=len(trained.classes))
    return {name: int(count) for name, count in zip(trained.classes, counts, strict=True)}


def _outlier_check(manifest: Manifest, trained: Trained, findings: Findings) -> OutlierCheck:
    in_class = has_label(trained.validation.targets, trained.task)
    flags = findings.decider.flags(findings.outputs.validation)[in_class]
    return {
        "passed": findings.self_check.passed,
        "sentence": manifest.outlier.statement,
        "detector": manifest.outlier.detector,
        "embedding": manifest.outlier.embedding,
        "candidates": [
            {
                "name": its.name,
                "auroc": its.auroc,
                "mean": its.mean,
                "is_chosen": its == findings.self_check.chosen,
                "is_baseline": its in findings.self_check.baselines,
            }
            for its in (*findings.self_check.candidates, *findings.self_check.baselines)
        ],
        "alpha": manifest.outlier.alpha,
        "calibration_count": manifest.outlier.calibration_images,
        "false_positive_count": int(flags.sum()),
        "validation_count": len(flags),
        "kinds": [
            {
                "kind": kind.kind,
                "auroc": kind.auroc,
                "flagged": kind.flagged_share,
                "count": kind.images,
            }
            for kind in findings.self_check.kinds
        ],
    }


def _engine_rows(manifest: Manifest) -> list[EngineRow]:
    rows = [
        _engine_row(name, gate, serves=name == manifest.decided_by)
        for name, gate in manifest.engines.items()
    ]
    left_out: list[EngineRow] = [
        {"engine": name, "passed": False, "reason": reason}
        for name, reason in manifest.engines_left_out.items()
    ]
    return rows + left_out


def _engine_row(name: str, gate: EngineGate, *, serves: bool) -> EngineRow:
    row: EngineRow = {
        "engine": name.partition("-")[0],
        "precision": gate.precision,
        "agreement": gate.label_agreement,
        "accuracy": gate.accuracy,
        "flagged": gate.flagged_share,
        "count": gate.images,
        "passed": gate.passed,
        "serves": serves,
        "reason": gate.reason,
    }
    lost = gate.accuracy_lost
    ends = () if lost is None else (lost.value, lost.low, lost.high)
    known = [its for its in ends if its is not None]
    if len(known) == 3:
        row["lost"], row["lost_low"], row["lost_high"] = known
    if gate.ece is not None:
        row["ece"] = gate.ece
    if gate.images_per_second is not None:
        row["images_per_second"] = gate.images_per_second
    return row


def _answers(trained: Trained, findings: Findings) -> Answers:
    """Of test; of validation where there is no test."""
    outputs = findings.outputs
    if outputs.test is None:
        return answers_of(findings.decider, "validation", trained.validation, outputs.validation)
    return answers_of(findings.decider, "test", trained.test, outputs.test)


def _sizes(answers: Answers, trained: Trained) -> NDArray[Any] | None:
    """Of the rows that were answered, as their files have it."""
    sizes = trained.image_sizes.get(answers.split)
    targets = getattr(trained, answers.split).targets
    if sizes is None or len(sizes) != len(targets):
        return None
    return sizes if targets.ndim == 2 else sizes[targets >= 0]


def _wrong_labels(
    trained: Trained, findings: Findings
) -> tuple[list[WrongLabel], list[LabelCheck]]:
    """Of validation and test, which the model did not learn."""
    outputs = {"validation": findings.outputs.validation, "test": findings.outputs.test}
    found: list[WrongLabel] = []
    checks = []
    for split, given in outputs.items():
        rows: Rows = getattr(trained, split)
        if given is None or not rows.names:
            continue
        chances = findings.decider.probabilities(given)
        doubted = wrong_labels_of(trained.classes, trained.task, split, rows, chances)
        by = OWN_PROBABILITIES if can_be_judged(rows.targets) else NOBODY
        checks.append(LabelCheck(split, len(rows), len(doubted), by))
        found += doubted
    return sorted(found, key=lambda its: its.score)[:MOST_WRONG_LABELS], checks


def _mistakes(answers: Answers, trained: Trained) -> tuple[list[Mistake], str]:
    """The wrong answers that cost most, with Grad-CAM; or without, and why."""
    from training.grad_cam import NoFeatureMapError

    wrong = int((~answers.right).sum())
    places = top_losses([answers], min(wrong, MOST_MISTAKES))
    reason = ""
    try:
        started = time.perf_counter()
        drawn = draw_heat(trained.network, places[:1], trained.classes, trained.task)
        took = time.perf_counter() - started
        if took * len(places) <= HEAT_SECONDS:
            places = drawn + draw_heat(trained.network, places[1:], trained.classes, trained.task)
        else:
            reason = "Grad-CAM would take long here, and is left to plumbline interpret"
    except NoFeatureMapError as error:
        reason = f"No Grad-CAM: {error}"
    return [_mistake(place) for place in places], reason


def _mistake(place: Any) -> Mistake:
    answers, row = place.answers, place.row
    mistake: Mistake = {
        "image": np.asarray(answers.images[row]),
        "name": answers.names[row],
        "truth": answers.truth[row],
        "labels": answers.labels[row],
        "confidence": float(answers.sure[row]),
    }
    if place.heat is not None:
        mistake["heat"] = place.heat
    return mistake
