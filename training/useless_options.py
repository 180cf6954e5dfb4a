"""Options that would change nothing are refused: who gives one believes that it does something."""

from __future__ import annotations

from model.errors import SettingsError
from training.none_choice import DEFAULT_LOSS
from training.request import TrainRequest
from training.settings import TrainingSettings
from training.sources import Source

_OF_WARPS = {
    "least_crop": "--least-crop",
    "rotation_degrees": "--rotation-degrees",
    "perspective": "--perspective",
    "lighting": "--lighting",
}
_OF_EPOCHS = {
    **_OF_WARPS,
    "flip": "--flip",
    "presize": "--presize",
    "erase_probability": "--erase",
    "mixup": "--mixup",
    "cutmix": "--cutmix",
    "small_epochs_share": "--small-epochs",
    "frozen_groups": "--frozen-groups",
    "accumulate_batches": "--accumulate-batches",
    "average_decay": "--average-decay",
}


def refuse_useless_options(
    request: TrainRequest, source: Source, settings: TrainingSettings, *, pretrained: bool
) -> None:
    """Raise `SettingsError` that names them."""
    if not pretrained:
        _refuse_without_weights(request, settings)
    _refuse_for_task(request, source)
    if not settings.epochs:
        _refuse_for_head_alone(request)
    if "small_share" in request.knobs and not settings.small_epochs_share:
        raise SettingsError("--small-share: it is for --small-epochs; give that too, such as 0.5")
    without = [option for name, option in _OF_WARPS.items() if name in request.knobs]
    if without and not settings.presize:
        raise SettingsError(
            f"{', '.join(without)}: images are warped only where they are presized; give"
            " --presize too, such as --presize 1.75"
        )


def _refuse_without_weights(request: TrainRequest, settings: TrainingSettings) -> None:
    if settings.epochs == 0:
        raise SettingsError("--epochs 0 trains the head alone, which needs pretrained --weights")
    unused = {
        "a range of --learning-rate": settings.body_learning_rate is not None,
        "--frozen-groups": settings.frozen_groups > 0,
        "--keep-fine-tuned": request.keep_fine_tuned,
    }
    without = [option for option, given in unused.items() if given]
    if without:
        raise SettingsError(
            f"{', '.join(without)}: this is for fine-tuning, and this training begins from"
            " scratch; give pretrained --weights, or leave it out"
        )


def _refuse_for_task(request: TrainRequest, source: Source) -> None:
    """What is for one label per image, or for a model that may say none."""
    single = {
        "--label-smoothing": request.knobs.get("label_smoothing"),
        "--head": request.knobs.get("head"),
    }
    without = [option for option, given in single.items() if given]
    if source.task == "multi" and without:
        raise SettingsError(f"{', '.join(without)}: it is for one label per image; leave it out")
    saying_none = {"--negatives": request.negatives, "--none-loss": request.none_loss}
    without = [option for option, given in saying_none.items() if given]
    may_say_none = request.none_allowed and source.task == "single"
    if without and not may_say_none:
        raise SettingsError(
            f"{', '.join(without)}: it is for single-label models that may say none; give --none"
            " too, or leave it out"
        )
    loss = DEFAULT_LOSS if request.none_loss is None else request.none_loss
    if may_say_none and request.alpha is not None and request.alpha > loss:
        raise SettingsError(
            f"PLUMBLINE_ALPHA {request.alpha:g} lets the outlier flag alone take more than the"
            f" {loss:g} of the images of the classes that --none-loss allows; lower the one, raise"
            " the other, or leave PLUMBLINE_ALPHA to the training"
        )


def _refuse_for_head_alone(request: TrainRequest) -> None:
    """The linear head is fitted on features of images as they are."""
    without = [option for name, option in _OF_EPOCHS.items() if request.knobs.get(name)]
    if without:
        raise SettingsError(
            f"{', '.join(without)}: --epochs 0 fits the head alone, on images as they are; leave"
            " it out, or give some --epochs"
        )
