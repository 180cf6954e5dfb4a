"""The outlier score reads the layers, and uses the detector, that the evidence speaks for."""

from __future__ import annotations

import numpy as np
import pytest

from model.bundle import Metric
from model.embedding import EmbeddingPart
from model.engines import Outputs
from monitoring.outlier import (
    DETECTORS,
    ENERGY_OR_RESIDUAL,
    KNN_AND_RESIDUAL,
    KNN_AND_VIM,
    WITHOUT_LOGITS,
    EmbeddingChoice,
)
from training.outlier_choice import (
    CLASSES_LEFT_OUT,
    CLASSES_NEVER_LEARNED,
    EARLIER_LAYERS,
    PENULTIMATE,
    Labelled,
    LeftOut,
    auroc,
    choose_outlier_model,
    embedding_choices,
    leave_classes_out,
)
from training.refitted_head import HeadRecipe

PARTS = [EmbeddingPart(name="layer 1", size=8), EmbeddingPart(name=PENULTIMATE, size=8)]
CLASSES = 3


def outputs(count: int, seed: int, *, early: float = 0.0, late: float = 0.0) -> Labelled:
    """Three classes; `early` and `late` shift a layer away from where the classes lie."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count)
    centres = np.eye(CLASSES, 8)[targets] * 4
    away = np.eye(8)[-1]
    first, last = (random.normal(centres + its * away, 1) for its in (early, late))
    logits = last[:, :CLASSES] * 3
    embedding = np.concatenate([first * 50, last], axis=1)
    return Labelled(Outputs(logits.astype(np.float32), embedding.astype(np.float32)), targets)


FIT, VALIDATION = outputs(600, 0), outputs(300, 1)


def test_the_penultimate_layer_is_kept_where_it_tells_foreign_images() -> None:
    foreign = {"late": outputs(200, 2, late=30).outputs}
    choice = choose_outlier_model(PARTS, FIT, VALIDATION, foreign)
    assert (choice.chosen.embedding, choice.chosen.detector) == (PENULTIMATE, KNN_AND_VIM)
    assert choice.chosen.auroc["late"] > 0.99


def test_an_earlier_layer_is_chosen_where_it_alone_shows_what_is_foreign() -> None:
    foreign = {"early": outputs(200, 2, early=6).outputs}
    choice = choose_outlier_model(PARTS, FIT, VALIDATION, foreign)
    by_default = choice.candidates[0]
    assert by_default.embedding == PENULTIMATE
    assert by_default.auroc["early"] < 0.7
    assert choice.chosen.embedding == EARLIER_LAYERS
    assert choice.chosen.auroc["early"] > 0.9
    # What was fitted reads just that.
    same = foreign["early"]._replace(embedding=foreign["early"].embedding.copy())
    same.embedding[:, 8:] = 0
    scores = choice.model.score(foreign["early"].embedding, foreign["early"].logits)[0]
    assert choice.model.score(same.embedding, same.logits)[0] == pytest.approx(scores)


def test_classes_left_out_take_part_in_the_choice() -> None:
    choice = choose_outlier_model(PARTS, FIT, VALIDATION, {"any": outputs(50, 2, late=9).outputs})
    for candidate in choice.candidates:
        assert 0.5 < candidate.auroc[CLASSES_LEFT_OUT] <= 1
        made = candidate.auroc["any"]
        assert candidate.mean == pytest.approx((made + candidate.auroc[CLASSES_LEFT_OUT]) / 2)
        assert candidate.measured["any"].count == 50
        # Every validation image is once of a class that is left out, and the mean of many
        # classes is known better than one of them.
        left_out = candidate.measured[CLASSES_LEFT_OUT]
        assert left_out.count == 300
        for its in candidate.measured.values():
            assert 0 <= its.low <= its.value <= its.high <= 1


def test_classes_never_learned_speak_for_other_classes_where_a_second_training_told() -> None:
    told = {
        name: dict.fromkeys(
            (*DETECTORS, "MSP", "Energy", "Mahalanobis"),
            Metric(value=0.9 if name == EARLIER_LAYERS else 0.5),
        )
        for name in (PENULTIMATE, "all layers", EARLIER_LAYERS)
    }
    foreign = {"any": outputs(50, 2, early=9, late=9).outputs}
    choice = choose_outlier_model(PARTS, FIT, VALIDATION, foreign, never_learned=told)
    assert choice.chosen.embedding == EARLIER_LAYERS
    assert choice.chosen.auroc[CLASSES_NEVER_LEARNED] == 0.9
    assert choice.chosen.mean == pytest.approx((choice.chosen.auroc["any"] + 0.9) / 2)
    without = choose_outlier_model(PARTS, FIT, VALIDATION, foreign)
    assert without.chosen.embedding == PENULTIMATE


def left_out(**options) -> LeftOut:
    return next(leave_classes_out(FIT, VALIDATION, seed=0, **options))


def test_what_a_network_learned_of_a_class_left_out_flatters_no_score_that_reads_logits() -> None:
    """Without the logit of their own class its images would have low logits everywhere."""
    kept, dropped = left_out(), left_out(keep_logit=False)
    assert np.array_equal(kept.outputs.logits, VALIDATION.outputs.logits)
    assert dropped.outputs.logits.shape == (300, CLASSES - 1)

    def found(its: LeftOut, detector: str) -> float:
        model = its.fitted(EmbeddingChoice()).with_detector(detector)
        scores = model.score(its.outputs.embedding, its.outputs.logits)[0]
        return auroc(scores[its.is_foreign], scores[~its.is_foreign])

    assert found(kept, ENERGY_OR_RESIDUAL) < found(dropped, ENERGY_OR_RESIDUAL)
    for detector in WITHOUT_LOGITS:
        assert found(kept, detector) == found(dropped, detector)


def test_a_head_that_alone_was_fitted_is_fitted_anew_without_the_class() -> None:
    recipe = HeadRecipe(slice(8, 16), CLASSES, "single", 1.0)
    its = left_out(head=recipe)
    others = np.delete(np.arange(CLASSES), its.index)
    by_head = others[its.outputs.logits.argmax(axis=1)]
    assert (by_head == VALIDATION.targets)[~its.is_foreign].mean() > 0.95
    # Nothing of what the network said before is in it.
    renamed = Labelled(FIT.outputs._replace(logits=FIT.outputs.logits * 0), FIT.targets)
    again = next(leave_classes_out(renamed, VALIDATION, head=recipe, seed=0))
    assert np.array_equal(again.outputs.logits, its.outputs.logits)
    chosen = choose_outlier_model(PARTS, FIT, VALIDATION, {"any": FIT.outputs}, head=recipe)
    assert 0.5 < chosen.chosen.auroc[CLASSES_LEFT_OUT] <= 1


def test_with_two_classes_none_is_left_out() -> None:
    fit, validation = (
        Labelled(its.outputs._replace(logits=its.outputs.logits[:, :2]), its.targets % 2)
        for its in (FIT, VALIDATION)
    )
    choice = choose_outlier_model(PARTS, fit, validation, {"any": validation.outputs})
    assert CLASSES_LEFT_OUT not in choice.chosen.auroc


def test_multi_label_rows_of_a_class_are_left_out_together() -> None:
    fit, validation = (
        Labelled(its.outputs, np.eye(CLASSES, dtype=np.int64)[its.targets])
        for its in (FIT, VALIDATION)
    )
    single = choose_outlier_model(PARTS, FIT, VALIDATION, {"any": VALIDATION.outputs})
    several = choose_outlier_model(PARTS, fit, validation, {"any": VALIDATION.outputs})
    by_name = {its.name: its.auroc for its in single.candidates}
    assert several.candidates
    for candidate in several.candidates:
        assert candidate.auroc == by_name[candidate.name]


def test_where_several_labels_may_apply_no_score_reads_how_many_do() -> None:
    fit, validation = (
        Labelled(its.outputs, np.eye(CLASSES, dtype=np.int64)[its.targets])
        for its in (FIT, VALIDATION)
    )
    choice = choose_outlier_model(PARTS, fit, validation, {"any": VALIDATION.outputs})
    assert choice.candidates[0].detector == KNN_AND_RESIDUAL
    assert {its.detector for its in choice.candidates} == set(WITHOUT_LOGITS)


def test_other_scores_are_measured_beside_it_and_never_chosen() -> None:
    foreign = {"late": outputs(200, 2, late=30).outputs}
    choice = choose_outlier_model(PARTS, FIT, VALIDATION, foreign)
    assert [its.detector for its in choice.baselines] == ["MSP", "Energy", "Mahalanobis"]
    for baseline in choice.baselines:
        assert set(baseline.auroc) == {"late", CLASSES_LEFT_OUT}
        assert baseline not in choice.candidates
    mahalanobis = choice.baselines[-1]
    assert mahalanobis.auroc["late"] > 0.99


def test_joined_layers_count_equally_however_long_they_are() -> None:
    embedding = FIT.outputs.embedding
    joined = embedding_choices(PARTS, embedding)["all layers"].of(embedding)
    lengths = [np.linalg.norm(part, axis=1).mean() for part in np.split(joined, 2, axis=1)]
    assert lengths == pytest.approx([1, 1], rel=1e-4)
