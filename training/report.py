"""The model card as one HTML file: what was learned, how well, and where not to rely on it.

It stands alone: no scripts, no fonts, nothing fetched. Light and dark follow the reader's system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from training.charts import Chart, Series, draw, legend
from training.confusions import Confusion
from training.metrics import wilson_interval
from training.pages import data_uri, templates, thumbnail, write_page
from training.report_data import Array, Mistake, OutlierCheck, ReadBy, ReportData
from training.thresholds import ThresholdChoice
from training.wrong_labels import WrongLabel

MOST_CLASSES_IN_MATRIX = 30
MOST_CONFUSIONS = 8
MOST_MISTAKES = 24
SPLITS = ("fit", "validation", "calibration", "test")
SPLIT_USE = {
    "fit": "learns the weights",
    "validation": "makes every choice",
    "calibration": "sets the outlier flag, nothing else",
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
            learning=_learning_figures(report),
            time_taken=time_taken(report),
            confusion=confusion_table(shown, report.confused),
            tables=two_by_two(shown),
            confusion_pairs=report.confused[:MOST_CONFUSIONS],
            slices=report.slices,
            label_checks=report.label_checks,
            wrong_labels=[wrong_label(each) for each in report.wrong_labels],
            figures=_figures(report),
            reliability=_reliability_figure(report),
            threshold=_threshold_figure(report.thresholds),
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
        figure=_figure,
        thousands=_thousands,
        plain=_plain,
        labels=_labels,
        short=_short,
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
        return f"No {_words(name)} could be computed on {shown['count']:,} {split} images"
    if name == "accuracy":
        text = f"Gets {percent(value)} of {shown['count']:,} {split} images right"
        return text + (f" (95 % interval {_span(interval, percent)})" if interval else "")
    text = f"Reaches a macro F1 of {_figure(value)} on {shown['count']:,} {split} images"
    return text + (f" (95 % interval {_span(interval, _figure)})" if interval else "")


# -- figures as text -------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """A share as a percentage, or a dash.

    >>> percent(0.9264)
    '92.6\\xa0%'
    """
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _short(value: float) -> str:
    """Three digits for shares, whole numbers for pixels.

    >>> _short(0.0712), _short(640.0)
    ('0.0712', '640')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _span(interval: Sequence[float], written: Any) -> str:
    return f"{written(interval[0])} to {written(interval[1])}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value) or "none"
    return "not set" if value is None else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _labels(names: Sequence[str]) -> str:
    return ", ".join(names) or "none of the classes"


# -- headline ---------------------------------------------------------------------------------

# metric: label, what it says, how it is written
_TILES: dict[str, tuple[str, str, Any]] = {
    "accuracy": ("Accuracy", "images answered rightly", percent),
    "macro_f1": ("Macro F1", "precision and recall, every class alike", _figure),
    "micro_f1": ("Micro F1", "precision and recall, every label alike", _figure),
    "map": ("Mean average precision", "ranking, before any threshold", _figure),
    "macro_f1_at_half": ("Macro F1 at 0.5", "without a tuned threshold", _figure),
    "accuracy_multi": ("Label accuracy at 0.5", "flatters where labels are rare", percent),
    "ece": ("Calibration error", "0 is perfect: stated against observed", _figure),
    "brier": ("Brier score", "0 is perfect: distance to the outcome", _figure),
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
        "interval": None if interval is None else _span(interval, written),
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


def _learning_figures(report: ReportData) -> list[dict[str, Any]]:
    figures = [_loss_figure(report), _metric_figure(report), _rate_figure(report)]
    return [each for each in figures if each is not None]


def time_taken(report: ReportData) -> str | None:
    """How long the epochs took, in words; None where that was not measured."""
    seconds = [epoch["seconds"] for epoch in report.epochs if "seconds" in epoch]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    return f"{len(seconds)} epochs of {mean:,.1f} s each, {sum(seconds):,.0f} s in all."


def _loss_figure(report: ReportData) -> dict[str, Any] | None:
    losses = np.asarray(report.step_losses, np.float64)
    finite = np.isfinite(losses)
    series = _by_epoch(report, "valid_loss", "validation loss")
    if finite.any():
        steps = np.arange(1, len(losses) + 1)[finite]
        series.insert(0, Series("training loss, smoothed", steps, smooth(losses[finite])))
    if not series:
        return None
    # The first steps of a fresh network would squeeze the rest flat.
    top = 1.15 * max(float(np.quantile(each.y, 0.98)) for each in series)
    low = 0.9 * min(float(each.y.min()) for each in series)
    shown = [replace(each, y=np.minimum(each.y, top)) for each in series]
    return _step_figure("Loss", shown, y_range=(low, top) if top > low else None)


def _metric_figure(report: ReportData) -> dict[str, Any] | None:
    name = f"Validation {_words(report.metric_name)}"
    series = _by_epoch(report, "metric", name)
    return _step_figure(name, series) if series else None


def _rate_figure(report: ReportData) -> dict[str, Any] | None:
    rates = np.asarray(report.learning_rates, np.float64)
    series = [Series("learning rate", np.arange(1, len(rates) + 1), rates)]
    return _step_figure("Learning rate", series) if rates.size else None


def _by_epoch(report: ReportData, key: str, name: str) -> list[Series]:
    pairs = [(epoch.get("step"), epoch.get(key)) for epoch in report.epochs]
    points = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return [Series(name, points[:, 0], points[:, 1], "dots", 2)] if len(points) else []


def _step_figure(
    title: str, series: Sequence[Series], *, y_range: tuple[float, float] | None = None
) -> dict[str, Any]:
    last = max(float(each.x.max()) for each in series)
    chart = Chart(f"{title} by training step", "step", "", series, (0.0, last), y_range)
    return _figure_of(title, chart)


def smooth(values: Array) -> Array:
    """Mean over the last few steps, a fiftieth of them all; as long as `values`.

    >>> smooth(np.array([4.0, 2.0])).tolist()
    [4.0, 2.0]
    """
    window = max(1, len(values) // 50)
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def _figure_of(title: str, chart: Chart) -> dict[str, Any]:
    key = legend(chart.series) if len(chart.series) > 1 else Markup("")
    return {"title": title, "svg": draw(chart), "legend": key}


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


def _reliability_figure(report: ReportData) -> dict[str, Any] | None:
    series = [Series("perfect", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "dashed", 0)]
    for name, points, colour in (
        ("before calibration", report.reliability_before, 2),
        ("after calibration", report.reliability_after, 1),
    ):
        if points is not None:
            series.append(Series(name, points.confidence, points.frequency, "dots", colour))
    if len(series) == 1:
        return None
    whole = (0.0, 1.0)
    chart = Chart(
        "Reliability diagram: observed frequency by stated probability",
        *("stated probability", "observed frequency", series, whole, whole),
    )
    return _figure_of("Reliability diagram", chart)


def _threshold_figure(choice: ThresholdChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    grid = np.asarray(choice.grid)
    label = choice.curve_name
    series = [Series(label, grid, np.asarray(choice.smoothed))]
    if choice.curve != choice.smoothed:
        series = [
            Series("as measured", grid, np.asarray(choice.curve), "faint", 2),
            Series("smoothed", grid, np.asarray(choice.smoothed)),
        ]
    marks = [(choice.value, f"chosen {choice.value:.2f}")]
    if abs(choice.value - 0.5) > 0.02:
        marks.append((0.5, "0.5"))
    chart = Chart(
        f"{label} by threshold",
        *("threshold", label, series, (0.0, 1.0)),
        y_range=(0.0, max(1.0, max(choice.curve))) if len(series) == 1 else None,
        band=choice.plateau,
        marks=marks,
    )
    return _figure_of("Threshold", chart)


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
        "rate_interval": _span(wilson_interval(flagged or 0, rows or 1), percent) if known else "",
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
