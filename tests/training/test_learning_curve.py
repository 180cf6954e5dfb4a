"""What the learning curve claims: nested shares, and a sentence that follows from the points."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.learning_curve import Point, judge, picture, share_rows
from training.loading import NONE_OF_THEM


def test_larger_shares_hold_the_smaller_ones_and_every_class() -> None:
    targets = np.array([0] * 80 + [1] * 16 + [2] + [NONE_OF_THEM] * 5)
    small, half, whole = (set(share_rows(targets, share, 7)) for share in (0.125, 0.5, 1.0))
    assert small < half < whole
    assert whole == set(range(97))
    counts = np.bincount(targets[sorted(small)])
    assert counts.tolist() == [10, 2, 1]


def test_rows_with_several_labels_are_shared_by_their_rarest() -> None:
    targets = np.zeros((40, 2), np.float32)
    targets[:, 0] = 1
    targets[:4, 1] = 1
    chosen = share_rows(targets, 0.5, 0)
    assert targets[chosen].sum(axis=0).tolist() == [20, 2]


def points(*metrics: float) -> list[Point]:
    return [Point(0.25 * 2**i, 250 * 2**i, metric) for i, metric in enumerate(metrics)]


def test_an_error_that_halves_with_the_data_asks_for_more() -> None:
    curve = judge("accuracy", 2000, points(0.6, 0.8, 0.9))
    assert curve.more_helps is True
    assert curve.expected_at_twice == pytest.approx(0.95)
    assert "twice as many are expected to reach 0.950" in curve.sentence
    assert picture(curve).count("<polyline") == 2  # what was measured, and what is expected


def test_a_flat_end_does_not() -> None:
    assert judge("accuracy", 2000, points(0.88, 0.9, 0.9)).more_helps is False
    assert judge("accuracy", 2000, points(0.9, 0.88, 0.85)).expected_at_twice is None


def test_a_gain_within_chance_is_too_close_to_call() -> None:
    curve = judge("accuracy", 50, points(0.7, 0.76, 0.8))
    assert curve.more_helps is None
    assert "too close to call" in curve.sentence


@pytest.mark.slow
def test_the_command_trains_on_each_share_and_draws(
    few_garments: Path, tmp_path: Path, run_plumbline: Callable[..., Any]
) -> None:
    # Few steps: at the rate of a whole training their end would be chance.
    short = (
        "--epochs",
        "2",
        "--learning-rate",
        "0.05",
        "--batch-size",
        "64",
        "--precision",
        "fp32",
    )
    command = ("learning-curve", "--data", few_garments, *short, "--shares")
    out = tmp_path / "curve.svg"
    done = run_plumbline(*command, "0.25,1", "--out", out, "--json", home=tmp_path)
    curve = json.loads(done.stdout)
    first, last = curve["points"]
    assert last["images"] > 3.8 * first["images"]
    assert 0.1 < first["metric"] < last["metric"] < 1
    assert out.read_text(encoding="utf-8").startswith("<svg")
    wrong = run_plumbline(*command, "1,0.5", home=tmp_path, check=False)
    assert wrong.returncode == 2
    assert "valid are two or more that rise" in wrong.stderr
