"""The processes that train together: which one this is, and what they tell each other.

They are started by torchrun (PyTorch elastic), and are one alone without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from model.errors import SettingsError

Rows = TypeVar("Rows", Tensor, NDArray[np.int64], NDArray[np.float32])

_LONGEST_WAIT = timedelta(days=1)  # for the process that decodes a large source


@dataclass(frozen=True)
class World:
    """How many processes train together, and which one this is.

    Of whatever belongs to a batch process r of n takes rows r, r + n, r + 2 n, ...

    >>> World(rank=1, size=2).part(np.array([10, 11, 12, 13])).tolist()
    [11, 13]
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """The one that prints, saves and registers."""
        return self.rank == 0

    def part(self, rows: Rows) -> Rows:
        """What this process takes of all rows."""
        return rows[self.rank :: self.size]

    def agree(self, number: int, device: torch.device) -> int:
        """What the first process has found."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=device)
        distributed.broadcast(shared, 0)
        return int(shared)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes; gradients do not pass."""
        if self.size == 1:
            return value
        shared = value.detach().clone()
        distributed.all_reduce(shared)
        return shared / self.size

    def join(
        self, part: NDArray[np.float32], count: int, device: torch.device
    ) -> NDArray[np.float32]:
        """All `count` rows, in order, of the parts that `part` gave; every process gets them."""
        if self.size == 1:
            return part
        padded = torch.zeros(-(-count // self.size), *part.shape[1:], device=device)
        padded[: len(part)] = torch.from_numpy(part).to(device)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return np.asarray(torch.stack(parts, dim=1).flatten(0, 1)[:count].cpu().numpy())

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Run the body in the first process, then in the others, which find what it left."""
        if self.size > 1 and not self.is_first:
            distributed.barrier()
        yield
        if self.size > 1 and self.is_first:
            distributed.barrier()


ALONE = World()


def current_world() -> World:
    """The processes of `training_together`, or this one alone."""
    if not distributed.is_initialized():
        return ALONE
    return World(distributed.get_rank(), distributed.get_world_size())


def local_device(wanted: str) -> torch.device:
    """The device that the settings name; `auto` is cuda where there is one.

    Among several processes plain `cuda` is a device of one's own. Raises `SettingsError` for a
    device that is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and current_world().size > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    devices = torch.cuda.device_count()
    if re.fullmatch(r"cpu|cuda(:\d+)?", wanted) is None:
        raise SettingsError(f"--device {wanted!r}: valid are auto, cpu, cuda, or cuda:N")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= devices:
        raise SettingsError(
            f"--device {wanted}: PyTorch sees {devices} CUDA devices here; valid are cpu"
            + "".join(f", cuda:{number}" for number in range(devices))
        )
    return device


@contextmanager
def training_together(device: str) -> Iterator[World]:
    """Join the processes that torchrun started; alone without it.

    `device` is that of `TrainingSettings`: nccl joins CUDA devices, gloo everything else.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ["LOCAL_RANK"])
    if on_cuda:
        if local >= torch.cuda.device_count():
            raise SettingsError(
                f"torchrun started {local + 1} or more processes and there are"
                f" {torch.cuda.device_count()} CUDA devices; give --nproc-per-node that many, or"
                " --device cpu"
            )
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_cuda else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield current_world()
        # One that parts while another still waits for its last sum ends that one by SIGABRT.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
