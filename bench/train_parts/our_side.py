"""One training by Plumbline; prints a line of JSON, as fastai_side.py does.

    python our_side.py DATA EPOCHS SEED OPTION...

OPTION are those of `plumbline train`. All that `train` does up to the trained network is counted:
reading, decoding, baselines, the linear head, timing of precisions, epochs with validation. What
comes after it (export, calibration, outlier score, report) has no like in fastai and is not.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm  # noqa: F401 - what is imported when it is needed is not counted; fastai's is not either
import torch
import torch._dynamo

from model.settings import ModelSettings
from model.store import ModelStore
from plumbline.training_options import take_knobs, training_options
from training.loop import predict_all
from training.preparation import prepare_training
from training.recipe import train_network
from training.request import TrainRequest
from training.splits import Split


@click.command()
@click.argument("data")
@click.argument("epochs", type=int)
@click.argument("seed", type=int)
@click.option("--architecture")
@click.option("--size", type=int)
@click.option("--learning-rate", type=float)
@click.option("--batch-size", type=int)
@training_options
def main(data: str, epochs: int, seed: int, **options: Any) -> None:
    """Train, measure on the test rows, print."""
    knobs = take_knobs(options)
    request = TrainRequest(data, "bench", epochs=epochs, seed=seed, knobs=knobs, **options)
    with tempfile.TemporaryDirectory() as home:
        store = ModelStore(ModelSettings(home=Path(home)))
        start, cpu = time.perf_counter(), cpu_seconds()
        prepared = prepare_training(request, store, show_progress=False)
        outcome = train_network(prepared, request, store, [])
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        test = prepared.splits[Split.TEST]
        logits, _ = predict_all(outcome.network, test.images)
        reached = float((logits.argmax(axis=1) == np.asarray(test.targets)).mean())
        seen = epochs * len(prepared.fit)
        store.state.dispose()
    found = {"seconds": seconds, "cpu": cpu, "images": seen, "accuracy": reached}
    print(json.dumps({**found, "kept": outcome.kept, "precision": outcome.history.precision}))
    sys.stdout.flush()


def cpu_seconds() -> float:
    """Of this process and its children."""
    its = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in its)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
