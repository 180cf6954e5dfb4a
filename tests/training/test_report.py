"""The report shows what it was given, says what is missing, and cannot be broken by a name."""

from __future__ import annotations

import io
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.conformal_sets import ConformalSets
from model.decision import Calibration, Thresholds
from training.calibration import reliability
from training.charts import Chart, Series, draw, nice_ticks
from training.class_thresholds import ClassThreshold
from training.conformal import summarise_sets
from training.metrics import evaluate
from training.none_choice import Judged, choose_none
from training.report import render, verdict, write_report
from training.report_data import ReportData
from training.report_figures import smooth
from training.thresholds import tune_global_threshold

HOSTILE = "<script>alert('1')</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects the text and attributes of a page, and complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"closed but never opened: {tag}"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += " " + data


def single(classes: list[str] | None = None, **changes: Any) -> ReportData:
    classes = classes or ["cat", "dog", "owl"]
    rng = np.random.default_rng(0)
    targets = rng.integers(len(classes), size=400)
    table = np.exp(rng.normal(0, 1, (400, len(classes))) + 3 * np.eye(len(classes))[targets])
    table /= table.sum(axis=1, keepdims=True)
    # As where every image may be flagged; the threshold alone takes the loss.
    choice = choose_none(Judged(table.max(axis=1), np.ones(len(table))), []).threshold
    found = evaluate(
        table, targets, classes=classes, thresholds=choice.to_thresholds(), task="single"
    )
    whole = ReportData(
        name="pets",
        version="pets:20260101-0a1b2c3d",
        created="2026-01-01 12:00 UTC",
        task="single",
        classes=classes,
        metrics=found,
        validation_metrics=found,
        counts={"fit": dict.fromkeys(classes, 70), "test": dict.fromkeys(classes, 30)},
        split_sizes={"fit": 210, "validation": 50, "calibration": 50, "test": 400},
        notes=["calibration is a seeded half of validation"],
        step_losses=np.linspace(2, 0.3, 500),
        learning_rates=np.linspace(0.01, 0, 500),
        epochs=[{"step": 250, "valid_loss": 0.5, "metric": 0.8}, {"step": 500, "metric": 0.9}],
        metric_name="accuracy",
        calibration=Calibration(method="temperature", temperature=1.25),
        reliability_before=reliability(table, targets),
        reliability_after=reliability(table, targets),
        ece_before=0.111,
        ece_after=0.022,
        thresholds=choice,
        outlier={
            "passed": True,
            "alpha": 0.01,
            "calibration_count": 5_000,
            "false_positive_count": 3,
            "validation_count": 250,
            "kinds": [{"kind": "noise", "auroc": 0.987, "flagged": 0.77, "count": 1_000}],
        },
        engines=[
            {
                "engine": "openvino",
                "precision": "bf16",
                "agreement": 0.9991,
                "accuracy": 0.925,
                "lost": 0.0012,
                "lost_low": -0.0031,
                "lost_high": 0.0055,
                "ece": 0.0145,
                "flagged": 0.0082,
                "count": 1_234,
                "images_per_second": 9_461.0,
                "passed": True,
                "serves": True,
            },
            {"engine": "openvino", "precision": "int8", "passed": False, "reason": "disagrees"},
        ],
        mistakes=[
            {
                "image": np.full((8, 8, 3), 120, np.uint8),
                "name": "a.png",
                "truth": ["cat"],
                "labels": [],
                "confidence": 0.4,
            }
        ],
        settings={"epochs": 2, "weights": None},
        versions={"numpy": "2.4"},
    )
    return replace(whole, **changes)


def multi(**changes: Any) -> ReportData:
    classes = ["sun", "sea"]
    rng = np.random.default_rng(0)
    targets = rng.integers(2, size=(300, 2))
    table = np.clip(targets * 0.4 + rng.random((300, 2)) * 0.6, 0, 1)
    choice = tune_global_threshold(table, targets, bootstrap=10)
    found = evaluate(
        table, targets, classes=classes, thresholds=choice.to_thresholds(), task="multi"
    )
    whole = ReportData("views", "views:1", "2026", "multi", classes, metrics=found)
    return replace(whole, thresholds=choice, **changes)


def bare(**changes: Any) -> ReportData:
    return replace(ReportData("pets", "pets:1", "2026", "single", ["cat", "dog"]), **changes)


def test_the_report_says_how_long_the_epochs_took() -> None:
    report = ReportData(
        "garments",
        "1",
        "today",
        "single",
        ("cat", "dog"),
        learning_rates=[0.1, 0.2],
        epochs=[{"step": 1, "metric": 0.5, "seconds": 60.0}, {"step": 2, "seconds": 1_200.0}],
    )
    assert "2 epochs of 630.0 s each, 1,260 s in all." in render(report)
    assert "s in all" not in render(replace(report, epochs=[{"step": 1, "metric": 0.5}]))


def test_the_verdict_gives_the_figure_its_interval_and_the_self_check() -> None:
    sentence = verdict(single())
    assert re.match(r"Gets \d\d\.\d\s% of 400 test images right \(95 % interval", sentence)
    assert sentence.endswith("and its self-check on foreign images passes.")


def test_a_failed_self_check_is_said_at_the_top() -> None:
    assert "do not rely on its outlier flag" in verdict(single(outlier={"passed": False}))


def test_without_a_test_split_the_report_says_whose_figures_these_are() -> None:
    words = Page(render(single(metrics=None))).words
    assert "no test split was given and validation made the choices" in words
    assert "Measured on 400 validation images" in words


def test_everything_given_is_shown() -> None:
    words = Page(render(single())).words
    for expected in (
        "pets:20260101-0a1b2c3d",
        "calibration is a seeded half of validation",
        "from 0.111 to 0.022 with a temperature of 1.250",
        "noise 1,000 0.987 77.0 %",
        "1.2 % of 250 images (0.4 % to 3.5 %)",
        "99.91 %",
        "✗ left out disagrees",
        "answered none of the classes",
        "the answer is none, and the flag is raised",
        "Most confused",
        "weights not set",
    ):
        assert expected in words.replace("\u00a0", " "), expected


def test_a_multi_label_report_has_a_table_of_two_by_two_per_class_and_the_plateau() -> None:
    data = multi()
    text = render(data)
    assert data.metrics is not None
    assert Page(text).words.count("carries it") == 2
    assert f"{data.metrics['map']:.3f}" in text
    assert 'class="band"' in text


def test_under_the_curve_stands_what_the_verdict_on_the_threshold_rests_on() -> None:
    data = multi()
    its = data.thresholds
    assert its is not None
    assert its.plateau is not None
    words = Page(render(data)).words

    def between(interval: tuple[float, float] | None) -> str:
        assert interval is not None
        return f"({interval[0]:.3f} to {interval[1]:.3f})"

    for told in (
        f"macro F1 on validation {its.score:.3f} {between(its.score_interval)}",
        f"macro F1 on rows left out {its.score_left_out:.3f}"
        f" {between(its.score_left_out_interval)}",
        f"spread over re-draws {its.spread:.3f} {between(its.interval)}",
        f"plateau width {its.plateau_width:.3f} {between(its.plateau)}",
        f"half of the best F1 {its.half_best_f1:.3f}",
        f"total variation {its.total_variation:.3f}",
    ):
        assert told in words
    none = Page(render(single())).words
    assert "share keeping its label on validation 0.9" in none
    assert "plateau width" not in none
    assert "half of the best F1" not in none


def test_every_class_shows_its_threshold_and_why_it_has_it() -> None:
    data = multi()
    assert data.thresholds is not None
    own = ClassThreshold("sea", 0.31, True, "a gain of 0.04", 60, 240, 0.31, 0.04, (0.01, 0.07))
    other = ClassThreshold("sun", 0.5, False, "too few positives", 12, 288)
    choice = replace(data.thresholds, per_class=(other, own))
    words = Page(render(replace(data, thresholds=choice))).words
    assert "sea 0.31 60 240 0.31 +0.040 +0.010 to +0.070 a gain of 0.04" in words
    assert "sun 0.50 12 288 – – too few positives" in words
    assert words.index("a gain of 0.04") < words.index("too few positives")


def test_prediction_sets_show_what_was_asked_and_what_was_realised() -> None:
    targets = np.arange(300) % 3
    table = np.full((300, 3), 0.2) + 0.4 * np.eye(3)[targets]
    sets = ConformalSets.fit(table, targets, "single")
    summary = summarise_sets(sets, table, targets, "single", "test")
    words = Page(render(single(prediction_sets=summary))).words.replace("\u00a0", " ")
    assert "0.9 300 100.0 %" in words
    assert "Measured on test. 300 calibration images with a label" in words
    assert "Prediction sets" not in Page(render(single())).words


def test_what_the_outlier_score_could_have_read_is_shown_best_first() -> None:
    candidates = [
        {
            "name": "KNN",
            "auroc": {"noise": 0.71},
            "mean": 0.71,
            "is_chosen": False,
            "is_baseline": True,
        },
        {
            "name": "ViM",
            "auroc": {"noise": 0.93, "left out": 0.65},
            "mean": 0.79,
            "is_chosen": True,
            "is_baseline": False,
        },
    ]
    words = Page(render(bare(outlier={"candidates": candidates}))).words
    assert (
        "read by noise left out mean ViM ✓ chosen 0.930 0.650 0.790 KNN (beside it) 0.710 – 0.710"
        in words
    )


def test_a_report_with_nothing_but_a_name_is_still_a_page() -> None:
    page = Page(render(bare()))
    assert "Nothing was measured" in page.words
    assert "none given" in page.words
    assert "How it treats foreign images was not measured" in page.words
    assert "svg" not in page.tags


@pytest.mark.parametrize(
    "name", [each.name for each in fields(ReportData) if each.default is not each.default_factory]
)
def test_any_part_may_be_missing(name: str) -> None:
    empty = getattr(bare(), name)
    Page(render(single(**{name: empty})))


def test_hostile_names_are_text_and_never_markup() -> None:
    data = single(
        [HOSTILE, '"><img src=x onerror=alert(1)>', "owl"],
        name=HOSTILE,
        notes=[HOSTILE],
        metric_name=HOSTILE,
        settings={HOSTILE: HOSTILE},
        mistakes=[{"name": '" onload="x', "truth": [HOSTILE], "labels": [HOSTILE]}],
    )
    page = Page(render(data))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.words


def test_the_page_fetches_nothing() -> None:
    page = Page(render(single()))
    sources = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "url(" not in render(single())
    assert "link" not in page.tags


def test_pictures_are_the_pixels_that_were_given() -> None:
    import base64

    picture = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
    text = render(single(mistakes=[{"image": picture}]))
    found = re.search(r"data:image/png;base64,([^\"]+)", text)
    assert found is not None
    shown = Image.open(io.BytesIO(base64.b64decode(found[1])))
    assert np.array_equal(np.asarray(shown), picture)


def test_a_picture_that_is_not_uint8_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8 H x W"):
        render(single(mistakes=[{"image": np.zeros((3, 3))}]))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(60, "At least 99 are needed"), (99, "at most 1.00 %"), (150, "at most 0.66 %")],
)
def test_the_report_says_which_flag_rate_can_be_promised(rows: int, expected: str) -> None:
    text = render(bare(outlier={"alpha": 0.01, "calibration_count": rows}))
    assert expected in Page(text).words.replace("\u00a0", " ")


def test_a_training_that_diverged_still_has_a_report() -> None:
    text = render(single(step_losses=[1.0, float("nan"), float("inf"), 2.0], epochs=[]))
    assert "nan" not in Page(text).words.lower().split()
    assert "points=" in text


def test_many_classes_get_the_worst_pairs_instead_of_a_matrix() -> None:
    text = render(single([f"kind {index}" for index in range(40)]))
    assert '<table class="matrix">' not in text
    assert "Most confused" in text


def test_a_class_without_rows_shows_the_reason() -> None:
    table = np.tile([0.6, 0.3, 0.1], (20, 1))
    found = evaluate(
        table,
        np.zeros(20, int),
        classes=["cat", "dog", "owl"],
        thresholds=Thresholds(objective="none"),
        task="single",
    )
    assert "no rows of this class" in render(single(metrics=found))


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report(target, single())
    before = target.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="uint8"):
        write_report(target, single(mistakes=[{"image": np.zeros((3, 3))}]))
    assert target.read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_line_runs_from_corner_to_corner_of_its_axes() -> None:
    line = Series("rise", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    text = draw(Chart("t", "x", "y", [line], (0, 1), (0, 1)))
    found = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', text)
    assert found is not None
    left, bottom, right, top = map(float, found.groups())
    assert left < 80 < 400 < right
    assert top < 30 < 200 < bottom


def test_ticks_are_round_and_inside_the_range() -> None:
    assert nice_ticks(0.013, 0.094) == [0.02, 0.04, 0.06, 0.08]
    assert nice_ticks(0, 1407) == [0, 500, 1000]


def test_smoothing_keeps_the_length_and_takes_out_noise() -> None:
    noisy = np.random.default_rng(0).normal(1, 1, 5_000)
    assert len(smooth(noisy)) == 5_000
    assert smooth(noisy)[500:].std() < 0.15


def test_engines_stand_with_all_that_their_gate_measured() -> None:
    section = render(single()).split('<section id="engines">')[1].split("</section>")[0]
    words = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    for seen in ("1,234", "99.91", "+0.12 -0.31 – +0.55", "0.015", "0.8", "9,461", "serves"):
        assert seen in words
    assert "✗ left out disagrees" in words
