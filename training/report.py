"""The model card as one HTML file: what was learned, how well, and where not to rely on it.

It stands alone: no scripts, no fonts, nothing fetched. Light and dark follow the reader's system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from training.confusions import Confusion
from training.metrics import wilson_interval
from training.pages import data_uri, templates, thumbnail, write_page
from training.report_data import Mistake, OutlierCheck, ReadBy, ReportData
from training.report_figures import learning_figures, reliability_figure, threshold_figure
from training.report_text import figure, labels, percent, plain, short, span, thousands, words
from training.thresholds import ThresholdChoice
from training.wrong_labels import WrongLabel

MOST_CLASSES_IN_MATRIX = 30
MOST_CONFUSIONS = 8
MOST_MISTAKES = 24
SPLITS = ("fit", "validation", "calibration", "test")
SPLIT_USE = {
    "fit": "learns the weights",
    "validation": "makes every choice",
    "calibration": "sets the outlier flag, prediction sets and what drift is held to",
    "test": "reported once",
}


def write_report(path: Path | str, report: ReportData) -> None:
    """Write the report to `path`, whole or not at all.

    Raises OSError when the file cannot be written.
    """
    write_page(path, render(report))


def render(report: ReportData) -> str:
    """The report as one HTML document."""
    shown = report.metrics or report.validation_metrics
    return (
        report_templates()
        .get_template("report.html")
        .render(
            report=report,
            verdict=report.verdict or verdict(report),
            shown=shown,
            shown_split="test" if report.metrics else report.reliability_split,
            tiles=metric_tiles(shown, report.validation_metrics if report.metrics else None),
            splits=_splits(report),
            class_rows=_class_rows(report),
            learning=learning_figures(report),
            time_taken=time_taken(report),
            confusion=confusion_table(shown, report.confused),
            tables=two_by_two(shown),
            confusion_pairs=report.confused[:MOST_CONFUSIONS],
            slices=report.slices,
            label_checks=report.label_checks,
            wrong_labels=[wrong_label(each) for each in report.wrong_labels],
            figures=_figures(report),
            reliability=reliability_figure(report),
            threshold=threshold_figure(report.thresholds),
            threshold_evidence=_threshold_evidence(report.thresholds),
            class_thresholds=_class_thresholds(report.thresholds),
            outlier=_outlier(report.outlier),
            mistakes=[_mistake(each) for each in report.mistakes[:MOST_MISTAKES]],
        )
    )


def report_templates() -> Environment:
    """The templates, with figures as this report writes them."""
    environment = templates()
    environment.filters.update(
        percent=percent,
        figure=figure,
        thousands=thousands,
        plain=plain,
        labels=labels,
        short=short,
    )
    return environment


def verdict(report: ReportData) -> str:
    """One sentence: how good, on what evidence, and how it treats foreign images."""
    shown = report.metrics or report.validation_metrics
    if shown is None:
        return "Nothing was measured: neither test nor validation figures were given."
    parts = [how_good(shown, "test" if report.metrics else "validation")]
    if not report.metrics:
        parts.append(
            "which is optimistic, since no test split was given and validation made the choices"
        )
    if report.outlier and "passed" in report.outlier:
        parts.append(
            "and its self-check on foreign images passes"
            if report.outlier["passed"]
            else "but its self-check on foreign images fails: do not rely on its outlier flag"
        )
    return ", ".join(parts) + "."


def how_good(shown: Mapping[str, Any], split: str) -> str:
    """The main figure in words, without a full stop."""
    name = "accuracy" if shown["task"] == "single" else "macro_f1"
    value, interval = shown.get(name), shown.get("intervals", {}).get(name)
    if value is None:
        return f"No {words(name)} could be computed on {shown['count']:,} {split} images"
    if name == "accuracy":
        text = f"Gets {percent(value)} of {shown['count']:,} {split} images right"
        return text + (f" (95 % interval {span(interval, percent)})" if interval else "")
    text = f"Reaches a macro F1 of {figure(value)} on {shown['count']:,} {split} images"
    return text + (f" (95 % interval {span(interval, figure)})" if interval else "")


# -- headline ---------------------------------------------------------------------------------

# metric: label, what it says, how it is written
_TILES: dict[str, tuple[str, str, Any]] = {
    "accuracy": ("Accuracy", "images answered rightly", percent),
    "macro_f1": ("Macro F1", "precision and recall, every class alike", figure),
    "micro_f1": ("Micro F1", "precision and recall, every label alike", figure),
    "map": ("Mean average precision", "ranking, before any threshold", figure),
    "macro_f1_at_half": ("Macro F1 at 0.5", "without a tuned threshold", figure),
    "accuracy_multi": ("Label accuracy at 0.5", "flatters where labels are rare", percent),
    "ece": ("Calibration error", "0 is perfect: stated against observed", figure),
    "brier": ("Brier score", "0 is perfect: distance to the outcome", figure),
    "none_rate": ("No label given", "images left without an answer", percent),
}


def metric_tiles(
    shown: Mapping[str, Any] | None, validation: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The main figures as tiles, those of validation beside them where given."""
    return [
        _tile(name, shown, validation) for name in _TILES if shown is not None and name in shown
    ]


def _tile(
    name: str, shown: Mapping[str, Any], validation: Mapping[str, Any] | None
) -> dict[str, Any]:
    label, meaning, written = _TILES[name]
    interval = shown.get("intervals", {}).get(name)
    before = None if validation is None else validation.get(name)
    return {
        "label": label,
        "meaning": shown.get("reasons", {}).get(name) or meaning,
        "value": written(shown[name]),
        "interval": None if interval is None else span(interval, written),
        "validation": None if before is None else written(before),
    }


_MORE_FIGURES = {
    "accuracy_argmax": "Accuracy of the most probable class",
    "exact_match": "All labels of an image right",
    "flagged_rate": "Flagged as foreign",
}


def _figures(report: ReportData) -> list[dict[str, Any]]:
    """Every single figure of test and validation, with interval, split and count."""
    names = {**{name: its[0] for name, its in _TILES.items()}, **_MORE_FIGURES}
    rows = []
    for split, found in (("test", report.metrics), ("validation", report.validation_metrics)):
        for name, label in names.items():
            if found is None or name not in found:
                continue
            low, high = found.get("intervals", {}).get(name) or (None, None)
            rows.append(
                {
                    "label": label,
                    "split": split,
                    "count": found["count"],
                    "value": found[name],
                    "low": low,
                    "high": high,
                    "reason": found.get("reasons", {}).get(name),
                }
            )
    return rows


# -- data -------------------------------------------------------------------------------------


def _splits(report: ReportData) -> list[dict[str, Any]]:
    """The splits in their order, with size and use; those not given say so."""
    return [
        {"name": name, "use": SPLIT_USE.get(name, ""), "rows": report.split_sizes.get(name)}
        for name in [*SPLITS, *(set(report.split_sizes) - set(SPLITS))]
    ]


def _class_rows(report: ReportData) -> dict[str, Any] | None:
    if not report.counts:
        return None
    names = [name for name in SPLITS if name in report.counts]
    most = max((max(report.counts[name].values(), default=0) for name in names), default=0)
    rows = [
        {"name": each, "counts": [report.counts[name].get(each, 0) for name in names]}
        for each in report.classes
    ]
    return {"splits": names, "rows": rows, "most": max(most, 1)}


# -- learning ---------------------------------------------------------------------------------


def time_taken(report: ReportData) -> str | None:
    """How long the epochs took, in words; None where that was not measured."""
    seconds = [epoch["seconds"] for epoch in report.epochs if "seconds" in epoch]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    return f"{len(seconds)} epochs of {mean:,.1f} s each, {sum(seconds):,.0f} s in all."


# -- confusion --------------------------------------------------------------------------------


def confusion_table(
    shown: Mapping[str, Any] | None, confused: Sequence[Confusion] = ()
) -> dict[str, Any] | None:
    """The matrix of a single-label model, as shares of each row, and its worst pairs.

    The pairs are `confused` where that is given, and else read from the matrix.
    """
    if shown is None or shown["task"] != "single" or not shown.get("confusion"):
        return None
    counts = np.asarray(shown["confusion"]["counts"])
    rows, columns = shown["confusion"]["rows"], shown["confusion"]["columns"]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = counts * (1 - np.eye(*counts.shape, dtype=counts.dtype))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(flat), counts.shape[1]) for flat in worst if wrong.flat[flat]]
    cells = [
        [
            {"count": int(counts[i, j]), "share": round(float(share[i, j]), 3), "right": i == j}
            for j in range(len(columns))
        ]
        for i in range(len(rows))
    ]
    return {
        "columns": columns,
        "rows": list(zip(rows, cells, strict=True)) if len(rows) <= MOST_CLASSES_IN_MATRIX else [],
        "pairs": confused[:MOST_CONFUSIONS]
        or [
            {
                "truth": rows[i],
                "answer": columns[j],
                "count": int(counts[i, j]),
                "share": float(share[i, j]),
            }
            for i, j in pairs
        ],
    }


def two_by_two(shown: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One table of two by two per class of a multi-label model."""
    if shown is None or shown["task"] != "multi" or not shown.get("confusion"):
        return []
    names = shown["confusion"]["rows"]
    return [
        {"name": name, "tn": tn, "fp": fp, "fn": fn, "tp": tp}
        for name, ((tn, fp), (fn, tp)) in zip(names, shown["confusion"]["counts"], strict=True)
    ]


# -- calibration and threshold ----------------------------------------------------------------


def _threshold_evidence(choice: ThresholdChoice | None) -> list[tuple[str, str]]:
    """What the verdict on a threshold rests on, as name and figure, those that there are."""
    if choice is None:
        return []
    name, half = choice.curve_name, choice.half_best_f1
    known = {
        f"{name} on validation": _with_span(choice.score, choice.score_interval),
        f"{name} on rows left out": _with_span(
            choice.score_left_out, choice.score_left_out_interval
        ),
        "spread over re-draws": f"{figure(choice.spread)} ({span(choice.interval, figure)})",
        "plateau width": _with_span(choice.plateau_width, choice.plateau),
        "half of the best F1": None if half is None else figure(half),
        "total variation": figure(choice.total_variation),
    }
    return [(name, value) for name, value in known.items() if value is not None]


def _with_span(value: float | None, interval: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return figure(value) + ("" if interval is None else f" ({span(interval, figure)})")


def _class_thresholds(choice: ThresholdChoice | None) -> list[dict[str, Any]]:
    """Every class's threshold, those of their own first; empty where there is one for all."""
    if choice is None:
        return []
    each = sorted(choice.per_class, key=lambda its: (not its.is_own, -(its.gain or -1.0)))
    return [
        {
            **vars(its),
            "gain_interval": None if its.gain_interval is None else _signed_span(its.gain_interval),
            "gain": None if its.gain is None else f"{its.gain:+.3f}",
        }
        for its in each
    ]


def _signed_span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}"


# -- outliers, mistakes -----------------------------------------------------------------------


def _outlier(check: OutlierCheck | None) -> dict[str, Any] | None:
    if check is None:
        return None
    flagged, rows = check.get("false_positive_count"), check.get("validation_count")
    known = flagged is not None and rows
    return {
        "passed": check.get("passed"),
        "sentence": check.get("sentence", ""),
        "detector": check.get("detector"),
        "embedding": check.get("embedding"),
        "alpha": check.get("alpha"),
        "kinds": sorted(check.get("kinds", []), key=lambda each: each["auroc"]),
        "candidates": _candidates(check.get("candidates", [])),
        "rate": percent(flagged / rows) if flagged is not None and rows else None,
        "rate_interval": span(wilson_interval(flagged or 0, rows or 1), percent) if known else "",
        "rows": rows,
        "promise": _promise(check.get("alpha"), check.get("calibration_count")),
    }


def _candidates(candidates: Sequence[ReadBy]) -> dict[str, Any] | None:
    """What the score could have read, best first; None where there was no choice."""
    if len(candidates) < 2:
        return None
    kinds = list(dict.fromkeys(kind for its in candidates for kind in its["auroc"]))
    ranked = sorted(candidates, key=lambda its: -its["mean"])
    return {
        "kinds": kinds,
        "rows": [{**its, "aurocs": [its["auroc"].get(kind) for kind in kinds]} for its in ranked],
    }


def _promise(alpha: float | None, rows: int | None) -> str:
    """What a conformal flag can keep: its p-values come in steps of 1 / (n + 1)."""
    if alpha is None or rows is None:
        return ""
    steps = int(alpha * (rows + 1) + 1e-9)
    if not steps:
        return (
            f"With {rows:,} calibration images nothing can ever be flagged at {percent(alpha)}: "
            f"the smallest p-value is {percent(1 / (rows + 1))}. "
            f"At least {int(np.ceil(1 / alpha - 1 - 1e-9)):,} are needed."
        )
    return (
        f"With {rows:,} calibration images, at most {100 * steps / (rows + 1):.2f}\u00a0% of "
        "images like those of training are flagged in the long run."
    )


def _mistake(mistake: Mistake) -> dict[str, Any]:
    image, heat = mistake.get("image"), mistake.get("heat")
    return {
        "heat": None if heat is None else data_uri(heat),
        "uri": None if image is None else data_uri(image),
        "name": mistake.get("name", ""),
        "truth": mistake.get("truth", ()),
        "labels": mistake.get("labels", ()),
        "confidence": mistake.get("confidence"),
    }


def wrong_label(wrong: WrongLabel) -> dict[str, Any]:
    """One to look at, with a small picture."""
    return {
        "name": wrong.name,
        "split": wrong.split,
        "label": wrong.label,
        "suggested": wrong.suggested,
        "score": wrong.score,
        "uri": data_uri(thumbnail(wrong.image)),
    }
