"""What the report of a bundle shows: the findings of training, arranged for `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import Manifest
from model.decision import Calibration, confidence, decide, probabilities
from training.calibration import expected_calibration_error, reliability
from training.findings import Findings, Rows, Trained
from training.report import write_report
from training.report_data import EngineRow, Mistake, OutlierCheck, ReportData

MOST_MISTAKES = 12


def write_model_card(path: Path, manifest: Manifest, trained: Trained, findings: Findings) -> None:
    """Write `report.html` of a bundle."""
    rows, logits = _shown(trained, findings)
    before, after = (
        probabilities(logits, its, manifest.task)
        for its in (_uncalibrated(manifest), manifest.calibration)
    )
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
        outlier=_outlier_check(manifest, findings),
        engines=[_engine_row(name, gate) for name, gate in manifest.engines.items()],
        mistakes=_mistakes(rows, after, manifest, findings),
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


def _outlier_check(manifest: Manifest, findings: Findings) -> OutlierCheck:
    validation = findings.outputs.validation
    return {
        "passed": findings.self_check.passed,
        "sentence": manifest.outlier.statement,
        "detector": "KNN + ViM",
        "embedding": "penultimate",
        "alpha": manifest.outlier.alpha,
        "calibration_count": manifest.outlier.calibration_images,
        "false_positive_count": int(findings.decider.flags(validation).sum()),
        "validation_count": len(validation.logits),
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


def _engine_row(name: str, gate: Any) -> EngineRow:
    return {
        "engine": name.partition("-")[0],
        "precision": gate.precision,
        "agreement": gate.label_agreement,
        "accuracy": gate.accuracy,
        "images_per_second": gate.images_per_second,
        "passed": gate.passed,
        "reason": gate.reason,
    }


def _mistakes(
    rows: Rows, chances: NDArray[np.float32], manifest: Manifest, findings: Findings
) -> list[Mistake]:
    """The wrong answers that the model was surest of."""
    labels = decide(chances, manifest.thresholds, manifest.classes, manifest.task)
    sure = confidence(chances, manifest.task)
    truth = findings.decider.label_names(rows.targets)
    wrong = [row for row, given in enumerate(labels) if set(given) != set(truth[row])]
    worst = sorted(wrong, key=lambda row: -sure[row])[:MOST_MISTAKES]
    return [
        {
            "image": np.asarray(rows.images[row]),
            "name": rows.names[row] if rows.names else "",
            "truth": truth[row],
            "labels": labels[row],
            "confidence": float(sure[row]),
        }
        for row in worst
    ]
