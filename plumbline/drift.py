"""`plumbline drift`: plays traffic whose domain changes, and tells what the monitor says.

Clean images are the test images of the champion's data, and nobody labels them: both versions are
compared on them. Changed ones are made from its validation images, which no version learned, and
the labeller speaks of those that were changed alone (docs/retraining.md says what that is worth).
In two kinds the images stay as they are: of `prior` some classes become three times as frequent,
and of `concept` the labeller calls every class by the name of the next.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
from PIL import Image, ImageFilter

from model.errors import DataError, MonitorError, ServiceError
from model.images import InputSpec, Pixels
from model.settings import read_settings
from model.store import ModelStore
from plumbline.client import Client
from plumbline.monitor_status import monitor_status
from plumbline.settings import ClientSettings
from service.settings import ServiceSettings
from training.self_check import made_foreign_images
from training.sources import Source, open_source
from training.splits import Labels, Split
from training.tables import Columns

PER_REQUEST = 8
_PAUSE_SECONDS = 0.2  # between requests, so that what the monitor says can be followed
_NOISE_DEVIATION, _BLUR_RADIUS = 40, 1.0
_FAVOURED_CLASSES, _TIMES_AS_FREQUENT = 3, 3
_NOT_TO_LEARN = ("foreign", "prior")  # no labels, and images as they always were
_RETRAINING_LIMIT_SECONDS = 3600.0
_FOLLOWING_LIMIT_SECONDS = 20.0  # a monitor that has just started, or a promotion, takes a few

Change = Callable[[Pixels, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Play:
    """What to play: so many clean images, then at most so many changed ones.

    `share` of the images after the change are changed. `retraining`: go on until the retraining
    that the alarm starts has ended.
    """

    kind: str
    clean_images: int = 400
    changed_images: int = 2_000
    share: float = 1.0
    labels: bool = True
    retraining: bool = True
    seed: int = 0  # 0: by the clock, so that the next play sends other images


def play(settings: ServiceSettings, what: Play) -> bool:
    """Play against a running service and monitor; whether the monitor raised the alarm.

    Raises `ServiceError` or `MonitorError` where one of them does not answer, and `DataError`
    where the champion's data is not there any more.
    """
    pages = MonitorPages(f"http://{settings.monitor_on}")
    what = _with_seed(what)
    api_key = read_settings(ClientSettings).api_key
    with Client(f"http://{settings.serve_on}", api_key=api_key) as client:
        tag = _check_ready(client, pages)
        source, spec = _source_of(settings, tag)
        player = Player(client, pages, source, spec, what)
        say(f"{what.clean_images} clean images to {tag}")
        player.send(Split.TEST, what.clean_images, changed=False)
        if what.kind == "clean":
            pages.wait_for_records()
            return pages.show() == "drift"
        say(f"from here on {what.share:.0%} of the images are changed: {what.kind}")
        drifted = player.send_until_drift(Split.VALIDATION, what.changed_images)
        to_learn = what.retraining and what.labels and what.kind not in _NOT_TO_LEARN
        if drifted and to_learn and player.send_until_retraining(Split.VALIDATION):
            pages.wait_for_retraining()
        return drifted


def _with_seed(what: Play) -> Play:
    seed = what.seed or int(time.time())
    say(f"seed {seed}; --seed {seed} plays the same again")
    return replace(what, seed=seed)


def say(message: str) -> None:
    """One line on standard output, at once."""
    click.echo(f"{time.strftime('%H:%M:%S')}  {message}")
    sys.stdout.flush()


class MonitorPages:
    """What the monitor says, told when it changes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._told = ""

    def status(self) -> dict[str, Any]:
        """As `monitor_status` has it."""
        return monitor_status(self._url)

    def show(self) -> str:
        """Tell what is new; gives the state."""
        status = self.status()
        sentence = status["sentence"]
        if status["state"] == "ok":
            strongest = max(
                (value for value in status["log10_evidence"].values() if value is not None),
                default=0.0,
            )
            sentence = (
                f"ok: {status['images_sampled']:,} images sampled, evidence 10^{strongest:.1f} of"
                f" 10^{status['alarm_line']:.1f}"
            )
        if sentence != self._told:
            say(f"monitor: {sentence}")
            self._told = sentence
        return str(status["state"])

    def wait_for_records(self) -> None:
        """Until the monitor has read what was sent last, at most some seconds."""
        seen = -1
        for _ in range(5):
            time.sleep(2)
            served = self.status()["images_served"]
            if served == seen:
                return
            seen = served

    def retraining(self) -> dict[str, str] | None:
        """The newest retraining that the monitor shows."""
        found = self.status().get("retrainings") or [None]
        newest: dict[str, str] | None = found[0]
        return newest

    def wait_for_retraining(self) -> None:
        """Until the newest retraining has ended; tells how."""
        say("monitor: a retraining is running; the champion goes on serving")
        until = time.monotonic() + _RETRAINING_LIMIT_SECONDS
        while time.monotonic() < until:
            newest = self.retraining()
            if newest is not None and newest["outcome"] != "running":
                say(f"retraining ({newest['why']}): {newest['words']}")
                return
            time.sleep(1)
        raise MonitorError("the retraining did not end within an hour; see monitor/retrain.log")


class Player:
    """Sends images with what a labeller says of the changed ones, each row of a split once."""

    def __init__(
        self, client: Client, pages: MonitorPages, source: Source, spec: InputSpec, what: Play
    ) -> None:
        self._client = client
        self._pages = pages
        self._source = source
        self._spec = spec
        self._what = what
        self._random = np.random.default_rng(what.seed)
        self._rows = {
            split: iter(self._random.permutation(source.rows(split)).tolist()) for split in Split
        }

    def send(self, split: Split, count: int, *, changed: bool) -> None:
        """Send so many images, telling what the monitor says meanwhile."""
        for batch in self._batches(split, count, changed=changed):
            self._send(batch)
            self._pages.show()

    def send_until_drift(self, split: Split, most: int) -> bool:
        """Send changed images until the monitor says drift, or `most` were sent."""
        sent = 0
        for batch in self._batches(split, most, changed=True):
            self._send(batch)
            sent += len(batch)
            if self._pages.show() == "drift":
                say(f"alarm after at most {sent} changed images")
                return True
        self._pages.wait_for_records()
        return self._pages.show() == "drift"

    def send_until_retraining(self, split: Split) -> bool:
        """Send changed images, with labels, until a retraining runs; whether one does."""
        before, told = self._pages.retraining(), ""
        for batch in self._batches(split, len(self._source), changed=True):
            status = self._pages.status()
            if (status.get("retrainings") or [None])[0] != before:
                return True
            waits = status.get("retraining_waits") or ""
            if waits and waits.partition(":")[0] != told.partition(":")[0]:
                say(f"monitor: retraining: {waits}")
            told = waits
            if waits.startswith(("cooling down", "not needed", "waiting for trust")):
                return False
            self._send(batch)
        say("the images ended before a retraining was started")
        return False

    def _batches(
        self, split: Split, count: int, *, changed: bool
    ) -> Iterator[list[tuple[bytes, Labels | None]]]:
        batch: list[tuple[bytes, Labels | None]] = []
        rows = self._rows[split]
        if changed and self._what.kind == "prior":
            rows = filter(self._is_favoured, rows)
        for _, row in zip(range(count), rows, strict=False):
            batch.append(self._image(row, changed=changed))
            if len(batch) == PER_REQUEST:
                yield batch
                batch = []
        if batch:
            yield batch

    def _image(self, row: int, *, changed: bool) -> tuple[bytes, Labels | None]:
        """A PNG with what the labeller says of it.

        None of a foreign image, which has no labels, and of one that is as the data have it: it
        is a test image, or was used for choices, and must not be learned.
        """
        pixels = self._source.reader.prepare(row, self._spec)
        labels: Labels | None = None
        if changed and self._random.random() < self._what.share:
            if self._what.kind not in _NOT_TO_LEARN:
                labels = self._source.labels[row]
            if self._what.kind == "concept":
                labels = renamed(self._source.labels[row], self._source.classes)
            pixels = change(self._what.kind, pixels, self._random)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue(), labels

    def _is_favoured(self, row: int) -> bool:
        """Whether to keep an image, so that the first classes are three times as frequent."""
        favoured = self._source.classes[:_FAVOURED_CLASSES]
        if not set(favoured).isdisjoint(self._source.labels[row]):
            return True
        return bool(self._random.random() < 1 / _TIMES_AS_FREQUENT)

    def _send(self, batch: list[tuple[bytes, Labels | None]]) -> None:
        answers = self._client.predict([image for image, _ in batch]).predictions
        for answer, (_, labels) in zip(answers, batch, strict=True):
            if self._what.labels and labels is not None and answer.id is not None:
                self._client.feedback(answer.id, labels)
        time.sleep(_PAUSE_SECONDS)


def change(kind: str, pixels: Pixels, random: np.random.Generator) -> Pixels:
    """One image, uint8 H x W x 3, as another domain shows it."""
    match kind:
        case "dark":
            return np.asarray(pixels // 2, np.uint8)
        case "blur":
            blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(_BLUR_RADIUS))
            return np.asarray(blurred)
        case "noise":
            noise = random.normal(0, _NOISE_DEVIATION, pixels.shape)
            return np.asarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
        case "foreign":
            return _foreign(pixels, random)
    return pixels


def renamed(labels: Labels, classes: Sequence[str]) -> Labels:
    """Every class by the name of the next one.

    >>> renamed(("cat", "dog"), ["cat", "cow", "dog"])
    ('cow', 'cat')
    """
    places = (classes.index(label) for label in labels)
    return tuple(classes[(place + 1) % len(classes)] for place in places)


def _foreign(pixels: Pixels, random: np.random.Generator) -> Pixels:
    foreign = made_foreign_images(pixels[None], random, count=1)
    return np.asarray(foreign["rendered shapes"][0])


def _status_of(tag: str, pages: MonitorPages) -> dict[str, Any]:
    """What the monitor says, once it watches that version; else what it says in the end."""
    deadline = time.monotonic() + _FOLLOWING_LIMIT_SECONDS
    while (status := pages.status())["model"] != tag and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    return status


def _check_ready(client: Client, pages: MonitorPages) -> str:
    try:
        answer = client.model()
    except ServiceError as error:
        raise ServiceError(
            error.code, f"{error.message}; start the service first, with make up", error.status
        ) from error
    tag = f"{answer['name']}:{answer['version']}"
    status = _status_of(tag, pages)
    if status["model"] != tag:
        raise MonitorError(f"the service serves {tag} and the monitor watches {status['model']}")
    if status["state"] == "drift":
        raise MonitorError(
            "the monitor says drift already; reset it first: plumbline monitor reset --why TEXT"
        )
    return tag


def _source_of(settings: ServiceSettings, tag: str) -> tuple[Source, InputSpec]:
    store = ModelStore(settings)
    manifest = store.load(store.find(tag)).manifest
    source = open_source(
        manifest.data.source,
        task=manifest.task,
        delimiter=str(manifest.training.get("delimiter") or " "),
        seed=int(manifest.training.get("seed", 0)),
        skip_bad=bool(manifest.training.get("skip_bad")),
        home=store.home,
        pattern=manifest.training.get("pattern"),
        columns=Columns.of(manifest.training.get("columns") or {}),
    )
    if not source.rows(Split.TEST):
        raise DataError(f"{manifest.data.source} has no test images to play as clean ones")
    return source, manifest.input
