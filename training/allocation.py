"""How the C library hands out memory while a network is trained on a processor."""

from __future__ import annotations

import ctypes
import platform

# Numbers of malloc.h, for mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # bytes, that mallopt takes


def keep_freed_memory() -> None:
    """Let large blocks be used again, instead of mapping and clearing new pages for every layer.

    By default glibc gives blocks of more than 32 MiB back to the kernel as soon as they are freed.
    A training step allocates hundreds of them: up to half of its time went into page faults. What
    is resident at most is the same; it stays resident until the process ends. Other C libraries
    are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        library.mallopt(parameter, _LARGEST)
