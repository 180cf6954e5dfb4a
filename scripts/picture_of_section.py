"""A picture of one section of a report, as the pages of `docs/` show them.

    python scripts/picture_of_section.py REPORT.html SECTION PICTURE.png

SECTION is an id of the page, such as outliers, decision or sets. Takes chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, MOST_HEIGHT, MARGIN = 1_080, 4_000, 16  # px


def main(report: Path, section: str, picture: Path) -> None:
    """Hide all the rest, take a screenshot, cut off what is empty."""
    page = report.read_text(encoding="utf-8")
    if f'id="{section}"' not in page:
        sys.exit(f"{report} has no section {section!r}")
    alone = f"<style>main > :not(#{section}) {{ display: none }}</style></head>"
    with tempfile.TemporaryDirectory() as folder:
        shown, taken = Path(folder, "page.html"), Path(folder, "page.png")
        shown.write_text(page.replace("</head>", alone, 1), encoding="utf-8")
        command = [
            *("chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"),
            *(f"--window-size={WIDTH},{MOST_HEIGHT}", f"--screenshot={taken}", shown.as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True)
        image = Image.open(taken).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, empty).getbbox() or (0, 0, *image.size)
    margins = (-MARGIN, -MARGIN, MARGIN, MARGIN)
    image.crop([edge + margin for edge, margin in zip(box, margins, strict=True)]).save(
        picture, optimize=True
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python scripts/picture_of_section.py REPORT.html SECTION PICTURE.png")
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
