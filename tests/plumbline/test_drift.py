"""The traffic that `plumbline drift` plays really changes, and stays images."""

from __future__ import annotations

import numpy as np
import pytest

from model.errors import MonitorError
from plumbline.drift import MonitorPages, change

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)


@pytest.mark.parametrize("kind", ["dark", "blur", "noise", "foreign"])
def test_a_change_changes_and_keeps_shape_and_type(kind):
    changed = change(kind, PIXELS, np.random.default_rng(1))
    assert (changed.shape, changed.dtype) == (PIXELS.shape, np.uint8)
    assert not np.array_equal(changed, PIXELS)


def test_dark_halves_brightness_and_clean_changes_nothing():
    random = np.random.default_rng(1)
    assert change("dark", PIXELS, random).mean() == pytest.approx(PIXELS.mean() / 2, abs=0.5)
    assert np.array_equal(change("clean", PIXELS, random), PIXELS)


def test_no_monitor_is_told_with_how_to_start_it():
    with pytest.raises(MonitorError, match="make up"):
        MonitorPages("http://127.0.0.1:9").status()
