"""Retraining: one at a time, on what people said of production images; the champion stays.

A second is refused while the first lives (`monitoring.retraining_lock`). It trains on the
champion's data with the labelled images added, starting from the champion's weights, and compares
both versions on the champion's test images and on the newest labelled images that neither of them
learned. Promotion stays a command.
"""

from __future__ import annotations

import csv
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from model.bundle import Manifest
from model.errors import MonitorError
from model.state import alarms, record, write_transaction
from model.store import ModelStore
from monitoring.alarm import LABELLED_MISTAKES
from monitoring.labels import BEGINNING, LabelledImage, Labels, labelled_images
from monitoring.retraining_images import (
    TABLE,
    new_folder,
    note_learned,
    remove_unneeded,
    unlearned,
    write_learning,
    write_table,
)
from monitoring.retraining_lock import beating, begin, end, last_retraining
from monitoring.settings import MonitoringSettings

log = logging.getLogger("plumbline.retrain")

COST_MATRIX = "costs.csv"
HELD_OUT_SHARE = 0.2  # of the labelled images since the alarm, the newest
_ERROR_LINES = 5
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ORPHANED = 75  # exit code, sysexits.h: try again
# Loaded here: a child between fork and exec must not wait for a lock of its parent's threads.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_METRICS = {"single": "accuracy", "multi": "micro_f1"}


class NoNewLabelsError(MonitorError):
    """There is nothing new to learn from; not a failure."""


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same images."""

    champion: str
    challenger: str
    # Accuracy, or micro F1 for several labels, by "champion" and "challenger".
    test: dict[str, float] | None  # on the champion's test images, where there are any
    production: dict[str, float]  # on the newest labelled production images
    production_images: int
    left_out: str = ""  # of the labelled images, by reason, in words

    def in_words(self) -> str:
        """One sentence."""
        on_test = ""
        if self.test is not None:
            on_test = (
                f", {self.test['challenger']:.3f} against {self.test['champion']:.3f} on the test"
                " images"
            )
        return (
            f"{self.challenger} against {self.champion}: {self.production['challenger']:.3f}"
            f" against {self.production['champion']:.3f} on the {self.production_images} newest"
            f" labelled production images{on_test}. To promote it:"
            f" plumbline promote {self.challenger}"
            f"{f'. Of the labelled images, {self.left_out}' if self.left_out else ''}"
        )


def retrain(settings: MonitoringSettings, why: str) -> Comparison:
    """Train a challenger of the champion and compare them; gives the comparison.

    Raises `NoNewLabelsError`, and `MonitorError` when another retraining runs or this one fails.
    The champion is untouched whatever happens.
    """
    store = ModelStore(settings)
    champion = store.champion(settings.model)
    manifest = store.load(champion).manifest
    asked_at = datetime.now(UTC)  # what is said from here on is new the next time
    labels = new_labels(settings, store, manifest, received_until=asked_at)
    recent = labels.recent
    counted = labels.counted(settings.retrain_least_labels, settings.trusted_clients)
    if counted.images < settings.retrain_least_labels:
        told = f"; of the others, {labels.left_out}" if labels.left_out else ""
        told += f"; {counted.left_out}" if counted.left_out else ""
        raise NoNewLabelsError(
            f"{counted.images} images with new labels{labels.since_in_words}, and"
            f" PLUMBLINE_RETRAIN_LEAST_LABELS is {settings.retrain_least_labels}: not"
            f" retraining{told}"
        )
    # The newest of those that no model has learned from, the champion included.
    held_out = unlearned(recent, manifest)[-max(1, round(HELD_OUT_SHARE * len(recent))) :]
    if not held_out:
        raise NoNewLabelsError(
            f"{manifest.tag} has learned all of the {len(recent)} images with new labels, or they"
            " are removed: there is nothing to compare on, not retraining"
        )
    number = begin(store.state, manifest.name, why, asked_at)
    try:
        with beating(store.state, number):
            ids = {its.prediction_id for its in held_out}
            others = [its for its in labels.images if its.prediction_id not in ids]
            comparison = _train_and_compare(settings, manifest, others, held_out, number)
            comparison = replace(comparison, left_out=labels.left_out)
    except BaseException as error:
        end(store.state, number, "failed", {"error": _reason(error)})
        remove_unneeded(store, manifest.name)
        raise
    end(store.state, number, "challenger", asdict(comparison))
    remove_unneeded(store, manifest.name)
    with write_transaction(store.state) as connection:
        record(connection, "challenger", comparison.challenger, comparison.in_words())
    return comparison


def _reason(error: BaseException) -> str:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "it was stopped"
    return str(error) or type(error).__name__


def new_labels(
    settings: MonitoringSettings,
    store: ModelStore,
    manifest: Manifest,
    received_until: datetime | None = None,
) -> Labels:
    """Labelled images of this model; recent are those that no retraining before has used.

    `since` is the last alarm for this version: what came after it shows the changed domain.
    """
    return labelled_images(
        settings,
        store.state,
        manifest,
        since=_last_alarm(store.state, manifest.tag) or BEGINNING,
        received_after=learned_until(store.state, manifest.name) or BEGINNING,
        received_until=received_until,
    )


def learned_until(state: Engine, model: str) -> datetime | None:
    """Up to when labels were received that the last challenger learned from."""
    used = last_retraining(state, model, outcome="challenger")
    return None if used is None else used.started_at


def _last_alarm(state: Engine, tag: str) -> datetime | None:
    """Of its images: one of labels tells when a label came, and their images came before."""
    of_images = (alarms.c.model == tag) & (alarms.c.stream != LABELLED_MISTAKES)
    query = select(alarms.c.time).where(of_images).order_by(alarms.c.id.desc())
    with state.connect() as connection:
        time = connection.scalar(query.limit(1))
    return None if time is None else datetime.fromisoformat(time)


def _train_and_compare(
    settings: MonitoringSettings,
    champion: Manifest,
    images: Sequence[LabelledImage],
    held_out: Sequence[LabelledImage],
    number: int,
) -> Comparison:
    folder = new_folder(settings.home, champion.name, number)
    newest, learning = folder / "held-out", folder / "learning"
    delimiter = str(champion.training.get("delimiter") or " ")
    held_out_count = write_table(newest, held_out, delimiter)
    if not held_out_count:
        raise MonitorError("the images to compare on were removed before they could be copied")
    # What is held out must not be learned, under whatever id it was sent.
    write_learning(learning, images, champion, delimiter, kept_apart=newest)
    trained = _plumbline(settings, _training_arguments(champion, learning / TABLE, delimiter))
    note_learned(learning, champion)
    challenger = str(trained["version"])

    metric = _METRICS[champion.task]

    def accuracies(*data: str) -> dict[str, float]:
        options = (*data, "--delimiter", delimiter, "--json")
        return {
            which: float(_plumbline(settings, ["evaluate", tag, *options])[metric])
            for which, tag in (("champion", champion.tag), ("challenger", challenger))
        }

    test = None
    if champion.metrics_split == "test":
        reading = _reading_arguments(champion)
        test = accuracies("--data", champion.data.source, "--split", "test", *reading)
    production = accuracies("--data", str(newest / TABLE), "--split", "all")
    return Comparison(champion.tag, challenger, test, production, held_out_count)


def _training_arguments(champion: Manifest, learning: Path, delimiter: str) -> list[str]:
    settings = champion.training
    return [
        *("train", "--data", champion.data.source, "--more", str(learning)),
        *("--name", champion.name, "--task", champion.task),
        *("--architecture", champion.architecture, "--weights", champion.tag),
        *("--size", str(champion.input.size), "--seed", str(settings.get("seed", 0))),
        *("--delimiter", delimiter, "--json"),
        *_reading_arguments(champion),
        *_threshold_arguments(champion, learning.parent.parent),
        *_none_arguments(champion),
        *(["--skip-bad"] if settings.get("skip_bad") else []),
        *(["--intended-use", champion.intended_use] if champion.intended_use else []),
        *(["--int8"] if settings.get("int8") else []),
    ]


def _threshold_arguments(champion: Manifest, folder: Path) -> list[str]:
    """To tune for what the champion's thresholds were tuned for; costs go into a file."""
    settings, costs = champion.training, champion.training.get("costs")
    arguments = []
    if settings.get("objective") and champion.task == "multi":
        arguments += ["--objective", str(settings["objective"])]
    if costs:
        path = folder / COST_MATRIX
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("class", "false_positive", "false_negative"))
            for name, its in costs.items():
                writer.writerow((name, its["false_positive"], its["false_negative"]))
        arguments += ["--cost-matrix", str(path)]
    if settings.get("per_class_thresholds") is False:
        arguments.append("--no-per-class-thresholds")
    return arguments


def _none_arguments(champion: Manifest) -> list[str]:
    """How the champion learned to say "none of the classes", and was judged by foreign images."""
    settings = champion.training
    arguments = ["--foreign", str(settings["foreign"])] if settings.get("foreign") else []
    if champion.task == "single":
        arguments += ["--none"] if champion.none_allowed else []
        arguments += ["--head", "sigmoid"] if settings.get("head") == "sigmoid" else []
        for name in ("negatives", "none_loss"):
            if settings.get(name):
                arguments += [f"--{name.replace('_', '-')}", str(settings[name])]
    return arguments


def _reading_arguments(champion: Manifest) -> list[str]:
    """How the data of the first training were read; not for the tables that are written here."""
    columns = champion.training.get("columns") or {}
    given = [
        ("--pattern", champion.training.get("pattern")),
        ("--file-column", columns.get("file")),
        ("--split-column", columns.get("split")),
        ("--clean", champion.training.get("clean")),
        *(("--label-column", name) for name in columns.get("labels") or ()),
    ]
    return [str(word) for option, value in given if value for word in (option, value)]


def _end_with_parent(parent: int) -> None:
    """Linux: a training does not outlive a retraining that was killed, whose lock is then free."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before it was asked: no signal will come
            os._exit(_ORPHANED)


def _plumbline(settings: MonitoringSettings, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command of ours and read its JSON; it is a process, since it may crash."""
    environment = {**os.environ, "PLUMBLINE_HOME": str(settings.home.absolute())}
    done = subprocess.run(
        [sys.executable, "-m", "plumbline", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(_end_with_parent, os.getpid()),
    )
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-_ERROR_LINES:])
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise MonitorError(f"plumbline {arguments[0]} ended with {how}: {last or 'no message'}")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found
