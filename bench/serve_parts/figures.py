"""Figures that are printed, held against what is asked for, and kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from train_parts.machine import print_machine

from serve_parts.payloads import PAYLOADS, ROOT, model_of, train_once

RESULTS = ROOT / "bench" / "results"


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options that every part has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("var/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="Of each measurement.")
    parser.add_argument("--json", action="store_true", help="Keep the figures in bench/results/.")
    return parser


def begin(
    part: str, parser: argparse.ArgumentParser, *, payload: str = "256"
) -> tuple[Figures, argparse.Namespace]:
    """Of a part that asks for one payload at a time: its figures and options, and a version of it.

    `payload` is the default.
    """
    parser.add_argument("--payload", choices=PAYLOADS, default=payload)
    options = parser.parse_args()
    options.home = options.home.absolute()
    figures = Figures(part, options)
    train_once(options.home, model_of(options.payload))
    return figures, options


class Figures:
    """Prints medians with their range, and remembers what missed.

    `libraries` are those whose versions are told, `others` versions in other environments, `device`
    names what computes beside the processor.
    """

    FAMILY = "serve"  # begins the names of the files
    LIBRARIES: tuple[str, ...] = ("openvino", "bentoml", "numpy")

    def __init__(
        self,
        part: str,
        options: argparse.Namespace,
        *,
        libraries: Sequence[str] = (),
        others: Mapping[str, str] | None = None,
        device: str = "",
    ) -> None:
        self._part, self._options = part, options
        libraries = libraries or self.LIBRARIES
        self._versions = {name: version(name) for name in libraries} | dict(others or {})
        self._device = device
        self._found: list[dict[str, object]] = []
        self._missed: list[str] = []
        print_machine(*libraries)
        if others:
            print(", ".join(f"{name} {its}" for name, its in others.items()), flush=True)
        if device:
            print(device, flush=True)

    def add(
        self,
        name: str,
        values: Sequence[float],
        form: str = ".1f",
        *,
        least: float | None = None,
        most: float | None = None,
    ) -> float:
        """Print one; gives its median, which is what has to reach the floor."""
        median = statistics.median(values)
        asked = "" if least is None else f"; at least {least:g} is asked for"
        asked += "" if most is None else f"; at most {most:g} is asked for"
        missed = (least is not None and median < least) or (most is not None and median > most)
        if missed:
            self._missed.append(name)
        spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
        print(f"{name}: {median:{form}}{spread}{asked}{' - MISSED' if missed else ''}", flush=True)
        self._found.append(
            {"name": name, "values": list(values), "least": least, "most": most, "missed": missed}
        )
        return median

    def end(self) -> None:
        """Keep the figures where that was asked for; exit with 1 where something missed."""
        if self._options.json:
            RESULTS.mkdir(exist_ok=True)
            content = {
                "part": self._part,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                **({"device": self._device} if self._device else {}),
                "versions": self._versions,
                "options": {
                    name: str(value)
                    for name, value in vars(self._options).items()
                    if name != "home"
                },
                "figures": self._found,
            }
            path = RESULTS / f"{self.FAMILY}_{self._part}.json"
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        sys.exit(1 if self._missed else 0)
