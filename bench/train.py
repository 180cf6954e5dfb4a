"""Training, measured part by part; every part prints its figures and ends with 1 on a miss.

    .venv/bin/python bench/train.py promise    Fashion-MNIST by the default recipe
    .venv/bin/python bench/train.py best       Fashion-MNIST by the best recipe for 60 minutes
    .venv/bin/python bench/train.py fastai     images per second and accuracy beside fastai
    .venv/bin/python bench/train.py overhead   our loop over a bare PyTorch loop
    .venv/bin/python bench/train.py memory     resident memory at 10,000 and 40,000 images
    .venv/bin/python bench/train.py table      a CSV of a million rows
    .venv/bin/python bench/train.py gpu        on one CUDA device, where there is one

`PART --help` names its options. Figures, machine and spread: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys

# fastai's own name is taken: a module of that name here would stand in its way.
PARTS = {
    name: "beside_fastai" if name == "fastai" else name
    for name in ("promise", "best", "fastai", "overhead", "memory", "table", "gpu")
}


def main() -> None:
    """Hand the command line to a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    options = parser.parse_args(sys.argv[1:2])
    sys.argv[0:2] = [f"{sys.argv[0]} {options.part}"]
    importlib.import_module(f"train_parts.{PARTS[options.part]}").main()


if __name__ == "__main__":
    main()
