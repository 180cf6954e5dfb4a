"""Serving, measured part by part; every part prints its figures and ends with 1 on a miss.

    .venv/bin/python bench/serve.py pace       served over the raw loop, start, memory (make bench)
    .venv/bin/python bench/serve.py steps      where the CPU time of an image goes
    .venv/bin/python bench/serve.py latency    one client, half load, right after a burst
    .venv/bin/python bench/serve.py overload   twice, five and ten times of what can be served
    .venv/bin/python bench/serve.py door       CPU time of a request besides its image
    .venv/bin/python bench/serve.py peers      LitServe, FastAPI, BentoML's batching beside ours
    .venv/bin/python bench/serve.py batching   BentoML's batching made safe beside ours
    .venv/bin/python bench/serve.py threads    CPU time of a worker's threads, load and overload
    .venv/bin/python bench/serve.py tuning     what settings of the process are worth
    .venv/bin/python bench/serve.py switch     a promotion under full load
    .venv/bin/python bench/serve.py soak       memory and file descriptors over half an hour
    .venv/bin/python bench/serve.py gpu        on one CUDA device, where there is one
    .venv/bin/python bench/serve.py all        all of them after each other, with the same options

Everything that is compared runs in turns in one run, and what counts is the ratio. The server has
a core of its own and the load generator, a process of its own, another. `PART --help` names its
options. With `--json` a part leaves its figures in bench/results/. Figures, machine and spread:
docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence

PARTS = (
    "pace",
    "steps",
    "latency",
    "overload",
    "door",
    "peers",
    "batching",
    "threads",
    "tuning",
    "switch",
    "soak",
    "gpu",
)


def main() -> None:
    """Hand the command line to a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(*PARTS, "all"))
    options = parser.parse_args(sys.argv[1:2])
    if options.part == "all":
        sys.exit(run_all(sys.argv[2:]))
    sys.argv[0:2] = [f"{sys.argv[0]} {options.part}"]
    importlib.import_module(f"serve_parts.{options.part}").main()


def run_all(arguments: Sequence[str]) -> int:
    """Each in a process of its own; 1 where one missed."""
    missed = []
    for part in PARTS:
        print(f"\n{part}", flush=True)
        done = subprocess.run([sys.executable, __file__, part, *arguments], check=False)
        if done.returncode:
            missed.append(part)
    print(f"\nmissed or not to be run here: {', '.join(missed) or 'none'}")
    return int(bool(missed))


if __name__ == "__main__":
    main()
