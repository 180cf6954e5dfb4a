"""Is it training properly? Sentences that follow from the curves."""

from __future__ import annotations

import pytest

from training.diagnosis import diagnose, no_better, turning_epoch
from training.history import EpochRecord, TrainingHistory


def history(
    validation: list[float],
    metrics: list[float] | None = None,
    train: tuple[float, ...] = (2.0, 0.5),
) -> TrainingHistory:
    """One epoch per validation loss, training loss from the first to the second of `train`."""
    scores = metrics or [0.8] * len(validation)
    epochs = [
        EpochRecord(number, train[1], loss, score, 1.0)
        for number, (loss, score) in enumerate(zip(validation, scores, strict=True), start=1)
    ]
    return TrainingHistory("accuracy", losses=[train[0]], epochs=epochs)


@pytest.mark.parametrize(
    ("losses", "turned"),
    [
        ([1.0, 0.8, 0.6], None),
        ([1.0, 0.6, 0.9], 2),
        ([0.5, 0.9, 0.7, 0.6], 1),
        ([1.0, 0.6, 0.61], None),  # within 2 %
        ([1.0, float("nan")], None),
        ([], None),
    ],
)
def test_validation_loss_turned_where_it_rose_for_good(
    losses: list[float], turned: int | None
) -> None:
    assert turning_epoch(history(losses)) == turned


def test_overfitting_is_told_with_the_number_of_epochs_to_train_with() -> None:
    told = " ".join(diagnose(history([1.0, 0.6, 0.9, 1.1]), {}))
    assert "after epoch 2 of 4" in told
    assert "--epochs 2" in told
    assert "no sign of overfitting" not in told


def test_a_training_that_does_not_learn_is_told() -> None:
    told = diagnose(history([2.3, 2.3], train=(2.30, 2.29)), {})[0]
    assert told.startswith("It is not training")
    assert "lr-find" in told
    assert diagnose(history([1.0, 0.5]), {})[0].startswith("It is training")


def test_a_metric_that_still_rises_asks_for_more_epochs() -> None:
    rising = diagnose(history([1.0, 0.9], [0.5, 0.6]), {})
    assert any("still rose by 0.100" in sentence for sentence in rising)
    level = diagnose(history([1.0, 0.9], [0.6, 0.6]), {})
    assert not any("still rose" in sentence for sentence in level)


def test_simpler_models_are_compared() -> None:
    told = diagnose(
        history([1.0, 0.9], [0.7, 0.7]), {"the class prior": 0.1, "a linear model": 0.75}
    )
    assert "It beats the class prior (accuracy 0.100) by 0.600." in told
    assert any(sentence.startswith("It does not beat a linear model") for sentence in told)


def test_a_fine_tuned_network_that_was_not_kept_is_told_with_its_metric_and_where_it_turned() -> (
    None
):
    told = no_better(history([1.0, 0.6, 0.9], [0.7, 0.8, 0.75]))
    assert "was no better (accuracy 0.750; its validation loss turned after epoch 2)" in told
    assert "turned" not in no_better(history([1.0, 0.8]))
