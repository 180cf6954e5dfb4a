"""Grad-CAM drawn over the answers that cost most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.bundle import NETWORK
from model.decision import Task
from training.evaluate import Reopened
from training.top_losses import Place


def with_heat(places: list[Place], opened: Reopened) -> tuple[list[Place], str]:
    """With Grad-CAM drawn; or as they are, and why."""
    from model.network import create_network, load_weights
    from training.grad_cam import NoFeatureMapError

    manifest = opened.manifest
    network = create_network(manifest.architecture, len(manifest.classes), manifest.input)
    load_weights(network, opened.bundle.path(NETWORK))
    try:
        return draw_heat(network, places, manifest.classes, manifest.task), ""
    except NoFeatureMapError as error:
        return places, f"{manifest.architecture}: {error}"


def draw_heat(network: Any, places: list[Place], classes: Sequence[str], task: Task) -> list[Place]:
    """Grad-CAM for the answer and for the truth. Raises `NoFeatureMapError`."""
    from training.grad_cam import grad_cam, overlay

    if not places:
        return []
    images = np.stack([np.asarray(its.answers.images[its.row]) for its in places])
    pairs = [_classes_to_explain(its, task) for its in places]
    drawn = []
    for which in (0, 1):
        heat = grad_cam(network, images, [pair[which] for pair in pairs])
        drawn.append([overlay(*both) for both in zip(images, heat, strict=True)])
    return [
        Place(
            its.answers,
            its.row,
            classes[answer],
            drawn[0][number],
            classes[truth] if truth != answer else "",
            drawn[1][number] if truth != answer else None,
        )
        for number, (its, (answer, truth)) in enumerate(zip(places, pairs, strict=True))
    ]


def _classes_to_explain(place: Place, task: Task) -> tuple[int, int]:
    """Most probable class and the true one, as indices; of several labels the costliest, twice."""
    chances, target = place.answers.chances[place.row], place.answers.targets[place.row]
    if task == "single":
        return int(chances.argmax()), int(target)
    costliest = int(np.abs(chances - target).argmax())
    return costliest, costliest
