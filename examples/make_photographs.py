"""Write class folders of real photographs: crops of scikit-image's samples.

    python examples/make_photographs.py FOLDER

Eight photographs, one class each, 100 crops a class at 320 px: something to train on without a
download, and enough to calibrate the outlier flag at 1 %. Crops overlap, so accuracy on them
flatters; use your own data.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "camera": skimage.data.camera,
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "coins": skimage.data.coins,
    "gravel": skimage.data.gravel,
    "page": skimage.data.page,
    "rocket": skimage.data.rocket,
}
CROPS = 100


def main(folder: Path) -> None:
    """Write the crops, the same ones every time."""
    rng = np.random.default_rng(0)
    for name, photograph in PHOTOGRAPHS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(photograph()).convert("RGB")
        for number in range(CROPS):
            side = int(rng.integers(0.5 * min(image.size), 0.9 * min(image.size)))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            crop = image.crop((left, top, left + side, top + side))
            crop.resize((320, 320)).save(folder / name / f"{number:03}.jpg", quality=90)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_photographs.py FOLDER")
    main(Path(sys.argv[1]))
