"""Evidently's own verdict on a window, to hold against its rule as it is written out in `peers`."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd

from monitor_parts.peers import PREDICTED, EvidentlyDefault, Sample
from monitoring.evidence import STREAMS

os.environ["DO_NOT_TRACK"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset


def largest_difference(reference: Sample, window: Sample) -> float:
    """Of the seven columns, between its figures and those of `EvidentlyDefault`.

    Distances, or for a reference of up to 1,000 rows p-values.
    """
    theirs = _columns(reference, window)
    rule = EvidentlyDefault(reference, 0)
    found = np.array(rule.columns(window))
    its = found if rule.by_distance else 10**-found
    return float(np.abs(its - theirs).max())


def _columns(reference: Sample, window: Sample) -> np.ndarray:
    numbers = [name for name in STREAMS if name != STREAMS[PREDICTED]]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=[STREAMS[PREDICTED]])
    sets = [
        Dataset.from_pandas(pd.DataFrame(its.vectors, columns=STREAMS), definition)
        for its in (window, reference)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = Report([DataDriftPreset()]).run(*sets).dict()["metrics"]
    values = {its["config"].get("column"): its["value"] for its in metrics}
    return np.array([float(values[name]) for name in STREAMS])
