"""Several processes train one network as one would: DDP, and batch norm over the whole batch.

    torchrun --nproc-per-node 2 -m plumbline train --data DATA --name NAME

A batch of N images is dealt to the processes, gradients are averaged (Li et al. 2020, "PyTorch
Distributed"), and batch norm takes its statistics over all of it, so that losses and metrics are
those of one process with the same batch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from training.callbacks import Callback

if TYPE_CHECKING:
    from training.loop import Trainer


class TrainTogether(Callback):
    """Averages gradients and losses over the processes of the trainer's world."""

    order = 5

    def before_fit(self, trainer: Trainer) -> None:
        """Wrap the network; its weights become those of the first process."""
        self._replaced = share_batch_norm(trainer.network)
        self._parallel = DistributedDataParallel(
            trainer.network,
            device_ids=None if trainer.device.type == "cpu" else [trainer.device],
            broadcast_buffers=False,  # equal already: all see the statistics of the whole batch
        )
        compiles = trainer.settings.compile
        trainer.forward = torch.compile(self._parallel) if compiles else self._parallel

    def before_batch(self, trainer: Trainer) -> None:
        """Gradients travel once per step of the optimizer, not once per batch."""
        self._parallel.require_backward_grad_sync = trainer.ends_step

    def after_backward(self, trainer: Trainer) -> None:
        """What is recorded is the loss of the whole batch."""
        trainer.loss = trainer.world.mean(trainer.loss)

    def after_fit(self, trainer: Trainer) -> None:
        """The network is an ordinary one again."""
        for parent, name, original in self._replaced:
            setattr(parent, name, original)
        trainer.forward = trainer.network
        del self._parallel  # before the processes part: it holds on to what joins them


class WholeBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on any device; torch's own needs CUDA."""

    def forward(self, features: Tensor) -> Tensor:
        """N x C x H x W; every process must hold equally many."""
        if not self.training:
            return super().forward(features)
        exact = features.float()
        moments = torch.cat([exact.mean(dim=(0, 2, 3)), exact.square().mean(dim=(0, 2, 3))])
        world_size = distributed.get_world_size()
        total: Tensor = _Sum.apply(moments)
        mean, square = total.div(world_size).chunk(2)
        variance = square - mean.square()
        count = world_size * features.numel() / features.shape[1]
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        offset = self.bias - mean * scale
        by_channel = (None, slice(None), None, None)
        normalised: Tensor = exact * scale[by_channel] + offset[by_channel]
        return normalised.to(features.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


class _Sum(torch.autograd.Function):
    """Adds up over the processes, gradients too."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def share_batch_norm(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Let batch norm see the whole batch; (parent, name, layer) of all that was replaced.

    Weights and statistics are shared with the layers replaced, which can simply be put back. On
    a CPU layers other than plain `BatchNorm2d` keep to their own part of the batch.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm):
                setattr(parent, name, _whole_batch_norm(layer))
                replaced.append((parent, name, layer))
    return replaced


def _whole_batch_norm(layer: _BatchNorm) -> nn.Module:
    if next(iter(layer.buffers())).device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(layer)
        return converted
    if type(layer) is not nn.BatchNorm2d:
        return layer
    whole: Any = WholeBatchNorm(layer.num_features, layer.eps, layer.momentum)
    whole.weight, whole.bias = layer.weight, layer.bias
    for name, buffer in layer.named_buffers():
        setattr(whole, name, buffer)
    return whole.train(layer.training)  # type: ignore[no-any-return]
