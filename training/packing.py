"""From a trained network to a registered bundle: export, decide, calibrate, check, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import (
    OUTLIER,
    REFERENCE,
    REPORT,
    Bundle,
    Manifest,
    OutlierSummary,
    save_arrays,
)
from model.decision import (
    Calibration,
    Thresholds,
    decide,
    probabilities,
)
from model.engines import Outputs
from model.engines.openvino_engine import OpenVinoEngine
from model.errors import DataError
from model.images import Pixels
from model.store import ModelStore
from monitoring.outlier import BANK_LIMIT, NEIGHBOURS, OutlierModel
from training.calibration import fit_platt, fit_temperature
from training.cross_fitting import FOLDS, can_cross_fit, cross_fitted_scores
from training.engine_runs import EngineRun, openvino_engine, run_openvino, run_torch
from training.evaluate import Decider, assess, headline_metrics, run_engine
from training.export import check_exports, export_network, remove_int8, run_network
from training.findings import Findings, SplitOutputs, Trained
from training.gates import gives_the_labels, hold_to_torch
from training.model_card import write_model_card
from training.reference import outlier_arrays, write_reference
from training.self_check import check_outlier_score
from training.thresholds import ThresholdChoice, tune_global_threshold, tune_none_threshold

EXPORT_CHECK_IMAGES = 64
NONE_LABEL_LOSS = 0.01
LIBRARIES = ("torch", "timm", "openvino", "onnx", "numpy", "pillow", "simplejpeg", "bentoml")


def pack(
    trained: Trained, store: ModelStore, say: Callable[[str], None] = lambda message: None
) -> Bundle:
    """Make and register a bundle; it stands in the store whole, or not at all.

    Raises `DataError` for splits too small, `EngineError` when an export does not agree with
    torch, `BundleError` when the files cannot be written.
    """
    _check_splits(trained)
    with store.registering(trained.name) as (version, directory, seal):
        say("exporting")
        export_network(trained.network, directory, trained.input.size)
        findings = _find_out(trained, directory, say)
        say("writing the bundle")
        manifest = _manifest(trained, version, findings)
        save_arrays(directory / OUTLIER, outlier_arrays(trained, findings))
        write_reference(directory / REFERENCE, manifest, trained, findings)
        write_model_card(directory / REPORT, manifest, trained, findings)
        seal(manifest)
    for name, gate in manifest.engines.items():
        if not gate.passed:
            say(f"the engine {name} did not pass its gate and is refused: {gate.reason}")
    for name, reason in manifest.engines_left_out.items():
        say(f"the engine {name} is left out: {reason}")
    return store.load(store.find(manifest.tag))


def _check_splits(trained: Trained) -> None:
    if len(trained.fit) < 2 * NEIGHBOURS:
        raise DataError(
            f"{len(trained.fit)} images to fit on; at least {2 * NEIGHBOURS} are needed"
        )
    for name in ("validation", "calibration"):
        if not len(getattr(trained, name)):
            raise DataError(f"the {name} split has no images; give more images, or other splits")


def _find_out(trained: Trained, directory: Path, say: Callable[[str], None]) -> Findings:
    """Choose the precision, then everything that depends on the outputs it gives."""
    by_torch = run_network(trained.network, trained.validation.images)
    first = trained.validation.images[:EXPORT_CHECK_IMAGES]
    check_exports(directory, first, Outputs(*(part[: len(first)] for part in by_torch)))
    if trained.int8:
        say("quantising to int8")
    runs, left_out = run_openvino(trained, directory)
    run, outputs, decider, choice = _choose_precision(trained, directory, by_torch, runs, say)
    torch_runs, torch_left_out = run_torch(trained, directory)
    gates = {
        its.key: hold_to_torch(its, by_torch, trained.validation, decider)
        for its in (*runs, *torch_runs)
    }
    if "openvino-int8" in gates and not gates["openvino-int8"].passed:
        remove_int8(directory)
    validation_metrics = assess(decider, outputs.validation, trained.validation.targets)
    test_metrics = None
    if outputs.test is not None:
        test_metrics = assess(decider, outputs.test, trained.test.targets)
    engine = openvino_engine(directory, run.precision)

    def judge(images: Pixels) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        foreign = run_engine(engine, images)
        return decider.scores(foreign), decider.flags(foreign)

    return Findings(
        decider=decider,
        choice=choice,
        self_check=check_outlier_score(
            trained.validation.images, decider.scores(outputs.validation), judge, seed=trained.seed
        ),
        gates=gates,
        outputs=outputs,
        test_metrics=test_metrics,
        validation_metrics=validation_metrics,
        engines_left_out={**left_out, **torch_left_out},
    )


def _choose_precision(
    trained: Trained,
    directory: Path,
    by_torch: Outputs,
    runs: Sequence[EngineRun],
    say: Callable[[str], None],
) -> tuple[EngineRun, SplitOutputs, Decider, ThresholdChoice | None]:
    """The fastest that passes its gate with decisions fitted to its own outputs, else float32."""
    exact = next(run for run in runs if run.precision == "f32")
    for run in runs:
        if run is exact or _gives_the_labels(trained, run, by_torch):
            say(f"running every split with OpenVINO {run.precision}")
            engine = openvino_engine(directory, run.precision)
            outputs = _run_splits(trained, engine, run.outputs)
            say("calibrating, tuning, checking")
            decider, choice = _decider(trained, outputs)
            gate = hold_to_torch(run, by_torch, trained.validation, decider)
            if run is exact or gate.passed:
                break
    return run, outputs, decider, choice


def _gives_the_labels(trained: Trained, run: EngineRun, by_torch: Outputs) -> bool:
    """Asked first: it costs seconds, and running every split may take minutes."""
    calibration, thresholds, _ = _calibrate_and_tune(trained, run.outputs)
    labels, expected = (
        decide(
            probabilities(its.logits, calibration, trained.task),
            thresholds,
            trained.classes,
            trained.task,
        )
        for its in (run.outputs, by_torch)
    )
    return gives_the_labels(labels, expected)


def _run_splits(trained: Trained, engine: OpenVinoEngine, on_validation: Outputs) -> SplitOutputs:
    fit_rows = trained.fit.sample(2 * BANK_LIMIT, trained.seed).distinct()
    return SplitOutputs(
        fit_rows=fit_rows,
        fit=run_engine(engine, fit_rows.images),
        validation=on_validation,
        calibration=run_engine(engine, trained.calibration.images),
        test=run_engine(engine, trained.test.images) if len(trained.test) else None,
    )


def _decider(trained: Trained, outputs: SplitOutputs) -> tuple[Decider, ThresholdChoice | None]:
    calibration, thresholds, choice = _calibrate_and_tune(trained, outputs.validation)
    outlier = OutlierModel.fit(outputs.fit.embedding, outputs.fit.logits, seed=trained.seed)
    decider = Decider(
        trained.task, trained.classes, calibration, thresholds, outlier, trained.alpha
    )
    calibrated = outlier.calibrated(_conformal_scores(trained, outputs, decider))
    return (
        Decider(trained.task, trained.classes, calibration, thresholds, calibrated, trained.alpha),
        choice,
    )


def _conformal_scores(
    trained: Trained, outputs: SplitOutputs, decider: Decider
) -> NDArray[np.float32]:
    """Of the calibration split; of small data of every image to fit on or calibrate with."""
    if not _is_cross_fitted(trained):
        return decider.scores(outputs.calibration)
    parts = (outputs.fit, outputs.fit_rows), (outputs.calibration, trained.calibration)
    return cross_fitted_scores(
        np.concatenate([given.embedding for given, _ in parts]),
        np.concatenate([rows.targets for _, rows in parts]),
        class_count=len(trained.classes),
        task=trained.task,
        seed=trained.seed,
    )


def _is_cross_fitted(trained: Trained) -> bool:
    return trained.is_body_frozen and can_cross_fit(len(trained.calibration), len(trained.fit))


def _calibrate_and_tune(
    trained: Trained, validation: Outputs
) -> tuple[Calibration, Thresholds, ThresholdChoice | None]:
    targets = trained.validation.targets
    if trained.task == "multi":
        calibration = fit_platt(validation.logits, targets)
        chances = probabilities(validation.logits, calibration, "multi")
        choice = tune_global_threshold(chances, targets, seed=trained.seed)
        return calibration, choice.to_thresholds(), choice
    labelled = targets >= 0
    calibration = fit_temperature(validation.logits[labelled], targets[labelled])
    if not trained.none_allowed:
        return calibration, Thresholds(objective="most probable class"), None
    chances = probabilities(validation.logits[labelled], calibration, "single")
    choice = tune_none_threshold(
        chances, targets[labelled], in_class_loss=NONE_LABEL_LOSS, seed=trained.seed
    )
    return calibration, choice.to_thresholds(), choice


def _manifest(trained: Trained, version: str, findings: Findings) -> Manifest:
    decider = findings.decider
    metrics = findings.test_metrics or findings.validation_metrics
    return Manifest(
        name=trained.name,
        version=version,
        created=datetime.now(UTC),
        task=trained.task,
        none_allowed=trained.none_allowed,
        classes=trained.classes,
        architecture=trained.architecture,
        embedding_size=findings.outputs.validation.embedding.shape[1],
        input=trained.input,
        calibration=decider.calibration,
        thresholds=decider.thresholds,
        threshold_evidence=_threshold_evidence(trained, findings),
        outlier=_outlier_summary(trained, findings),
        engines=findings.gates,
        engines_left_out=dict(findings.engines_left_out),
        metrics=headline_metrics(metrics),
        metrics_split="validation" if findings.test_metrics is None else "test",
        data=trained.data,
        training=dict(trained.settings),
        libraries={name: library_version(name) for name in LIBRARIES},
    )


def _threshold_evidence(trained: Trained, findings: Findings) -> dict[str, Any]:
    """How the threshold was chosen; empty where there is none.

    `none_share_of_unlabelled`: of the validation rows without a label, the share that rightly
    gets none; null where there are no such rows.
    """
    if findings.choice is None:
        return {}
    decider, targets = findings.decider, trained.validation.targets
    chances = decider.probabilities(findings.outputs.validation)
    labels = decide(chances, decider.thresholds, decider.classes, decider.task)
    truth = decider.label_names(targets)
    unlabelled = [not given for given, true in zip(labels, truth, strict=True) if not true]
    share = float(np.mean(unlabelled)) if unlabelled else None
    return {**findings.choice.to_dict(), "none_share_of_unlabelled": share}


def _outlier_summary(trained: Trained, findings: Findings) -> OutlierSummary:
    outlier = findings.decider.outlier
    count = len(outlier.calibration)
    how = f", cross-fitted in {FOLDS} folds" if _is_cross_fitted(trained) else ""
    promise = f"{count} calibration images{how}: the smallest rate is {outlier.smallest_alpha:.2g}"
    if outlier.smallest_alpha > trained.alpha:
        promise += f", so at {trained.alpha:g} nothing is ever flagged; set PLUMBLINE_ALPHA higher"
    return OutlierSummary(
        alpha=trained.alpha,
        calibration_images=count,
        smallest_alpha=outlier.smallest_alpha,
        self_check={kind.kind: kind.auroc for kind in findings.self_check.kinds},
        self_check_passed=findings.self_check.passed,
        statement=f"{findings.self_check.statement} {promise}.",
    )
