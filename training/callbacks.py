"""What takes part in a training at its points, in an explicit order (after fastai's minai)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.errors import TrainingError
from model.network import Network
from training.augment import augment, erase, shrink
from training.mixing import cutmix, mixup, soft_targets
from training.precision import PRECISIONS, fastest_precision
from training.schedule import one_cycle, one_cycle_momentum
from training.settings import TrainingSettings
from training.warp import warp
from training.world import ALONE, World

if TYPE_CHECKING:
    from training.loop import Samples, Trainer


class Callback:
    """Takes part in training at the points it overrides; lower `order` comes first."""

    order = 50
    in_sweep = False  # whether it also takes part when the learning rate is searched

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep of it."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave, after `before_fit`."""

    def before_fit(self, trainer: Trainer) -> None:
        """Once, before the first epoch."""

    def before_epoch(self, trainer: Trainer) -> None:
        """The network is in training mode."""

    def before_batch(self, trainer: Trainer) -> None:
        """`trainer.images` and `trainer.targets` hold the batch and may be replaced."""

    def after_loss(self, trainer: Trainer) -> None:
        """`trainer.loss` is there, gradients are not."""

    def after_backward(self, trainer: Trainer) -> None:
        """Gradients are there, weights are still the old ones."""

    def before_step(self, trainer: Trainer) -> None:
        """Gradients are whole and unscaled, weights are still the old ones."""

    def after_batch(self, trainer: Trainer) -> None:
        """Weights are new, gradients gone."""

    def after_epoch(self, trainer: Trainer) -> None:
        """The last of `trainer.history.epochs` is this one's."""

    def after_fit(self, trainer: Trainer) -> None:
        """Once, after the last epoch, and also when training is broken off."""


class ChoosePrecision(Callback):
    """Sets number format and layout: as the settings name them, or the fastest by the clock."""

    order = 0
    in_sweep = True

    def before_fit(self, trainer: Trainer) -> None:
        """Decide once; leaves weights and random state as they were."""
        wanted = trainer.settings.precision
        if wanted == "auto" and isinstance(trainer.network, Network):
            fastest = PRECISIONS.index(fastest_precision(trainer))
            trainer.precision = PRECISIONS[trainer.world.agree(fastest, trainer.device)]
        elif wanted != "auto":
            trainer.precision = next(one for one in PRECISIONS if one.name == wanted)
        if isinstance(trainer.network, Network):
            trainer.network.use_memory_format(trainer.precision.memory_format)
        trainer.history.precision = trainer.precision.name
        trainer.scaler = torch.amp.GradScaler(
            trainer.device.type, enabled=trainer.precision.dtype == torch.float16
        )


class OneCycle(Callback):
    """Rate and momentum of every parameter group, before every step."""

    order = 10

    def before_batch(self, trainer: Trainer) -> None:
        """Set what the schedule says for this step."""
        step, total = trainer.step_number, trainer.total_steps
        warmup = trainer.settings.warmup_share
        momentum = one_cycle_momentum(step, total, warmup_share=warmup)
        for group in trainer.optimizer.param_groups:
            group["lr"] = one_cycle(step, total, group["peak"], warmup_share=warmup)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


class Augment(Callback):
    """Random changes to every training batch."""

    order = 20
    in_sweep = True

    def before_batch(self, trainer: Trainer) -> None:
        """Replace the images."""
        settings, world = trainer.settings, trainer.world
        size = trainer.side_in_epoch(len(trainer.history.epochs) + 1)
        # A generator of its own at every step, so that a resumed training draws the same.
        seed = np.random.SeedSequence((settings.seed, trainer.step_number)).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        if trainer.images.shape[1] == trainer.image_size:
            augmented = augment(trainer.images, settings.augmentation, generator, world)
            trainer.images = shrink(augmented, size) if size < trainer.image_size else augmented
            return
        warped = warp(trainer.images, size, settings.warp, generator, world)
        trainer.images = erase(warped, settings.erase_probability, generator, world)


class Mix(Callback):
    """Mixup or CutMix of every training batch; where both are asked for, one by turns of chance."""

    order = 25
    in_sweep = True

    def before_batch(self, trainer: Trainer) -> None:
        """Replace images and targets."""
        settings = trainer.settings
        # As in `Augment`; each of several processes mixes its own part of the batch.
        random = np.random.default_rng((settings.seed, trainer.step_number, trainer.world.rank))
        mixes = [(mixup, settings.mixup), (cutmix, settings.cutmix)]
        mix, alpha = (
            mixes[int(random.integers(2))]
            if settings.mixup and settings.cutmix
            else (mixes[0] if settings.mixup else mixes[1])
        )
        class_count = cast(Network, trainer.network).head.out_features
        targets = soft_targets(trainer.targets, class_count)
        trainer.images, trainer.targets = mix(trainer.images, targets, alpha, random)


class FreezeBatchNorm(Callback):
    """Keeps the running statistics of batch norm.

    With few images moving statistics break the embedding that the outlier score reads
    (design.md, "Outlier score").
    """

    order = 30
    in_sweep = True

    def before_epoch(self, trainer: Trainer) -> None:
        """Evaluation mode for these layers alone; their weights still learn."""
        for module in trainer.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class StopOnBadLoss(Callback):
    """Stops when the loss is not a number any more, saying where."""

    order = 40

    def after_loss(self, trainer: Trainer) -> None:
        """Raise `TrainingError` before the gradients spoil the weights."""
        if math.isfinite(trainer.loss.item()):
            return
        rate = trainer.optimizer.param_groups[-1]["lr"]
        raise TrainingError(
            f"the loss is {trainer.loss.item()} at step {trainer.step_number} of "
            f"{trainer.total_steps}, at learning rate {rate:.3g}; train with a lower "
            "--learning-rate, a tenth is a good try"
        )


class Record(Callback):
    """Writes losses and rates into the history."""

    order = 60

    def after_batch(self, trainer: Trainer) -> None:
        """One of each per step; the rate is that of the last group, the head."""
        trainer.history.losses.append(trainer.loss.item())
        trainer.history.learning_rates.append(trainer.optimizer.param_groups[-1]["lr"])


class ClipGradients(Callback):
    """Shortens gradients that are longer than a bound, all together (Pascanu et al. 2013)."""

    order = 50

    def __init__(self, most: float) -> None:
        self.most = most

    def before_step(self, trainer: Trainer) -> None:
        """One norm over all parameters."""
        nn.utils.clip_grad_norm_(trainer.network.parameters(), self.most)


class AverageWeights(Callback):
    """An exponential moving average of the weights, which is validated and kept.

    The decay climbs from 0.1, so that an average over a short training forgets its start.
    """

    order = 70

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def before_fit(self, trainer: Trainer) -> None:
        """Start from the weights as they are."""
        self._average = AveragedModel(trainer.network, multi_avg_fn=self._mix, use_buffers=True)
        trainer.evaluation_network = self._average.module

    def after_batch(self, trainer: Trainer) -> None:
        """Mix the new weights in, where there are any."""
        if trainer.ends_step:
            self._average.update_parameters(trainer.network)

    def after_fit(self, trainer: Trainer) -> None:
        """The network becomes its average."""
        trainer.network.load_state_dict(self._average.module.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The average itself."""
        return dict(self._average.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self._average.load_state_dict(state)

    def _mix(self, average: Any, new: Any, steps: Tensor | int) -> None:
        decay = min(self.decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(decay)(average, new, steps)


def standard_callbacks(
    settings: TrainingSettings, fit: Samples, world: World = ALONE
) -> list[Callback]:
    """Those that the settings ask for, and several processes need."""
    callbacks: list[Callback] = [ChoosePrecision(), OneCycle(), StopOnBadLoss(), Record()]
    if world.size > 1:
        from training.distributed import TrainTogether

        callbacks.append(TrainTogether())
    if fit.images.ndim == 4:
        callbacks.append(Augment())
        if settings.mixup or settings.cutmix:
            callbacks.append(Mix())
    if settings.freeze_batch_norm:
        callbacks.append(FreezeBatchNorm())
    if settings.clip_gradient_norm is not None:
        callbacks.append(ClipGradients(settings.clip_gradient_norm))
    if settings.average_decay is not None:
        callbacks.append(AverageWeights(settings.average_decay))
    return callbacks
