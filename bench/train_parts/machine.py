"""What every part prints of the machine, and how it shows figures with their spread."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")  # that speeds depend on


def print_machine(*libraries: str) -> None:
    """Processor, cores, Python and libraries, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line for line in lines if line.startswith("model name")), ": unknown")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    has = " ".join(one for one in _INSTRUCTIONS if one in flags)
    versions = ", ".join(f"{library} {version(library)}" for library in libraries)
    print(
        f"{name.partition(':')[2].strip()} ({has}), {os.cpu_count()} cores,"
        f" Python {platform.python_version()}, {versions}",
        flush=True,
    )


def spread(values: Sequence[float], form: str) -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}}, {len(values)} runs)"
