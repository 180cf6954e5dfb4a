"""From a trained network to a registered bundle: export, decide, calibrate, check, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import (
    CONFORMAL_SETS,
    OUTLIER,
    REFERENCE,
    REPORT,
    TRUTH,
    Bundle,
    ForeignMeasure,
    Manifest,
    OutlierSummary,
    SetsSummary,
    save_arrays,
)
from model.conformal_sets import ConformalSets
from model.decision import (
    decide,
)
from model.embedding import EmbeddingPart
from model.engines import Outputs
from model.engines.openvino_engine import OpenVinoEngine
from model.errors import DataError
from model.store import ModelStore
from model.whole_embedding import WholeEmbedding
from monitoring.discrepancy import write_discrepancy
from monitoring.outlier import BANK_LIMIT, NEIGHBOURS
from monitoring.sampling import usual_sampler
from monitoring.truth import truth_arrays
from training.conformal import summarise_sets
from training.cross_fitting import FOLDS
from training.deciding import Decided, decide_by, is_cross_fitted, labels_before_flags
from training.engine_runs import EngineRun, openvino_engine, run_openvino, run_torch
from training.evaluate import assess, headline_metrics, run_engine
from training.export import check_exports, export_network, remove_int8, run_network
from training.findings import Findings, Rows, SplitOutputs, Trained
from training.gates import gives_the_labels, hold_to_torch
from training.metrics import has_label, share_of
from training.model_card import write_model_card
from training.reference import outlier_arrays, write_reference
from training.self_check import (
    GIVEN,
    ForeignKind,
    check_outlier_score,
    deal_halves,
    made_foreign_images,
)

EXPORT_CHECK_IMAGES = 64
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
        whole = WholeEmbedding(trained.network)
        export_network(whole, directory, trained.input.size)
        findings = _find_out(trained, whole, directory, say)
        sets, sets_summary = _prediction_sets(trained, findings)
        say("writing the bundle")
        manifest = _manifest(trained, version, findings, sets_summary)
        save_arrays(directory / OUTLIER, outlier_arrays(trained, findings))
        save_arrays(directory / CONFORMAL_SETS, sets.to_arrays())
        write_reference(directory / REFERENCE, manifest, trained, findings)
        write_discrepancy(directory, usual_sampler())
        save_arrays(directory / TRUTH, truth_arrays(trained.calibration.targets))
        write_model_card(directory / REPORT, manifest, trained, findings)
        seal(manifest)
    for name, gate in manifest.engines.items():
        if not gate.passed:
            say(f"the engine {name} did not pass its gate and is refused: {gate.reason}")
    for name, reason in manifest.engines_left_out.items():
        say(f"the engine {name} is left out: {reason}")
    return store.load(store.find(manifest.tag))


def _check_splits(trained: Trained) -> None:
    count = len(_of_the_domain(trained))
    if count < 2 * NEIGHBOURS:
        raise DataError(f"{count} images to fit on; at least {2 * NEIGHBOURS} are needed")
    for name in ("validation", "calibration"):
        if not len(getattr(trained, name)):
            raise DataError(f"the {name} split has no images; give more images, or other splits")


def _find_out(
    trained: Trained, whole: WholeEmbedding, directory: Path, say: Callable[[str], None]
) -> Findings:
    """Choose the precision, then everything that depends on the outputs it gives."""
    by_torch = run_network(whole, trained.validation.images)
    first = trained.validation.images[:EXPORT_CHECK_IMAGES]
    check_exports(directory, first, Outputs(*(part[: len(first)] for part in by_torch)))
    if trained.int8:
        say("quantising to int8")
    runs, left_out = run_openvino(trained, directory)
    decided_by, outputs, decided = _choose_precision(trained, whole, directory, by_torch, runs, say)
    decider = decided.decider
    if decided.threshold is not None:
        say(decided.threshold.sentence)
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
    flags = {kind: decider.flags(its) for kind, its in outputs.foreign_reported.items()}
    return Findings(
        decider=decider,
        choice=decided.threshold,
        none=decided.none,
        self_check=check_outlier_score(decided.outlier, decided.foreign, flags),
        gates=gates,
        outputs=outputs,
        test_metrics=test_metrics,
        validation_metrics=validation_metrics,
        engines_left_out={**left_out, **torch_left_out},
        decided_by=decided_by,
    )


def _choose_precision(
    trained: Trained,
    whole: WholeEmbedding,
    directory: Path,
    by_torch: Outputs,
    runs: Sequence[EngineRun],
    say: Callable[[str], None],
) -> tuple[str, SplitOutputs, Decided]:
    """The fastest that passes its gate with decisions fitted to its own outputs, else float32."""
    exact = next(run for run in runs if run.precision == "f32")
    for run in runs:
        # Asked first: it costs seconds, and running every split may take minutes.
        if run is exact or gives_the_labels(*labels_before_flags(trained, run.outputs, by_torch)):
            say(f"running every split with OpenVINO {run.precision}")
            engine = openvino_engine(directory, run.precision)
            outputs = _run_splits(trained, engine, run.outputs, whole.parts)
            say("calibrating, choosing, tuning, checking")
            decided = decide_by(trained, outputs)
            gate = hold_to_torch(run, by_torch, trained.validation, decided.decider)
            if run is exact or gate.passed:
                break
    return run.key, outputs, decided


def _run_splits(
    trained: Trained,
    engine: OpenVinoEngine,
    on_validation: Outputs,
    parts: tuple[EmbeddingPart, ...],
) -> SplitOutputs:
    fit_rows = _of_the_domain(trained).sample(2 * BANK_LIMIT, trained.seed).distinct()
    made = made_foreign_images(trained.validation.images, np.random.default_rng(trained.seed))
    given = {} if trained.foreign is None else {GIVEN: trained.foreign}
    foreign = {kind: run_engine(engine, images) for kind, images in (made | given).items()}
    chooses, reported = deal_halves(foreign, trained.seed)
    return SplitOutputs(
        fit_rows=fit_rows,
        fit=run_engine(engine, fit_rows.images),
        validation=on_validation,
        calibration=run_engine(engine, trained.calibration.images),
        test=run_engine(engine, trained.test.images) if len(trained.test) else None,
        foreign=chooses,
        foreign_reported=reported,
        parts=parts,
    )


def _of_the_domain(trained: Trained) -> Rows:
    """Rows to fit the outlier score on: negatives of a single-label model are none of them."""
    if trained.task == "multi":
        return trained.fit
    labelled = np.flatnonzero(trained.fit.targets >= 0)
    return trained.fit if len(labelled) == len(trained.fit) else trained.fit.take(labelled)


def _prediction_sets(trained: Trained, findings: Findings) -> tuple[ConformalSets, SetsSummary]:
    """Fitted on the calibration split; measured on test, or on validation where there is none."""
    decider, outputs = findings.decider, findings.outputs
    sets = ConformalSets.fit(
        decider.probabilities(outputs.calibration), trained.calibration.targets, trained.task
    )
    if outputs.test is None:
        chances, rows = decider.probabilities(outputs.validation), trained.validation
        return sets, summarise_sets(sets, chances, rows.targets, trained.task, "validation")
    chances, rows = decider.probabilities(outputs.test), trained.test
    return sets, summarise_sets(sets, chances, rows.targets, trained.task, "test")


def _manifest(
    trained: Trained, version: str, findings: Findings, prediction_sets: SetsSummary
) -> Manifest:
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
        embedding_parts=findings.outputs.parts,
        input=trained.input,
        calibration=decider.calibration,
        thresholds=decider.thresholds,
        threshold_evidence=_threshold_evidence(trained, findings),
        outlier=_outlier_summary(trained, findings),
        engines=findings.gates,
        engines_left_out=dict(findings.engines_left_out),
        decided_by=findings.decided_by,
        metrics=headline_metrics(metrics),
        metrics_split="validation" if findings.test_metrics is None else "test",
        prediction_sets=prediction_sets,
        data=trained.data,
        intended_use=trained.intended_use,
        training=dict(trained.settings),
        libraries={name: library_version(name) for name in LIBRARIES},
    )


def _threshold_evidence(trained: Trained, findings: Findings) -> dict[str, Any]:
    """How the threshold was chosen, on how many images of which split; empty where there is none.

    `none_share_of_unlabelled`: of the validation rows without a label, the share that rightly
    gets none; null where there are no such rows.
    """
    chosen = findings.none or findings.choice
    if chosen is None:
        return {}
    decider, targets = findings.decider, trained.validation.targets
    chances = decider.probabilities(findings.outputs.validation)
    labels = decide(chances, decider.thresholds, decider.classes, decider.task)
    truth = decider.label_names(targets)
    unlabelled = [not given for given, true in zip(labels, truth, strict=True) if not true]
    judged = has_label(targets, trained.task)
    evidence = {**chosen.to_dict(), "split": "validation", "images": int(judged.sum())}
    if not unlabelled:
        return {**evidence, "none_share_of_unlabelled": None}
    share = share_of(sum(unlabelled), len(unlabelled))
    return {
        **evidence,
        "none_share_of_unlabelled": share.value,
        "none_share_of_unlabelled_interval": [share.low, share.high],
        "unlabelled_images": share.count,
    }


def _outlier_summary(trained: Trained, findings: Findings) -> OutlierSummary:
    outlier, alpha = findings.decider.outlier, findings.decider.alpha
    check = findings.self_check
    count = len(outlier.calibration)
    how = f", cross-fitted in {FOLDS} folds" if is_cross_fitted(trained) else ""
    promise = f"{count} calibration images{how}: the smallest rate is {outlier.smallest_alpha:.2g}"
    if outlier.smallest_alpha > alpha:
        promise += f", so at {alpha:g} nothing is ever flagged; set PLUMBLINE_ALPHA higher"
    return OutlierSummary(
        alpha=alpha,
        calibration_images=count,
        smallest_alpha=outlier.smallest_alpha,
        self_check={kind.kind: kind.auroc for kind in check.kinds},
        foreign={kind.kind: _measure(kind) for kind in check.kinds},
        self_check_passed=check.passed,
        statement=f"{check.statement} {promise}.",
        embedding=check.chosen.embedding,
        detector=check.chosen.detector,
        candidates={its.name: dict(its.measured) for its in check.candidates},
        baselines={its.name: dict(its.measured) for its in check.baselines},
    )


def _measure(kind: ForeignKind) -> ForeignMeasure:
    flagged = share_of(round(kind.flagged_share * kind.images), kind.images)
    return ForeignMeasure(auroc=kind.measured, flagged=flagged)
