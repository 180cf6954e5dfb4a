"""Batches of fixed sizes: what is asked of a recording, here by plain calls on the CPU."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.engines.cuda_graphs import (
    FixedBatches,
    GraphRecorder,
    NotCapturedError,
    record_plainly,
)

SHAPE = (3, 3, 3)
SIZES = (1, 2, 4)


class Sums:
    """A network whose logits are sums of pixels; remembers what sizes it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, images):
        self.asked.append(len(images))
        sums = images.float().sum(dim=(1, 2))
        return sums, 2 * sums


@pytest.fixture
def network():
    return Sums()


@pytest.fixture
def batches(network):
    made = FixedBatches(network, SHAPE, SIZES, record=record_plainly)
    network.asked.clear()
    return made


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (11, *SHAPE), np.uint8)


@pytest.mark.parametrize(
    ("count", "asked"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (9, [4, 4, 1])]
)
def test_a_batch_is_padded_to_the_next_size_and_split_beyond_the_largest(
    count, asked, batches, network, images
):
    outputs = batches.run(images[:count])
    assert network.asked == asked
    assert np.array_equal(outputs.logits, images[:count].sum(axis=(1, 2), dtype=np.float32))
    assert np.array_equal(outputs.embedding, 2 * outputs.logits)


def test_what_is_left_of_a_former_batch_changes_nothing(batches, images):
    first = batches.run(images[:3])
    batches.run(images[4:8])
    again = batches.run(images[:3])
    assert np.array_equal(first.logits, again.logits)


def test_outputs_are_copies(batches, images):
    first = batches.run(images[:4])
    kept = first.logits.copy()
    batches.run(images[4:8])
    assert np.array_equal(first.logits, kept)


def test_the_largest_size_is_recorded_first_since_the_others_use_its_memory(network):
    sizes = []

    def record(forward, images):
        sizes.append(len(images))
        return record_plainly(forward, images)

    assert FixedBatches(network, SHAPE, SIZES, record=record).sizes == SIZES
    assert sizes == [4, 2, 1]


# Memory


def short_of_memory(most: int):
    """A recorder on a device that holds so many images."""

    def record(forward, images):
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return record_plainly(forward, images)

    return record


def test_sizes_that_memory_does_not_hold_are_left_out_where_fewer_will_do(network, images, caplog):
    batches = FixedBatches(network, SHAPE, SIZES, record=short_of_memory(2), or_fewer=True)
    assert batches.sizes == (1, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "no batches of 4: CUDA out of memory. Tried to allocate 9 GiB."
    ]
    assert np.array_equal(batches.run(images).logits, images.sum(axis=(1, 2), dtype=np.float32))


@pytest.mark.parametrize(("most", "or_fewer"), [(2, False), (0, True)])
def test_a_size_that_was_asked_for_and_a_single_image_have_to_fit(network, most, or_fewer):
    with pytest.raises(torch.OutOfMemoryError):
        FixedBatches(network, SHAPE, SIZES, record=short_of_memory(most), or_fewer=or_fewer)


# A network that cannot be captured


def test_what_cannot_be_captured_runs_plainly_and_that_is_said_once(network, images, caplog):
    tried = []

    def record(forward, images):
        tried.append(len(images))
        raise NotCapturedError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        batches = FixedBatches(network, SHAPE, SIZES, record=record)
    assert (batches.sizes, tried) == (SIZES, [4])
    assert [record.getMessage() for record in caplog.records] == [
        "batches of 4 and fewer run without CUDA graphs, which could not be captured:"
        " operation not permitted when stream is capturing"
    ]
    assert np.array_equal(batches.run(images).logits, images.sum(axis=(1, 2), dtype=np.float32))


def test_a_network_that_does_not_run_at_all_is_no_failed_capture():
    def broken(images):
        raise RuntimeError("no kernel image is available for execution on the device")

    with pytest.raises(RuntimeError, match="no kernel image"):
        FixedBatches(broken, SHAPE, SIZES, record=record_plainly)


# How a graph is captured, with what stands for CUDA


@pytest.fixture
def cuda(monkeypatch):
    """What is done, in order; `error` is raised in a capture, `at_end` when that is ended."""
    stands_for = SimpleNamespace(done=[], error=None, at_end=None, pools=0)

    def new_pool():
        stands_for.pools += 1
        return "pool"

    @contextmanager
    def graph(its, pool, stream, capture_error_mode):
        assert (pool, stream.name, capture_error_mode) == ("pool", "ours", "thread_local")
        stands_for.done.append("capture")
        try:
            yield
            if stands_for.error is not None:
                raise stands_for.error
        finally:
            if stands_for.at_end is not None:
                raise stands_for.at_end

    def replay():
        stands_for.done.append("play")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", new_pool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return stands_for


@pytest.fixture
def recorder(cuda):
    wait = lambda: cuda.done.append("wait")  # noqa: E731
    return GraphRecorder(SimpleNamespace(name="ours", synchronize=wait))


@pytest.fixture
def forward(cuda, network):
    def run(images):
        cuda.done.append("pass")
        return network(images)

    return run


def test_a_capture_comes_after_passes_that_warm_up_and_is_tried_at_once(cuda, recorder, forward):
    recording = recorder(forward, torch.ones(2, *SHAPE))
    assert cuda.done == ["pass"] * 3 + ["capture", "pass", "play", "wait"]
    recording.play()
    assert cuda.done[-2:] == ["wait", "play"]
    assert recording.logits.tolist() == [[9.0] * 3] * 2


def test_all_sizes_share_one_pool_of_memory(cuda, recorder, forward):
    for size in (4, 2, 1):
        recorder(forward, torch.ones(size, *SHAPE))
    assert cuda.pools == 1


def test_an_error_in_a_capture_means_that_there_is_none(cuda, recorder, forward):
    cuda.error = torch.AcceleratorError("operation not permitted when stream is capturing\nhints")
    with pytest.raises(NotCapturedError, match=r"^operation not permitted [a-z ]*$"):
        recorder(forward, torch.ones(2, *SHAPE))


def test_want_of_memory_in_a_capture_is_told_as_such_also_where_its_end_fails_too(
    cuda, recorder, forward
):
    cuda.error = torch.OutOfMemoryError("CUDA out of memory")
    cuda.at_end = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(torch.OutOfMemoryError):
        recorder(forward, torch.ones(2, *SHAPE))


def test_an_error_before_the_capture_is_the_networks_own(cuda, recorder):
    def broken(images):
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel"):
        recorder(broken, torch.ones(2, *SHAPE))
    assert cuda.done == []
