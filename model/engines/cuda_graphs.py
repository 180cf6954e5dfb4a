"""Batches of a few fixed sizes: what a size computes is recorded once and then played again.

On a GPU the record is a CUDA graph. A network of a hundred kernels is then started by one call
instead of a hundred, which is most of the time of a small batch. Elsewhere, and where a network
cannot be captured, it is the plain call: so all but the capture is the same on a CPU, where it is
tested.

Between two sizes a batch is padded to the larger one. The same kernels therefore run for every
batch of a size, and what an image gives does not depend on its neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engines import Outputs

log = logging.getLogger("plumbline.engine")

LARGEST_BATCH = 64  # images; larger batches are no faster, and hold up who comes next
_WARM_UP_PASSES = 3  # before a capture: libraries set themselves up and choose kernels

# Logits N x C and embedding N x D, float32, of uint8 images N x H x W x 3.
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recording:
    """One size: `play` computes what the images say now, into the same two tensors each time."""

    play: Callable[[], object]
    logits: Tensor
    embedding: Tensor


Recorder = Callable[[Forward, Tensor], Recording]


class NotCapturedError(Exception):
    """A pass through the network could not be captured; it may run all the same."""


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Powers of two below the largest size, and that.

    >>> sizes_up_to(48)
    (1, 2, 4, 8, 16, 32, 48)
    """
    powers = [2**power for power in range(largest.bit_length()) if 2**power < largest]
    return (*powers, largest)


def fitting_size(count: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that holds so many images; at least one of them has to.

    >>> fitting_size(5, (1, 2, 4, 8, 16))
    8
    """
    return min(size for size in sizes if size >= count)


def record_plainly(forward: Forward, images: Tensor) -> Recording:
    """No graph: the call itself."""
    logits, embedding = (output.clone() for output in forward(images))

    def play() -> None:
        for kept, new in zip((logits, embedding), forward(images), strict=True):
            kept.copy_(new)

    return Recording(play, logits, embedding)


class GraphRecorder:
    """Captures passes on one stream, into one pool of memory.

    Passes share the pool: they never run at the same time, and what one leaves there is copied out
    before another is played. Where the largest is captured first the others need next to nothing
    on top (torch's notes on CUDA semantics, "Graph memory management").
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward, images: Tensor) -> Recording:
        """Warm up and capture; called with the stream as the current one.

        Raises `NotCapturedError`; `torch.OutOfMemoryError` and RuntimeError where the network does
        not even run.
        """
        for _ in range(_WARM_UP_PASSES):
            forward(images)
        graph = torch.cuda.CUDAGraph()
        try:
            # Calls of other threads are none of this capture's business: the model that is to be
            # replaced goes on answering meanwhile, and may allocate memory.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                logits, embedding = forward(images)
            graph.replay()
            self._stream.synchronize()
        except RuntimeError as error:  # torch.AcceleratorError and torch.OutOfMemoryError are such
            shortage = _out_of_memory(error)
            if shortage is error:
                raise
            if shortage is not None:
                raise shortage from error
            raise NotCapturedError(str(error).partition("\n")[0]) from error
        return Recording(graph.replay, logits, embedding)


class FixedBatches:
    """Runs batches of any size by recordings of a few, through pinned memory.

    Images are copied to page-locked memory of the host, from there to the device while the host
    goes on, and the outputs come back the same way; the host waits once a batch. One thread at a
    time may call `run`.

    >>> def forward(images):
    ...     flat = images.float().mean(dim=(1, 2))
    ...     return flat, 2 * flat
    >>> batches = FixedBatches(forward, (4, 4, 3), (1, 2, 4), record=record_plainly)
    >>> batches.run(np.ones((3, 4, 4, 3), np.uint8)).embedding.tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    def __init__(
        self,
        forward: Forward,
        image_shape: tuple[int, int, int],
        sizes: Sequence[int],
        *,
        record: Recorder,
        stream: torch.cuda.Stream | None = None,
        or_fewer: bool = False,
    ) -> None:
        """Record all sizes, the largest first; without a stream on the CPU.

        `or_fewer` leaves out sizes that the memory of the device does not hold, all but the
        smallest. Raises `torch.OutOfMemoryError`, and RuntimeError where the network does not run.
        """
        self._stream = stream
        device = torch.device("cpu") if stream is None else stream.device
        self._record = record
        self._recordings: dict[int, Recording] = {}
        for size in sorted(sizes, reverse=True):
            try:
                with self._on_stream():
                    if not self._recordings:
                        shape = (size, *image_shape)
                        self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
                    with torch.inference_mode():
                        self._recordings[size] = self._recorded(forward, self._images[:size])
            except torch.OutOfMemoryError as error:
                if not or_fewer or size == min(sizes):
                    raise
                log.warning("no batches of %d: %s", size, str(error).partition("\n")[0])
            if size not in self._recordings and stream is not None:
                torch.cuda.empty_cache()
        self.sizes = tuple(sorted(self._recordings))
        largest = self._recordings[self.sizes[-1]]
        self._given = self._on_host(self._images)
        self._logits = self._on_host(largest.logits)
        self._embedding = self._on_host(largest.embedding)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`; more than the largest size in several batches."""
        most = self.sizes[-1]
        parts = [self._run(images[start : start + most]) for start in range(0, len(images), most)]
        if len(parts) == 1:
            return parts[0]
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _run(self, images: NDArray[np.uint8]) -> Outputs:
        count = len(images)
        recording = self._recordings[fitting_size(count, self.sizes)]
        np.copyto(self._given[:count].numpy(), images)
        with self._on_stream(), torch.inference_mode():
            # What is left of former batches pads this one: nobody reads what comes of it.
            self._images[:count].copy_(self._given[:count], non_blocking=True)
            recording.play()
            self._logits[:count].copy_(recording.logits[:count], non_blocking=True)
            self._embedding[:count].copy_(recording.embedding[:count], non_blocking=True)
        if self._stream is not None:
            # Of this stream alone: one that another thread captures must not be waited for.
            self._stream.synchronize()
        logits, embedding = self._logits[:count].numpy(), self._embedding[:count].numpy()
        return Outputs(logits.copy(), embedding.copy())

    def _recorded(self, forward: Forward, images: Tensor) -> Recording:
        try:
            return self._record(forward, images)
        except NotCapturedError as error:
            log.warning(
                "batches of %d and fewer run without CUDA graphs, which could not be captured: %s",
                len(images),
                error,
            )
            self._record = record_plainly
            return self._record(forward, images)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _on_host(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=like.dtype, pin_memory=self._stream is not None)


def _out_of_memory(error: BaseException) -> torch.OutOfMemoryError | None:
    """The want of memory that an error comes from: to end a broken capture raises one more."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, torch.OutOfMemoryError):
        cause = cause.__context__
    return cause
