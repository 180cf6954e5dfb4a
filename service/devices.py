"""The NVIDIA GPUs that this process may use, and which worker gets which.

The driver is asked, not torch: importing that takes seconds, and the process that starts the
workers needs nothing else of it.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Sequence

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_DRIVER = "libcuda.so.1"


def visible_devices() -> list[str]:
    """Each GPU that the driver shows, as CUDA_VISIBLE_DEVICES would name it alone.

    Where that is set already, as by a scheduler, its own words are kept: numbers, or UUIDs of
    GPUs and of their MIG slices.
    """
    count = _device_count()
    named = os.environ.get(VISIBLE_DEVICES)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def share_out(workers: int, devices: Sequence[str]) -> list[tuple[str | None, int]]:
    """How many workers each GPU gets, as even as can be; without GPUs all are of none.

    >>> share_out(3, ["0", "1"]), share_out(3, [])
    ([('0', 2), ('1', 1)], [(None, 3)])
    """
    if not devices:
        return [(None, workers)]
    return list(Counter(devices[number % len(devices)] for number in range(workers)).items())


def _device_count() -> int:
    """As many as CUDA_VISIBLE_DEVICES leaves; 0 where there is no driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(_DRIVER)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):  # no driver, or none of CUDA's
        return 0
    return count.value
