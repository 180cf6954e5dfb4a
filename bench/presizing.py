"""Warps of presized photographs against fastai's: images per second, and likeness to the truth.

    .venv/bin/python bench/presizing.py [--rounds 15]

Measured on 2 shared cores (AMD EPYC), torch 2.15.0, fastai 2.8.12: 7.5 times as fast (6.8 to 14.4
in 15 rounds of a batch of 32), 2.0 dB nearer to the truth (0.2 to 9.0 in 56 warps). Makes an
environment for fastai below var/ the first time, which shares torch with ours, so that both run in
one process, by turns, with the same threads.

fastai: `Resize(460)`, then `aug_transforms(size=224, min_scale=.75)` on the batch.
Plumbline: presized to 392, bicubic, then `training.warp.warp` to 224.

Ends with 1 when the warps are less than 6 times as fast, or less than 1.5 dB nearer to the same
warp of the whole photograph sampled 4 x 4 times per pixel.
"""

from __future__ import annotations

import argparse
import io
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
import torch
from fastai_environment import run_beside_fastai
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model.images import InputSpec, fit_to, prepare
from training.loading import presized_spec
from training.warp import Warp, sample, warp

BATCH, FINAL, OURS, THEIRS = 32, 224, 392, 460  # images; px
LEAST_RATIO, LEAST_DECIBELS = 6.0, 1.5
PHOTOGRAPHS = ("astronaut", "camera", "hubble_deep_field", "retina", "grass", "gravel", "brick")
WARPS = [(angle, crop) for angle in (-9, -4, 5, 10) for crop in (0.9, 0.8)]  # whole pixels of 460


def main() -> None:
    """Measure and print; exit with 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("var/presizing.png"))
    options = parser.parse_args()
    run_beside_fastai()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "fastai", "pillow"))
    print(f"Python {platform.python_version()}, {libraries}, {torch.get_num_threads()} threads")
    ratio = measure_speed(options.rounds)
    gain = measure_likeness(options.out)
    sys.exit(0 if ratio >= LEAST_RATIO and gain >= LEAST_DECIBELS else 1)


def measure_speed(rounds: int) -> float:
    """Images per second of each, by turns; the median of the ratios."""
    photograph = skimage.data.astronaut()
    ours = batch_of(photograph, OURS)
    theirs = batch_of(photograph, THEIRS).permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(0)
    transform = fastai_transform()

    def warp_ours() -> None:
        warp(ours, FINAL, Warp(), generator)

    def warp_theirs() -> None:
        transform(theirs)

    pairs = by_turns(rounds, warp_ours, warp_theirs)
    ratio = report_speed("warp, a batch of 32 in memory", pairs, BATCH)
    encoded = jpeg(photograph)
    larger = presized_spec(InputSpec(size=FINAL, mean=(0, 0, 0), std=(1, 1, 1)), OURS)
    resize = fastai_resize()

    def whole_ours() -> None:
        images = [prepare(encoded, larger) for _ in range(BATCH)]
        warp(torch.from_numpy(np.stack(images)), FINAL, Warp(), generator)

    def whole_theirs() -> None:
        images = [np.asarray(resize(encoded)) for _ in range(BATCH)]
        transform(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))

    pairs = by_turns(max(3, rounds // 3), whole_ours, whole_theirs)
    report_speed("decode a 512 x 512 JPEG, presize, warp", pairs, BATCH)
    return ratio


def by_turns(
    rounds: int, ours: Callable[[], None], theirs: Callable[[], None]
) -> list[tuple[float, float]]:
    """Seconds of each, one after the other, so that both meet the same machine."""
    for once in (ours, theirs):
        once()
    return [(seconds(ours), seconds(theirs)) for _ in range(rounds)]


def seconds(once: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def report_speed(what: str, pairs: list[tuple[float, float]], count: int) -> float:
    """Print images per second, and the ratio with its spread; give its median."""
    ratios = [theirs / ours for ours, theirs in pairs]
    speeds = [count / statistics.median(side) for side in zip(*pairs, strict=True)]
    median = statistics.median(ratios)
    print(
        f"{what}: {speeds[0]:.0f} images/s against {speeds[1]:.0f}, ratio {median:.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f}, {len(pairs)} rounds)"
    )
    return median


def measure_likeness(picture: Path) -> float:
    """Mean gain in decibels over photographs and warps, against one sampled 4 x 4 times."""
    gains, rows = [], []
    for name in PHOTOGRAPHS:
        photograph = squared(getattr(skimage.data, name)())
        for angle, crop in WARPS:
            matrix = rotated_crop(angle, crop)
            truth = functional.avg_pool2d(sample(channels(photograph), matrix, FINAL * 4), 4)
            ours = sample(channels(resized(photograph, OURS, "bicubic")), matrix, FINAL)
            theirs = fastai_warp(channels(resized(photograph, THEIRS)), angle, crop)
            gains.append(decibels(ours, truth) - decibels(theirs, truth))
        rows.append([ours, theirs, truth])
        print(
            f"{name:18} ours {decibels(ours, truth):.2f} dB, fastai {decibels(theirs, truth):.2f}"
        )
    low, high = min(gains), max(gains)
    print(f"gain {statistics.mean(gains):.2f} dB ({low:.2f} to {high:.2f}, {len(gains)} warps)")
    save_picture(rows, picture)
    return statistics.mean(gains)


def rotated_crop(angle: float, crop: float) -> Tensor:
    """Output to source: the centre `crop` of the image turned by `angle` degrees."""
    turn = math.radians(angle)
    cosine, sine = crop * math.cos(turn), crop * math.sin(turn)
    return torch.tensor([[[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]]])


def fastai_warp(image: Tensor, angle: float, crop: float) -> Tensor:
    """The same warp as fastai does it: turned at the large size, then cropped and resized."""
    from fastai.vision.all import TensorImage

    # Its default, align_corners=True, would move the image by part of a pixel against the truth.
    matrix = rotated_crop(angle, 1.0)[:, :2]
    turned = TensorImage(image / 255).affine_coord(mat=matrix, align_corners=False)
    kept = round(THEIRS * crop)
    start = (THEIRS - kept) // 2
    part = turned[..., start : start + kept, start : start + kept]
    return Tensor(part.affine_coord(sz=(FINAL, FINAL), align_corners=False)) * 255


def fastai_transform() -> Callable[[Tensor], Any]:
    """What its data loader does to a batch on the device."""
    from fastai.vision.all import IntToFloatTensor, Pipeline, TensorImage, aug_transforms

    steps = [IntToFloatTensor(), *aug_transforms(size=FINAL, min_scale=0.75)]
    pipeline = Pipeline(steps, split_idx=0)
    return lambda images: pipeline(TensorImage(images))


def fastai_resize() -> Callable[[bytes], Any]:
    """What its data loader does to one image on the CPU."""
    from fastai.vision.all import PILImage, Resize

    resize = Resize(THEIRS)
    return lambda data: resize(PILImage.create(io.BytesIO(data)), split_idx=0)


def batch_of(photograph: np.ndarray, side: int) -> Tensor:
    """uint8 32 x side x side x 3."""
    one = torch.from_numpy(resized(squared(photograph), side).copy())
    return one.repeat(BATCH, 1, 1, 1).contiguous()


def resized(
    pixels: np.ndarray, side: int, how: Literal["bilinear", "bicubic"] = "bilinear"
) -> np.ndarray:
    """Antialiased, uint8."""
    spec = InputSpec(size=side, mean=(0, 0, 0), std=(1, 1, 1), interpolation=how)
    return fit_to(pixels, spec)


def squared(pixels: np.ndarray) -> np.ndarray:
    """The middle square, in colour."""
    return resized(pixels, min(pixels.shape[:2]))


def channels(pixels: np.ndarray) -> Tensor:
    """float 1 x 3 x H x W in 0..255."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()


def decibels(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio."""
    return float(10 * torch.log10(255**2 / (image - truth).square().mean()))


def jpeg(pixels: np.ndarray) -> bytes:
    """Encoded at quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def save_picture(rows: list[list[Tensor]], path: Path) -> None:
    """Ours, fastai's and the truth beside each other; the last warp of each photograph."""
    lines = [torch.cat(row, dim=3) for row in rows]
    table = torch.cat(lines, dim=2)[0].clamp(0, 255).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(table.permute(1, 2, 0).numpy()).save(path)
    print(f"picture: {path} (ours, fastai, truth)")


if __name__ == "__main__":
    main()
