"""One item through the pipeline, step by step, so that a mistake shows where it happens.

fastai book, chapter 5: build the pipeline a little at a time, and look at what every step gives.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.errors import ImageError, SettingsError
from model.images import InputSpec, Pixels, check, decode, fit_to
from training.augment import augment, erase, shrink
from training.loading import NONE_OF_THEM, presized_spec, targets_of
from training.mixing import cutmix, mixup, soft_targets
from training.settings import TrainingSettings
from training.sources import Source
from training.splits import Split
from training.warp import warp


@dataclass(frozen=True)
class Step:
    """What one step of the pipeline gave."""

    name: str
    says: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    least: float | None = None
    most: float | None = None
    picture: Pixels | None = None  # H x W or H x W x 3


def find_row(source: Source, item: str) -> int:
    """The row that a number (from 0) or a name of `source` means. Raises `SettingsError`."""
    if item in source.names:
        return source.names.index(item)
    if item.isdecimal() and int(item) < len(source):
        return int(item)
    raise SettingsError(
        f"--item {item!r}: no such item in {source.name}; valid is a name such as"
        f" {source.names[0]!r}, or a number from 0 to {len(source) - 1}"
    )


def show_item(
    source: Source, row: int, spec: InputSpec, settings: TrainingSettings, *, draws: int = 3
) -> list[Step]:
    """The steps from stored bytes to network input and target, in their order.

    Where the item is to fit on, they are those of training, with `draws` random warps;
    otherwise those of serving. Ends early, with a step that says why, where one fails.
    """
    stored = source.reader.stored(row)
    steps: list[Step] = []
    try:
        if isinstance(stored, bytes):
            steps.append(_bytes_step(stored))
            pixels = decode(stored, check(stored), math.ceil(spec.size / spec.crop))
            steps.append(_array_step("decode", "upright, in RGB or grey", pixels))
        else:
            pixels = stored
            steps.append(_array_step("read", "pixels of the idx file", pixels))
        prepared = fit_to(pixels, spec)
        says = f"to {spec.size} px, {spec.interpolation}; what serving and validation see"
        steps.append(_array_step("crop the middle and resize", says, prepared))
        shown, more = _training_steps(source, row, spec, settings, prepared, draws)
        more += _mixed(source, row, spec, settings, shown)
    except ImageError as error:
        return [*steps, Step("failed", str(error))]
    return [*steps, *more, _normalised(shown, spec), _target_step(source, row)]


def _training_steps(
    source: Source,
    row: int,
    spec: InputSpec,
    settings: TrainingSettings,
    prepared: Pixels,
    draws: int,
) -> tuple[Pixels, list[Step]]:
    """What training alone does, and the image that it hands on."""
    if source.splits[row] is not Split.FIT:
        return prepared, []
    generator = torch.Generator().manual_seed(settings.seed)
    if not settings.presize:
        batch = torch.from_numpy(np.stack([prepared] * draws))
        changed = augment(batch, settings.augmentation, generator).numpy()
        says = "mirror, shift and erase, drawn anew at every step of training"
        steps = _draws("augment", says, changed)
        if _first_side(spec, settings) < spec.size:
            smaller = shrink(torch.from_numpy(changed[:1]), _first_side(spec, settings))
            steps.append(_smaller(spec, settings, smaller))
        return changed[0], steps
    larger = presized_spec(spec, math.ceil(settings.presize * spec.size))
    place = float(np.random.default_rng((settings.seed, row)).random())
    presized = source.reader.prepare(row, larger, place)
    says = f"to {larger.size} px, {settings.presize:g} times the input; cut {place:.0%} of the way"
    batch = torch.from_numpy(np.stack([presized] * draws))
    warped = warp(batch, spec.size, settings.warp, generator)
    steps = [
        _array_step("presize", says, presized),
        *_draws("warp", "crop, zoom, turn, shear, tilt: one matrix, then light", warped.numpy()),
    ]
    if _first_side(spec, settings) < spec.size:
        smaller = warp(batch[:1], _first_side(spec, settings), settings.warp, generator)
        steps.append(_smaller(spec, settings, smaller))
    if settings.erase_probability:
        says = f"a rectangle of noise, in {settings.erase_probability:.0%} of the images"
        warped = erase(warped, settings.erase_probability, generator)
        steps += _draws("erase", says, warped.numpy())
    return warped.numpy()[0], steps


def _first_side(spec: InputSpec, settings: TrainingSettings) -> int:
    """Side in px that the first epoch is trained at."""
    return settings.side_in_epoch(1, spec.size)


def _smaller(spec: InputSpec, settings: TrainingSettings, images: torch.Tensor) -> Step:
    epochs = range(1, settings.epochs + 1)
    small = sum(settings.side_in_epoch(epoch, spec.size) < spec.size for epoch in epochs)
    says = f"to {images.shape[1]} px instead, in the first {small} of {settings.epochs} epochs"
    return _array_step("smaller", says, images.numpy()[0])


def _mixed(
    source: Source, row: int, spec: InputSpec, settings: TrainingSettings, image: NDArray[Any]
) -> list[Step]:
    """Mixup and CutMix with the next image that is trained on, as one draw of each shows them."""
    rows = [its for its in source.rows(Split.FIT) if its != row and source.labels[its]]
    target = targets_of(source, [row])
    if source.splits[row] is not Split.FIT or not rows or NONE_OF_THEM in target:
        return []
    other = next((its for its in rows if its > row), rows[0])
    try:
        partner = source.reader.prepare(other, spec)
    except ImageError as error:  # no fault of the item that is looked at
        return [Step("mix", f"left out: {source.names[other]} {error}")]
    pair = np.stack([image, partner]).astype(np.float32)
    targets = soft_targets(torch.from_numpy(targets_of(source, [row, other])), len(source.classes))
    steps = []
    for name, mix, alpha in (("mixup", mixup, settings.mixup), ("CutMix", cutmix, settings.cutmix)):
        if alpha:
            random = _that_swaps_two(settings.seed)
            mixed, shares = mix(torch.from_numpy(pair), targets, alpha, random)
            told = ", ".join(
                f"{share:.2f} {source.classes[index]}"
                for index, share in enumerate(shares[0].tolist())
                if share
            )
            says = f"with {source.names[other]}: {told or 'none of the classes'}"
            steps.append(_array_step(name, says, mixed.numpy()[0]))
    return steps


def _that_swaps_two(seed: int) -> np.random.Generator:
    """A generator whose first permutation of two is not the one that leaves them in place."""
    swapping = (
        number
        for number in itertools.count(seed)
        if np.random.default_rng(number).permutation(2)[0] == 1
    )
    return np.random.default_rng(next(swapping))


def _draws(name: str, says: str, images: NDArray[Any]) -> list[Step]:
    return [
        _array_step(f"{name}, draw {number}", says, image)
        for number, image in enumerate(images, start=1)
    ]


def _bytes_step(stored: bytes) -> Step:
    header = check(stored)
    says = f"{header.format.upper()} of {header.width} x {header.height} px"
    return Step("read", says, (len(stored),), "bytes")


def _array_step(name: str, says: str, values: NDArray[Any]) -> Step:
    picture = values if values.dtype == np.uint8 else np.clip(values, 0, 255).astype(np.uint8)
    return Step(
        name,
        says,
        tuple(values.shape),
        str(values.dtype),
        float(values.min()),
        float(values.max()),
        picture,
    )


def _normalised(image: NDArray[Any], spec: InputSpec) -> Step:
    """As the network's first layer has it: channels first, mean and deviation taken out."""
    values = (image.astype(np.float32) / 255 - np.array(spec.mean)) / np.array(spec.std)
    values = values.astype(np.float32).transpose(2, 0, 1)
    says = "inside the network: channels first, less the mean, over the deviation"
    least, most = float(values.min()), float(values.max())
    return Step("normalise", says, tuple(values.shape), str(values.dtype), least, most)


def _target_step(source: Source, row: int) -> Step:
    target = targets_of(source, [row])[0]
    labels = ", ".join(source.labels[row]) or "none of the classes"
    says = f"{labels} ({source.splits[row]} split): {np.array2string(target, threshold=12)}"
    return Step("label to target", says, tuple(target.shape), str(target.dtype))
