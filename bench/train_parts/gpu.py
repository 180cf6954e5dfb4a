"""Training on one CUDA device: a bare loop's images per second, and Fashion-MNIST in a minute.

    .venv/bin/python bench/train.py gpu [--seeds 0 1 2]

ResNet-50 at 224 px in bf16: our loop over the bare one, at least 0.95. Fashion-MNIST by the recipe
of the part `best`: at least 0.955 in under 60 seconds. Not run yet: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parent.parent / "train.py"


def main() -> None:
    """Run both; exit with 1 where one misses, with 2 without a device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        sys.exit(2)
    print(torch.cuda.get_device_name(), flush=True)
    parts = (
        ["overhead", "--device", "cuda", "--architecture", "resnet50", "--precision", "bf16"],
        ["best", "--least", "0.955", "--most-seconds", "60", "--seeds", *options.seeds],
    )
    runs = [subprocess.run([sys.executable, SCRIPT, *part], check=False) for part in parts]
    sys.exit(1 if any(run.returncode for run in runs) else 0)
