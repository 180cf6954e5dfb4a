"""Write scenes of none to four garments of Fashion-MNIST: several labels per image, or none.

    python examples/make_scenes.py FOLDER [COUNT]
    plumbline train --data FOLDER/scenes.csv --delimiter ';' --name scenes

6,000 grey scenes of 56 px, or COUNT. Every garment is shown once in all of them, in a quarter of
its own, smaller or larger, moved, and dimmer or brighter, on noise. As many scenes of each number
of garments; the classes are as frequent as in Fashion-MNIST. FOLDER/scenes.csv names the classes
seen.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.idx import read_idx_files
from training.raw_tables import fashion_mnist_folder

SCENES = 6_000
QUARTER = 28  # px, and half of a scene's side
QUARTERS = ((0, 0), (0, QUARTER), (QUARTER, 0), (QUARTER, QUARTER))
SCALE, BRIGHTNESS = (0.6, 1.0), (0.5, 1.0)
NOISE = 12  # standard deviation, of 255

Pixels = NDArray[np.uint8]


def main(folder: Path, count: int = SCENES) -> None:
    """Write the scenes and the table, the same ones every time."""
    garments = read_idx_files(fashion_mnist_folder())
    random = np.random.default_rng(0)
    unseen = iter(random.permutation(garments.train_count))
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    with (folder / "scenes.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["fname", "labels"])
        for number in range(count):
            rows = [int(next(unseen)) for _ in range(number % (len(QUARTERS) + 1))]
            place = Path("scenes", f"{number:04}.png")
            scene = compose([garments.images[row] for row in rows], random)
            Image.fromarray(scene).save(folder / place)
            names = sorted({garments.classes[garments.labels[row]] for row in rows})
            table.writerow([place.as_posix(), ";".join(names)])
    print(f"{count} scenes and scenes.csv in {folder}")


def compose(images: list[Pixels], random: np.random.Generator) -> Pixels:
    """Each image (28 x 28) in another quarter of the scene, 56 x 56."""
    scene = random.normal(0, NOISE, (2 * QUARTER, 2 * QUARTER))
    for image, quarter in zip(images, random.permutation(len(QUARTERS)), strict=False):
        side = int(QUARTER * random.uniform(*SCALE))
        garment = np.asarray(Image.fromarray(image).resize((side, side)), float)
        top, left = np.array(QUARTERS[quarter]) + random.integers(QUARTER - side + 1, size=2)
        scene[top : top + side, left : left + side] += garment * random.uniform(*BRIGHTNESS)
    return scene.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/make_scenes.py FOLDER [COUNT]")
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
