"""The charts of the report: how it learned, reliability, and the curve of a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from training.charts import Chart, Series, draw, legend
from training.report_data import Array, ReportData
from training.report_text import words
from training.thresholds import ThresholdChoice


def learning_figures(report: ReportData) -> list[dict[str, Any]]:
    """Loss, metric and learning rate by step; what was not recorded is left out."""
    figures = [_loss_figure(report), _metric_figure(report), _rate_figure(report)]
    return [each for each in figures if each is not None]


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
    name = f"Validation {words(report.metric_name)}"
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


def reliability_figure(report: ReportData) -> dict[str, Any] | None:
    """Observed frequency by stated probability, before and after calibration."""
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


def threshold_figure(choice: ThresholdChoice | None) -> dict[str, Any] | None:
    """What a threshold gives, with the plateau and the choice; None where nothing was chosen."""
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
