"""The true labels of a bundle's reference records, row by row. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import TRUTH, Bundle


def truth_arrays(targets: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """For safetensors: class indices N with -1 for no label, or N x C of 0 and 1."""
    return {"targets": targets.astype(np.uint8 if targets.ndim > 1 else np.int32)}


def true_targets(bundle: Bundle) -> NDArray[Any] | None:
    """As they were given; None where the bundle was made before they were kept."""
    if TRUTH not in bundle.manifest.files:
        return None
    return np.asarray(bundle.arrays(TRUTH)["targets"])


def are_right(given: NDArray[np.bool_], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a single-label image's labels, N x C, are the true ones, N.

    >>> are_right(np.array([[True, False], [False, False]]), np.array([1, -1])).tolist()
    [False, True]
    """
    return np.asarray((given == as_matrix(targets, given.shape[1])).all(axis=1))


def mistakes(
    given: NDArray[np.bool_], targets: NDArray[Any], *, none_allowed: bool
) -> NDArray[np.int8]:
    """Whether labels given, N x C, differ from the true ones: 1, else 0.

    -1 where the truth is not known: a row without a label, of a model that always gives one.

    >>> given = np.array([[True, False], [True, False], [False, True]])
    >>> mistakes(given, np.array([0, 1, -1]), none_allowed=False).tolist()
    [0, 1, -1]
    """
    found = np.asarray((given != as_matrix(targets, given.shape[1])).any(axis=1), np.int8)
    if targets.ndim == 1 and not none_allowed:
        found[targets < 0] = -1
    return found


def as_matrix(targets: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """True labels, N x C."""
    if targets.ndim > 1:
        return np.asarray(targets, bool)
    return np.asarray(targets[:, None] == np.arange(classes))
