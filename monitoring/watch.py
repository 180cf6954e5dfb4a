"""What the monitor knows of one model version: evidence, promise, alarm, reset."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from sqlalchemy import Engine

from model.bundle import Bundle
from model.errors import BundleError
from monitoring.alarm import Alarm
from monitoring.before_reset import BeforeReset
from monitoring.class_mix import ClassMix
from monitoring.discrepancy import Discrepancy, load_discrepancy
from monitoring.evidence import STREAMS, Evidence
from monitoring.labelled import BEFORE_ALARM_LABELS, LabelledMistakes
from monitoring.last_images import LastImages
from monitoring.pace import Pace, in_days
from monitoring.predictions import Predictions
from monitoring.prior_shift import untold
from monitoring.promise import LEAST_DEPENDENCE_IMAGES, Promise
from monitoring.rows import COMPARED, Rows, rows_of
from monitoring.sampling import BLOCK, Arrival, Sampler, new_sampler
from monitoring.settings import MonitoringSettings
from monitoring.streams import (
    components_of,
    edges_of,
    mistakes_of,
    reference_of,
    reference_records,
    streams_of,
)
from monitoring.windows import Comparison, Images, Window

log = logging.getLogger("plumbline.monitor")

State = Literal["ok", "drift", "cannot promise", "waiting"]
ResetWay = Literal["back", "keep", "new normal"]

HISTORY_POINTS = 400
FEW_CALIBRATION_IMAGES = 500
BEFORE_ALARM_IMAGES = 1_000  # sampled, that may belong to a drift before it shows
EXPLAINED_EVERY_IMAGES = 50  # sampled


class Watch:
    """Follows the records of one model version, and its labels where it may keep `predictions`."""

    def __init__(
        self, bundle: Bundle, settings: MonitoringSettings, predictions: Predictions | None = None
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._settings = settings
        self._predictions = predictions
        self.alpha = settings.alpha or self.manifest.outlier.alpha
        self.sampler = new_sampler(settings)
        reference = reference_of(bundle, new_sampler(settings))
        self.calibration_images = len(reference["confidence"])
        seed = int(bundle.manifest_sha256[:16], 16)
        self.evidence = Evidence.from_reference(reference, edges_of(bundle), seed=seed)
        self.promise = Promise()
        mistakes = (
            mistakes_of(bundle, new_sampler(settings)) if settings.labelled_at_random else None
        )
        self.labelled = LabelledMistakes(self.manifest, settings, mistakes, seed=seed + 1)
        self.pace = Pace()
        self.line = self.evidence.alarm_line(settings.false_alarm_images)
        self.images_served = 0
        self.images_sampled = 0
        self.last_image_seconds: float | None = None  # Unix time
        self.alarms: list[Alarm] = []
        self.drift: Alarm | None = None  # the alarm of the images that nobody has reset yet
        self.is_new_normal = False  # whether the bags were begun anew from production
        self.resets_seen = 0  # number of the last one in the audit
        self._reset_seconds = -math.inf  # Unix time of it
        self._before_reset = BeforeReset()
        self.last = LastImages(bundle, self.alpha, self.calibration_images)
        # Points (sampled images in all, log10 evidence per stream), ever further apart.
        self.history: list[tuple[int, list[float | None]]] = []
        self._history_step = 1
        # The last sampled images; not kept over a restart, since they only explain.
        self.window = Window(COMPARED)
        self._comparison: Comparison | None = None  # made when first needed
        self._class_mix = ClassMix(bundle, self.alpha)
        self._now: tuple[int, dict[str, Any]] = (-1, {})  # sampled images when it was made
        self.explained: dict[str, Any] | None = None  # what had changed at the alarm

    def take(self, records: pa.Table) -> list[Alarm]:
        """Follow records of this version, oldest first; gives the alarms that they raised.

        The records have to be `streams.fitting_rows`.
        """
        if not len(records):
            return []
        rows = rows_of(records, self.manifest)
        sampled_before = self.images_sampled
        alarms: list[Alarm] = []
        sampled: list[int] = []
        start = 0
        while start < len(rows):
            if (self.images_served + 1) % BLOCK == 0:
                self._renew_promise(self.sampler)
                if self.drift is not None:
                    self.evidence.note_drift()
            end = min(start + BLOCK - (self.images_served + 1) % BLOCK, len(rows))
            now = self._sampled(rows.arrivals[start:end], start)
            alarms += self._follow(rows, now)
            sampled += now
            self.images_served += end - start
            self.last_image_seconds = rows.arrivals[end - 1].seconds
            start = end
        before = sampled_before + np.searchsorted(sampled, np.arange(len(rows)))
        images = self.last.add(records, rows)
        self._class_mix.add(images, before[len(rows) - len(images) :].tolist())
        if self._predictions is not None:
            self._predictions.add(self.manifest.tag, rows.predictions(sampled))
        return alarms

    def _sampled(self, arrivals: Sequence[Arrival], first: int) -> list[int]:
        """Which rows count as evidence; the first of these arrivals is row `first`."""
        taken = np.flatnonzero(self.sampler.takes_which(arrivals)).tolist()
        # A file may appear after the reset of what it shows: seen, but no evidence any more.
        are_before = [arrivals[place].seconds <= self._reset_seconds for place in taken]
        self._before_reset.add(are_before)
        return [
            first + place
            for place, is_before in zip(taken, are_before, strict=True)
            if not is_before
        ]

    def _follow(self, rows: Rows, sampled: Sequence[int]) -> list[Alarm]:
        """Take sampled rows as evidence, in their order; gives the alarms."""
        alarms: list[Alarm] = []
        while sampled:
            before_mark = self.evidence.images_until_mark
            now, sampled = sampled[:before_mark], sampled[before_mark:]
            columns = rows.values[now].T
            p_values, log_bets = self.evidence.bet(dict(zip(STREAMS, columns, strict=True)))
            for row, its_p_values, its_bets in zip(now, p_values, log_bets, strict=True):
                self.images_sampled += 1
                self.evidence.settle(its_bets)
                if row == now[-1] and self.drift is None:
                    self.evidence.mark_if_due()
                self.window.add(*rows.for_window(row), log_bets=its_bets)
                self.promise.add(its_p_values, rows.answers[row])
                self.pace.add(rows.arrivals[row].seconds)
                alarms += self._judge(rows.arrivals[row].seconds)
                self._remember_point()
        return alarms

    def join(self, state: Engine, now: datetime) -> list[Alarm]:
        """Hold new feedback against what was predicted; gives the alarm that it raised.

        `saved` has to be called when all is saved.
        """
        raised: list[Alarm] = []
        if self._predictions is None:
            return raised
        joined = self.labelled.join(
            state, self._predictions, now, reset_seconds=self._reset_seconds
        )
        for received_at in joined:
            alarm = self.labelled.alarm(received_at.isoformat(), self.evidence.images)
            if alarm is not None:
                raised.append(alarm)
        self.alarms += raised
        return raised

    def saved(self) -> None:
        """The state is on disk, or was read from there: labels that it counts are used up."""
        if self._predictions is not None:
            self.labelled.mark_used(self._predictions)

    @property
    def is_drifting(self) -> bool:
        """Whether an alarm, of images or of labels, waits for a reset."""
        return self.drift is not None or self.labelled.drift is not None

    @property
    def state(self) -> State:
        """Drift until someone resets it; else whether there is a promise, and images."""
        if self.is_drifting:
            return "drift"
        if self.images_served == 0:
            return "waiting"
        is_promised = self.promise.holds and not self._is_undecided and not self._why_before_reset
        return "ok" if is_promised else "cannot promise"

    @property
    def sentence(self) -> str:
        """The state, for people."""
        c = self._settings.false_alarm_images
        labels = f" {self.labelled.sentence}".rstrip()
        match self.state:
            case "drift" if self.drift is None:
                return labels.lstrip()
            case "drift":
                assert self.drift is not None
                of_labels = "" if self.labelled.drift is None else labels
                return f"{self.drift.sentence} {self.promised_in_days}".rstrip() + of_labels
            case "waiting":
                return "Waiting: no images have been recorded for this version yet."
            case "cannot promise":
                why = self._why_undecided if self._is_undecided else self.promise.why_not
                if self.promise.holds and not self._is_undecided:
                    why = self._why_before_reset
                soon = "the images depended on each other until a moment ago"
                return f"No promise is possible: {why or soon}."
            case _:
                small = ""
                if self.evidence.first_images < FEW_CALIBRATION_IMAGES:
                    small = (
                        f" The evidence began with only {self.evidence.first_images}"
                        f" {'' if self.is_new_normal else 'calibration '}images: the promise holds,"
                        " but change shows later."
                    )
                return (
                    f"All is well: no drift in {self.evidence.images:,} sampled images. The chance"
                    f" of a false alarm so far was at most"
                    f" {min(1.0, self.evidence.images / c):.2g}."
                    f" {self.promised_in_days}".rstrip()
                    + small
                )

    @property
    def promised_in_days(self) -> str:
        """What the alarm promises, in days of today's traffic; empty before there are images."""
        return in_days(self._settings.false_alarm_images, self.pace.a_day)

    @property
    def _why_before_reset(self) -> str | None:
        """Why nothing is known of the images since the reset, or None."""
        return self._before_reset.why_not(seconds_since_reset=time.time() - self._reset_seconds)

    @property
    def _is_undecided(self) -> bool:
        """Whether the evidence is past the line, on images too few to say whether they depend."""
        past_line = self.evidence.strongest[1] >= self.line
        return self.drift is None and past_line and self.promise.has_too_few

    @property
    def _why_undecided(self) -> str:
        return (
            "the evidence is past the alarm line, but whether the images depend on each other shows"
            f" in {LEAST_DEPENDENCE_IMAGES} at the earliest, and it rests on"
            f" {self.promise.dependence.images} of {LEAST_DEPENDENCE_IMAGES} images"
        )

    def reset(self, number: int, seconds: float, way: ResetWay = "back") -> None:
        """Someone has looked into the drift: evidence begins anew.

        "back": the images since the drift leave the bags, and some from before the alarm, which it
        took to show. "keep" leaves them in, where nothing was wrong with them. "new normal": they
        alone stay. `number` is that of the reset in the audit; images up to its time `seconds` that
        come later are no evidence. The same is done with the labels; but only what drifted, images
        or labels, is held to something else than before.
        """
        self.resets_seen, self._reset_seconds = number, seconds
        self._before_reset.clear()
        images, labels = self._drifted() if way == "back" else (None, None)
        if self.drift is not None:
            self.evidence.note_drift()
        of_labels = way == "new normal" and self.labelled.drift is not None
        of_images = way == "new normal" and (self.drift is not None or not of_labels)
        self.evidence.reset(images, new_normal=of_images)
        self.labelled.reset(labels, new_normal=of_labels)
        self.is_new_normal |= of_images
        self.drift = self.explained = None
        self.window.clear()
        self._class_mix.clear()
        self._now = (-1, {})

    def _drifted(self) -> tuple[int | None, int | None]:
        """How many of the last images, and labelled images, may be of a drift of theirs."""
        images = labels = None
        if self.drift is not None:
            images = self.evidence.images - self.drift.after_images + BEFORE_ALARM_IMAGES
        if self.labelled.drift is not None:
            since = self.labelled.evidence.images - (self.labelled.drift.labelled_images or 0)
            labels = since + BEFORE_ALARM_LABELS
        return images, labels

    def explain(self) -> dict[str, Any]:
        """What is different in the last sampled images; renewed after every few of them."""
        made_at, explanation = self._now
        if self.images_sampled - made_at >= EXPLAINED_EVERY_IMAGES or not explanation:
            explanation = self._explain()
            self._now = self.images_sampled, explanation
        return explanation

    def _explain(self, alarm: str | None = None) -> dict[str, Any]:
        if not len(self.window):
            return {"images": 0}
        if self._comparison is None:
            self._comparison = _comparison(self.bundle, self._settings, self.alpha)
        return self._comparison.explain(self.window.images(), alarm=alarm)

    def class_mix_change(self) -> dict[str, Any]:
        """Whether a change of the class mix alone explains the last images; see `PriorShift`.

        Of the images since the last change of any stream, where `explain` finds one.
        """
        why = self.promise.why_not
        if why is not None:
            return untold(len(self.window), f"The class mix cannot be told: {why}.")
        return self._class_mix.explain(self.images_sampled - int(self.explain()["images"]))

    @property
    def class_mix_images(self) -> int:
        """How many images `class_mix_change` can look at."""
        return self._class_mix.images

    @property
    def class_mix_has_too_few(self) -> bool:
        """Whether too few images came since the start or a reset to tell the class mix."""
        return self._class_mix.has_too_few

    def accuracy_estimate(self) -> dict[str, Any]:
        """See `LastImages.accuracy_estimate`."""
        alarm = self.drift or self.labelled.drift
        return self.last.accuracy_estimate(None if alarm is None else alarm.stream)

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "tag": self.manifest.tag,
            "evidence": self.evidence.to_state(),
            "sampler": self.sampler.to_state(),
            **self.promise.to_state(),
            "labelled": self.labelled.to_state(),
            "pace": self.pace.to_state(),
            "new_normal": self.is_new_normal,
            "images_served": self.images_served,
            "images_sampled": self.images_sampled,
            "last_image_seconds": self.last_image_seconds,
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "drift": None if self.drift is None else asdict(self.drift),
            "resets_seen": self.resets_seen,
            "reset_seconds": self._reset_seconds if self.resets_seen else None,
            "before_reset": self._before_reset.to_state(),
            **self.last.to_state(),
            "history": self.history,
            "history_step": self._history_step,
            "explained": self.explained,
            "class_mix": self._class_mix.to_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`. Raises ValueError or KeyError where it does not fit."""
        if state["tag"] != self.manifest.tag:
            raise ValueError(f"it is of {state['tag']}, not of {self.manifest.tag}")
        self.evidence = Evidence.from_state(state["evidence"])
        self.sampler.restore(state["sampler"])
        self.promise.restore(state)
        if "labelled" in state:  # states of before have none of the three
            self.labelled.restore(state["labelled"])
            self.pace.restore(state["pace"])
            self.is_new_normal = bool(state["new_normal"])
        self.images_served = int(state["images_served"])
        self.images_sampled = int(state["images_sampled"])
        self.last_image_seconds = state["last_image_seconds"]
        self.alarms = [Alarm(**its) for its in state["alarms"]]
        self.drift = None if state["drift"] is None else Alarm(**state["drift"])
        self.resets_seen = int(state["resets_seen"])
        if self.resets_seen:
            self._reset_seconds = float(state["reset_seconds"])
        if "before_reset" in state:  # states of before have none
            self._before_reset.restore(state["before_reset"])
        self.last.restore(state)
        self.history = [(int(images), list(values)) for images, values in state["history"]]
        self._history_step = int(state["history_step"])
        self.explained = state.get("explained")  # states of before have neither
        self._class_mix.restore(state.get("class_mix"))

    def _judge(self, seconds: float) -> list[Alarm]:
        """Raise an alarm where the evidence reaches the line and there is a promise to keep."""
        stream, evidence = self.evidence.strongest
        if self.drift is not None or evidence < self.line or self._is_undecided:
            return []
        if self.promise.holds:  # if not, it is renewed after every block of images
            self._renew_promise()
        if not self.promise.allows_alarm():
            return []
        at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
        self.drift = Alarm(
            at, stream, self.evidence.images, evidence, self.labelled.evidence.images
        )
        self.alarms.append(self.drift)
        try:
            self.explained = self._explain(stream)
        except Exception:  # an alarm must not fail for want of an explanation
            log.exception("the alarm cannot be explained")
        return [self.drift]

    def _renew_promise(self, sampler: Sampler | None = None) -> None:
        held = self.promise.holds
        why = self.promise.renew(sampler)
        if held and why is not None:
            log.warning("no promise is possible: %s", why)
        # In a drift its images are counted on from the alarm, which a reset goes back by.
        if not held and why is None and self.drift is None:
            log.info("the images can be taken as independent again; the evidence begins anew")
            self.evidence.reset()

    def _remember_point(self) -> None:
        if self.images_sampled % self._history_step:
            return
        values = [
            None if math.isinf(its) else round(its, 4) for its in self.evidence.log10.values()
        ]
        self.history.append((self.images_sampled, values))
        if len(self.history) > HISTORY_POINTS:
            self._history_step *= 2
            self.history = [its for its in self.history if its[0] % self._history_step == 0]


def _comparison(bundle: Bundle, settings: MonitoringSettings, alpha: float) -> Comparison:
    """With the calibration split, under the rule that production is sampled by."""
    records = reference_records(bundle, new_sampler(settings))
    streams = streams_of(records, bundle.manifest)
    reference = Images(
        numbers={name: streams[name] for name in COMPARED},
        predicted=streams["predicted_class"].astype(np.int64),
        components=components_of(records),
        flagged=np.array(records["flagged"].to_pylist(), bool),
        seconds=np.zeros(len(records)),
        log_bets=np.zeros((len(records), len(STREAMS))),
        ids=records["id"].to_pylist(),
    )
    return Comparison(
        reference,
        bundle.manifest.classes,
        STREAMS,
        alpha=alpha,
        seed=int(bundle.manifest_sha256[:8], 16),
        labels=records["labels"].to_pylist(),
        discrepancy=_kept_discrepancy(bundle, reference),
    )


def _kept_discrepancy(bundle: Bundle, reference: Images) -> Discrepancy | None:
    """That of the bundle; None where another has to be drawn.

    So it is for older bundles, and where the sampler of this monitor leaves other images.
    """
    try:
        return load_discrepancy(bundle, reference.components)
    except BundleError as error:  # nothing is lost by it but a second
        log.warning("%s; the monitor draws its own", error)
        return None
