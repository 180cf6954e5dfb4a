"""The images choose what a request leaves open; options that would do nothing are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model.errors import SettingsError
from model.images import InputSpec
from model.store import ModelStore
from training.preparation import choose_architecture, choose_pipeline, prepare_training
from training.request import TrainRequest, open_request


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., TrainRequest]:
    """`request_for(side, **changes)`: a training on images of that side."""

    def make(side: int, **changes: object) -> TrainRequest:
        folder = tmp_path / str(side)
        for label, first in (("cat", 0), ("dog", 20)):
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number in range(first, first + 20):
                image = Image.new("RGB", (side, side), (number, 0, 0))
                image.save(folder / label / f"{number}.png")
        return TrainRequest(data=str(folder), name="pets", **changes)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("side", "architecture", "weights", "chosen"),
    [
        (28, None, None, ("small-resnet", None)),
        (28, None, "none", ("small-resnet", None)),
        (28, "resnet18", None, ("resnet18", None)),
        (28, None, "package", ("tf_efficientnet_lite0", "package")),
        (200, None, None, ("tf_efficientnet_lite0", "package")),
        (200, None, "none", ("tf_efficientnet_lite0", None)),
        (200, "resnet18", None, ("resnet18", "timm")),
        (200, "resnet18", "none", ("resnet18", None)),
        (200, "nf_resnet26", None, ("nf_resnet26", None)),  # timm has no weights of it
        (200, "small-resnet", None, ("small-resnet", None)),
        (200, "resnet18", "pets:latest", ("resnet18", "pets:latest")),
    ],
)
def test_photographs_begin_from_weights_and_tiny_images_from_scratch(
    request_for, tmp_path, side, architecture, weights, chosen
) -> None:
    request = request_for(side, architecture=architecture, weights=weights)
    assert choose_architecture(request, open_request(request, tmp_path)) == chosen


def test_from_scratch_the_whole_image_is_taken_and_photographs_are_warped(
    request_for, store: ModelStore
) -> None:
    _, tiny, settings = choose_pipeline(request_for(28, architecture="resnet18", size=28), store)
    assert (tiny.size, tiny.crop, settings.presize) == (28, 1.0, 0)
    _, large, settings = choose_pipeline(request_for(200, weights="none"), store)
    assert (large.crop, settings.presize, settings.flip) == (1.0, 1.75, True)
    _, tuned, _ = choose_pipeline(request_for(200), store)
    assert tuned.crop < 1


def test_a_version_s_weights_come_with_its_input(request_for, store: ModelStore, register) -> None:
    tag = register(input=InputSpec(size=40, crop=0.7, mean=(0.1,) * 3, std=(0.3,) * 3))
    request = request_for(28, architecture="small-resnet", weights=tag)
    assert choose_pipeline(request, store)[1] == store.load(store.find(tag)).manifest.input
    sized = choose_pipeline(replace(request, size=32), store)[1]
    assert (sized.size, sized.crop) == (32, 0.7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "--epochs 0 trains the head alone"),
        ({"body_learning_rate": 1e-3}, "a range of --learning-rate: this is for fine-tuning"),
        ({"knobs": {"frozen_groups": 1}}, "--frozen-groups: this is for fine-tuning"),
        ({"keep_fine_tuned": True}, "--keep-fine-tuned: this is for fine-tuning"),
        ({"knobs": {"small_share": 0.5}}, "--small-share: it is for --small-epochs"),
        ({"knobs": {"least_crop": 0.7, "lighting": 0.1}}, "--least-crop, --lighting: images are"),
        (
            {"weights": "package", "epochs": 0, "knobs": {"mixup": 0.4, "erase_probability": 0.5}},
            "--erase, --mixup: --epochs 0 fits the head alone",
        ),
        ({"task": "multi", "knobs": {"label_smoothing": 0.1}}, "--label-smoothing: it is for one"),
        ({"task": "multi", "knobs": {"head": "sigmoid"}}, "--head: it is for one label"),
        ({"none_loss": 0.05}, "--none-loss: it is for single-label models that may say none"),
        (
            {"task": "multi", "none_allowed": True, "none_loss": 0.05},
            "--none-loss: it is for single-label models",
        ),
        (
            {"task": "single", "none_allowed": True, "alpha": 0.05},
            "PLUMBLINE_ALPHA 0.05 lets the outlier flag alone take more than the 0.02",
        ),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    request_for, store: ModelStore, changes, said
) -> None:
    with pytest.raises(SettingsError, match=said):
        choose_pipeline(request_for(28, **changes), store)


def test_smaller_images_are_refused_where_a_network_takes_one_size(
    request_for, store: ModelStore
) -> None:
    request = request_for(
        28, architecture="vit_tiny_patch16_224", knobs={"small_epochs_share": 0.5}
    )
    with pytest.raises(SettingsError, match="--small-epochs: vit_tiny_patch16_224 takes images of"):
        prepare_training(request, store, show_progress=False)
