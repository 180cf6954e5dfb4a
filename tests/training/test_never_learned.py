"""A second training without some classes says what the outlier score makes of such images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import SettingsError
from model.network import create_network
from model.settings import ModelSettings
from model.store import ModelStore
from monitoring.outlier import DETECTORS, WITHOUT_LOGITS
from training.baseline_detectors import ENERGY, MAHALANOBIS, MSP
from training.never_learned import choose_left_out, judge_never_learned, without_classes
from training.preparation import Prepared, prepare_training
from training.request import TrainRequest
from training.splits import Split

LEFT_OUT = ("dress", "sneaker")


@pytest.fixture(scope="module")
def prepared(few_garments: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    store = ModelStore(ModelSettings(home=tmp_path_factory.mktemp("home")))
    request = TrainRequest(str(few_garments), "garments", epochs=1)
    made = prepare_training(request, store, show_progress=False)
    store.state.dispose()
    return made


def as_multi(prepared: Prepared) -> Prepared:
    """The same images, each with its own label and that of the class before it."""
    count = len(prepared.source.classes)

    def several(targets: np.ndarray) -> np.ndarray:
        own = np.eye(count, dtype=np.float32)
        return np.asarray(np.maximum(own[targets], own[targets - 1]))

    splits = {
        split: replace(rows, targets=several(rows.targets))
        for split, rows in prepared.splits.items()
    }
    return replace(prepared, splits=splits, source=replace(prepared.source, task="multi"))


def test_classes_are_drawn_by_the_seed_and_keep_their_order(prepared: Prepared) -> None:
    drawn = [choose_left_out(replace(prepared, seed=seed), 3) for seed in range(5)]
    assert drawn == [choose_left_out(replace(prepared, seed=seed), 3) for seed in range(5)]
    assert len(set(drawn)) > 1
    order = prepared.source.classes.index
    assert all(list(its) == sorted(its, key=order) and len(set(its)) == 3 for its in drawn)
    assert choose_left_out(prepared, None) == ()


@pytest.mark.parametrize(
    ("count", "classes", "said"),
    [(9, 10, "valid is 1 to 8"), (1, 2, "with 2 classes none can be left out")],
)
def test_at_least_two_classes_must_remain(
    prepared: Prepared, count: int, classes: int, said: str
) -> None:
    few = replace(prepared, source=replace(prepared.source, classes=list("abcdefghij")[:classes]))
    with pytest.raises(SettingsError, match=said):
        choose_left_out(few, count)


def test_too_few_images_without_them_are_refused(prepared: Prepared) -> None:
    chosen = choose_left_out(prepared, 1)
    number = prepared.source.classes.index(chosen[0])
    rows = prepared.splits[Split.VALIDATION]
    none_of_it = replace(rows, targets=np.where(rows.targets == number, 0 if number else 1, 0))
    with pytest.raises(SettingsError, match=f"without {chosen[0]} the validation split"):
        choose_left_out(
            replace(prepared, splits={**prepared.splits, Split.VALIDATION: none_of_it}), 1
        )


def test_the_other_classes_keep_their_images_and_are_numbered_anew(prepared: Prepared) -> None:
    without = without_classes(prepared, LEFT_OUT)
    assert without.source.classes == [its for its in prepared.source.classes if its not in LEFT_OUT]
    for split, rows in prepared.splits.items():
        names = [prepared.source.classes[target] for target in rows.targets]
        kept = [row for row, name in enumerate(names) if name not in LEFT_OUT]
        found = without.splits[split]
        assert [without.source.classes[target] for target in found.targets] == [
            names[row] for row in kept
        ]
        assert found.names == [rows.names[row] for row in kept]
        assert np.array_equal(found.images[:5], np.asarray(rows.images)[kept[:5]])


def test_rows_of_no_class_stay(prepared: Prepared) -> None:
    rows = prepared.splits[Split.FIT]
    unlabelled = replace(rows, targets=np.where(np.arange(len(rows)) % 2, rows.targets, -1))
    some = replace(prepared, splits={**prepared.splits, Split.FIT: unlabelled})
    found = without_classes(some, LEFT_OUT).splits[Split.FIT].targets
    assert (found == -1).sum() == (unlabelled.targets == -1).sum()


def test_of_several_labels_rows_that_carry_any_of_them_go(prepared: Prepared) -> None:
    multi = as_multi(prepared)
    without = without_classes(multi, LEFT_OUT)
    numbers = [multi.source.classes.index(name) for name in LEFT_OUT]
    targets = multi.splits[Split.FIT].targets
    carries = targets[:, numbers].any(axis=1)
    expected = np.delete(targets[~carries], numbers, axis=1)
    assert np.array_equal(without.splits[Split.FIT].targets, expected)


@pytest.mark.parametrize("several", [False, True], ids=["single", "multi"])
def test_every_embedding_and_detector_is_judged_on_their_validation_images(
    prepared: Prepared, several: bool
) -> None:
    whole = as_multi(prepared) if several else prepared
    torch.manual_seed(0)
    classes = len(whole.source.classes) - len(LEFT_OUT)
    network = create_network("resnet18", classes, whole.spec)
    found = judge_never_learned(network, whole, LEFT_OUT)
    numbers = [whole.source.classes.index(name) for name in LEFT_OUT]
    targets = whole.splits[Split.VALIDATION].targets
    has = targets[:, numbers].any(axis=1) if several else np.isin(targets, numbers)
    assert (found.images, found.others) == (has.sum(), (~has).sum())
    assert set(found.auroc) == {"penultimate", "all layers", "earlier layers"}
    for name, by_detector in found.auroc.items():
        baselines = (MSP, ENERGY, MAHALANOBIS) if name == "penultimate" else ()
        detectors = WITHOUT_LOGITS if several else tuple(DETECTORS)
        assert tuple(by_detector) == (*detectors, *baselines)
        for its in by_detector.values():
            assert 0 < its.low < its.value < its.high <= 1
            assert its.count == found.images


@pytest.mark.slow
def test_train_leaves_classes_out_of_a_second_training(
    few_garments: Path, tmp_path: Path, run_plumbline: Callable[..., object]
) -> None:
    done = run_plumbline(
        *("train", "--data", few_garments, "--name", "garments", "--epochs", "2"),
        *("--leave-classes-out", "2", "--track", "none"),
        home=tmp_path,
    )
    said = " ".join(done.stderr.split())  # type: ignore[attr-defined]
    assert "training a second time without" in said
    assert "on classes that a second network was trained without" in said
    store = ModelStore(ModelSettings(home=tmp_path))
    manifest = store.load(store.find("garments:latest")).manifest
    store.state.dispose()
    assert len(manifest.classes) == 10
    assert len(manifest.training["never_learned"]) == 2
    for by_kind in manifest.outlier.candidates.values():
        its = by_kind["classes never learned"]
        assert 0 < its.low < its.value < its.high <= 1
    assert not list((tmp_path / "checkpoints").glob("*"))
