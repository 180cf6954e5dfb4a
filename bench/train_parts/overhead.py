"""Our loop over a bare PyTorch loop: the same network and data in memory, by turns.

    .venv/bin/python bench/train.py overhead [--rounds 7] [--device cuda]

The bare loop takes a batch, computes loss and gradients, steps, and sets the rate by torch's own
OneCycleLR; nothing is recorded, checked, shown or validated. Ends with 1 over 3 % more time
(`--most`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import torch
from torch.nn import functional

from model.network import create_network, default_input_spec
from train_parts.machine import print_machine, spread
from training.loop import Arrays, Trainer
from training.settings import TrainingSettings

IMAGES, BATCH, CLASSES = 4096, 256, 10


def main() -> None:
    """Measure and print; exit with 1 over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--architecture", default="small-resnet")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--most", type=float, default=0.03, help="share of the time")
    options = parser.parse_args()
    print_machine("torch")
    spec = default_input_spec(options.architecture)
    random = np.random.default_rng(0)
    shape = (IMAGES, spec.size, spec.size, 3)
    data = Arrays(random.integers(0, 256, shape, np.uint8), random.integers(0, CLASSES, IMAGES))
    settings = TrainingSettings(
        epochs=1,
        batch_size=BATCH,
        shift_share=0.0,
        precision=options.precision,
        device=options.device,
    )
    pairs = []
    for _ in range(1 + options.rounds):  # the first warms up
        ours = our_seconds(options.architecture, data, settings)
        pairs.append((ours, bare_seconds(options.architecture, data, settings)))
    ratios = [ours / bare for ours, bare in pairs[1:]]
    speeds = [IMAGES / statistics.median(side) for side in zip(*pairs[1:], strict=True)]
    print(f"ours {speeds[0]:.0f} images/s, bare {speeds[1]:.0f}; time {spread(ratios, '.3f')}")
    sys.exit(0 if statistics.median(ratios) <= 1 + options.most else 1)


def our_seconds(architecture: str, data: Arrays, settings: TrainingSettings) -> float:
    """One epoch of `Trainer` without its validation."""
    network = create_network(architecture, CLASSES, default_input_spec(architecture), seed=0)
    few = Arrays(data.images[:BATCH], data.targets[:BATCH])
    trainer = Trainer(network, data, few, settings, "single")
    trainer.notify("before_fit")
    start = time.perf_counter()
    trainer.run_epoch(1)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    trainer.validate(1, start)
    return whole - (time.perf_counter() - start)


def bare_seconds(architecture: str, data: Arrays, settings: TrainingSettings) -> float:
    """One epoch as the shortest script would write it."""
    device = torch.device(settings.device)
    network = create_network(architecture, CLASSES, default_input_spec(architecture), seed=0)
    network.to(device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=IMAGES // BATCH)
    images, targets = torch.from_numpy(data.images), torch.from_numpy(data.targets)
    start = time.perf_counter()
    for rows in torch.randperm(IMAGES).split(BATCH):
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            logits, _ = network(images[rows].to(device))
        loss = functional.cross_entropy(logits.float(), targets[rows].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
