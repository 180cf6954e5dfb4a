"""The monitor's promises, measured part by part; every part ends with 1 on a miss.

    .venv/bin/python bench/monitor.py flags        share of clean images that are flagged
    .venv/bin/python bench/monitor.py foreign      foreign images, by kind, beside other detectors
    .venv/bin/python bench/monitor.py score        time of one outlier score; dimensions
    .venv/bin/python bench/monitor.py alarms       false alarms, c = 1e4 and 1e5; memory
    .venv/bin/python bench/monitor.py memory       ten million records through the whole monitor
    .venv/bin/python bench/monitor.py correlated   traffic that is no sample
    .venv/bin/python bench/monitor.py delay        images until the alarm, beside five peers
    .venv/bin/python bench/monitor.py accuracy     accuracy estimated without labels

`PART --help` names its options. Versions are trained into --home the first time; the outputs of
their engines are kept there. No test image takes part in a choice. With `--json` a part leaves
its figures in bench/results/. Speed: bench/evidence.py, and `bench/serve.py steps` for the share of
the service. What is promised, with figures, machine and spread: docs/promises.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys

PARTS = ("flags", "foreign", "score", "alarms", "memory", "correlated", "delay", "accuracy")


def main() -> None:
    """Hand the command line to a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    options = parser.parse_args(sys.argv[1:2])
    sys.argv[0:2] = [f"{sys.argv[0]} {options.part}"]
    importlib.import_module(f"monitor_parts.{options.part}").main()


if __name__ == "__main__":
    main()
