"""Decisions, measured part by part; every part prints its figures and ends with 1 on a miss.

    .venv/bin/python bench/decisions.py engines            labels, accuracy, ECE, flags, speed
    .venv/bin/python bench/decisions.py none               foreign images, and classes left out
    .venv/bin/python bench/decisions.py thresholds         beside 0.5 and fastai's sweep
    .venv/bin/python bench/decisions.py class_thresholds   what the gate for them lets through
    .venv/bin/python bench/decisions.py calibration        ECE and realised coverage, 20 deals

`PART --help` names its options. Test images are never used for a choice. Figures, machine and
spread: docs/decisions.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys

PARTS = ("engines", "none", "thresholds", "class_thresholds", "calibration")


def main() -> None:
    """Hand the command line to a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    options = parser.parse_args(sys.argv[1:2])
    sys.argv[0:2] = [f"{sys.argv[0]} {options.part}"]
    importlib.import_module(f"decisions_parts.{options.part}").main()


if __name__ == "__main__":
    main()
