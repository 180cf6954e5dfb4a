"""Figures of the monitor: printed, held against what is asked for, and kept with their tables."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from serve_parts import figures as serving


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options that every part has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("var/bench"))
    parser.add_argument("--json", action="store_true", help="Keep the figures in bench/results/.")
    return parser


def part_of(part: str, chosen: Sequence[str], of: Collection[str]) -> str:
    """The name of a part that was run on some of its data, so that it has a file of its own."""
    return part if len(chosen) == len(of) else "_".join([part, *chosen])


class Figures(serving.Figures):
    """As for serving, in files of their own."""

    FAMILY = "monitor"
    LIBRARIES = ("openvino", "numpy", "scipy", "scikit-learn")

    def keep(self, name: str, row: Mapping[str, float]) -> None:
        """Keep a row of a table, which nothing is asked of, among the figures."""
        self._found.append({"name": name, "row": dict(row)})
