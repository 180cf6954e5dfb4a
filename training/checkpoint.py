"""A training on disk after every epoch, so that one that was killed goes on where it stood.

One safetensors file: weights, optimizer, average, random state; the history as JSON in its
metadata. Written beside its place and renamed, so it is whole or the one before. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import TrainingError
from training.callbacks import Callback
from training.history import EpochRecord, TrainingHistory
from training.loop import Trainer
from training.precision import PRECISIONS

_FORMAT = "2"  # raise it when what is stored changes
_RANDOM, _CUDA_RANDOM = "random", "random_cuda"


class Checkpoint(Callback):
    """Saves after every epoch; with `resume`, starts from what is saved there.

    `key` names data, network and settings: a checkpoint of another training is refused. A
    checkpoint that cannot be written (disk full) is told once by `say`, and training goes on.
    """

    order = 95

    def __init__(
        self,
        path: Path,
        key: str,
        *,
        resume: bool = False,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.path, self.key, self.resume, self.say = path, key, resume, say
        self._failed = False

    def before_fit(self, trainer: Trainer) -> None:
        """Go on from the file where that was asked for and there is one."""
        if not self.resume or not self.path.exists():
            return
        restore(trainer, self.path, self.key)
        done = len(trainer.history.epochs)
        self.say(f"resumed after epoch {done} of {trainer.settings.epochs}")

    def after_epoch(self, trainer: Trainer) -> None:
        """Replace the file; of several processes the first does."""
        if not trainer.world.is_first:
            return
        try:
            save(trainer, self.path, self.key)
        except (OSError, SafetensorError) as error:
            if not self._failed:
                self.say(
                    f"the checkpoint {self.path} cannot be written: {error}; training goes on,"
                    " and could be resumed only from the one before, if any"
                )
            self._failed = True


def checkpoint_key(*parts: object) -> str:
    """A digest of whatever has to be equal for a training to be resumed."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def epochs_in(path: Path, key: str) -> int:
    """How many epochs a checkpoint of this training holds; 0 where there is none to go on from."""
    try:
        _, metadata = _read(path, names=set())
    except TrainingError:
        return 0
    if metadata.get("key") != key or metadata.get("format") != _FORMAT:
        return 0
    return len(json.loads(metadata["history"])["epochs"])


def save(trainer: Trainer, path: Path, key: str) -> None:
    """Write the state of a trainer after an epoch. Raises OSError."""
    metadata = {
        "format": _FORMAT,
        "key": key,
        "step_number": str(trainer.step_number),
        "history": json.dumps(asdict(trainer.history)),
        "scaler": json.dumps(trainer.scaler.state_dict()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".checkpoint-") as temporary:
        whole = Path(temporary, path.name)
        save_file(_tensors(trainer), whole, metadata)
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(whole, path)


def restore(trainer: Trainer, path: Path, key: str) -> None:
    """Bring a trainer to the state that `save` wrote.

    Raises `TrainingError` when the file is not whole or is of another training.
    """
    tensors, metadata = _read(path)
    if metadata.get("key") != key or metadata.get("format") != _FORMAT:
        raise TrainingError(
            f"the checkpoint {path} is of a training with other data, network or settings; train"
            " without --resume to start anew"
        )
    trainer.history = _history(json.loads(metadata["history"]))
    trainer.step_number = int(metadata["step_number"])
    _restore_precision(trainer)
    trainer.network.load_state_dict(_below("network", tensors))
    _load_optimizer(trainer.optimizer, _below("optimizer", tensors))
    trainer.scaler.load_state_dict(json.loads(metadata["scaler"]))
    for name, callback in _named_callbacks(trainer):
        state = _below(f"callback.{name}", tensors)
        if state:
            callback.load_state(state)
    torch.set_rng_state(tensors[_RANDOM])
    if _CUDA_RANDOM in tensors:
        torch.cuda.set_rng_state(tensors[_CUDA_RANDOM], trainer.device)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    found = _above("network", trainer.network.state_dict())
    for index, state in trainer.optimizer.state_dict()["state"].items():
        found |= _above(f"optimizer.{index}", state)
    for name, callback in _named_callbacks(trainer):
        found |= _above(f"callback.{name}", callback.state())
    found[_RANDOM] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        found[_CUDA_RANDOM] = torch.cuda.get_rng_state(trainer.device)
    # A copy of each, in plain layout: safetensors refuses shared memory.
    return {
        name: its.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, its in found.items()
    }


def _above(prefix: str, state: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": its for name, its in state.items() if isinstance(its, Tensor)}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {name[len(start) :]: its for name, its in tensors.items() if name.startswith(start)}


def _named_callbacks(trainer: Trainer) -> list[tuple[str, Callback]]:
    return [(type(callback).__name__, callback) for callback in trainer.callbacks]


def _load_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _restore_precision(trainer: Trainer) -> None:
    """The one that was chosen by the clock then: another would give other losses."""
    named = trainer.history.precision
    trainer.precision = next((one for one in PRECISIONS if one.name == named), trainer.precision)
    use_memory_format: Any = getattr(trainer.network, "use_memory_format", None)
    if use_memory_format is not None:
        use_memory_format(trainer.precision.memory_format)


def _history(content: dict[str, Any]) -> TrainingHistory:
    epochs = [EpochRecord(**epoch) for epoch in content.pop("epochs")]
    return TrainingHistory(**content, epochs=epochs)


def _read(path: Path, names: set[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (of those names; None: all) and metadata. Raises `TrainingError`."""
    try:
        with safe_open(path, framework="pt") as file:
            wanted = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be read: {error}; train without --resume to start anew"
        ) from error
