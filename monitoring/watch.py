"""What the monitor knows of one model version: evidence, alarm, and the last images' figures."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from model.bundle import REFERENCE, Bundle
from model.decision import probabilities
from monitoring.accuracy import (
    AtcReference,
    atc,
    atc_interval,
    cbpe,
    cbpe_interval,
    expected_labels,
    why_invalid,
)
from monitoring.class_mix import ClassMix, sample_of
from monitoring.evidence import STREAMS, Evidence
from monitoring.prior_shift import untold
from monitoring.reasons import MEASURED, Calibration, Reasons
from monitoring.records import read_records
from monitoring.reference_accuracy import atc_reference
from monitoring.sampling import BLOCK, Dependence, Repeats, Sampler
from monitoring.settings import MonitoringSettings
from monitoring.streams import (
    FloatArray,
    accepted_labels,
    arrivals_of,
    components_of,
    edges_of,
    logits_of,
    reference_of,
    reference_records,
    streams_of,
)
from monitoring.windows import Comparison, Images, Window

log = logging.getLogger("plumbline.monitor")

State = Literal["ok", "drift", "cannot promise", "waiting"]

WINDOW_IMAGES = 1_000  # that shares and accuracy estimates are taken over
DEPENDENCE_IMAGES = 400
LEAST_DEPENDENCE_IMAGES = 60  # fewer say nothing of dependence, so no alarm is raised on them
# Correlation of neighbours past which nothing is promised, beside three standard errors of its
# estimate; the promise comes back under half of it.
DEPENDENCE_LIMIT = 0.15
FAR_DEPENDENCE_LIMIT = 0.15  # beside what chance does, which is taken off already
REPEATS_BACK = 1_000  # sampled images that an answer is compared with
# Share of them answered as another past which nothing is promised; it comes back under half of it.
REPEATED_ANSWERS_LIMIT = 0.1
REPEATED_LIMIT = 0.9  # share of near-duplicates past which what is left is no sample
HISTORY_POINTS = 400
FEW_CALIBRATION_IMAGES = 500
BEFORE_ALARM_IMAGES = 1_000  # sampled, that may belong to a drift before it shows
FLAGGED_KEPT = 12
EXPLAINED_EVERY_IMAGES = 50  # sampled
COMPARED = tuple(name for name in STREAMS if name != "predicted_class")


@dataclass(frozen=True)
class Alarm:
    """An alarm: when, in which stream, after how many sampled images since the last reset."""

    time: str
    stream: str
    after_images: int
    log10_evidence: float

    @property
    def sentence(self) -> str:
        """The alarm, for people."""
        return (
            f"The domain has drifted: {self.stream.replace('_', ' ')} changed"
            f" {self.after_images} sampled images after the last reset."
        )


class Watch:
    """Follows the records of one model version."""

    def __init__(self, bundle: Bundle, settings: MonitoringSettings) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._settings = settings
        self.alpha = settings.alpha or self.manifest.outlier.alpha
        self.sampler = _new_sampler(settings)
        reference = reference_of(bundle, _new_sampler(settings))
        self.calibration_images = len(reference["confidence"])
        seed = int(bundle.manifest_sha256[:16], 16)
        self.evidence = Evidence.from_reference(reference, edges_of(bundle), seed=seed)
        self.dependence = Dependence(DEPENDENCE_IMAGES)
        self.repeats = Repeats(back=REPEATS_BACK, window_images=DEPENDENCE_IMAGES)
        self.line = self.evidence.alarm_line(settings.false_alarm_images)
        self._atc_reference: AtcReference | None = atc_reference(bundle)
        self.images_served = 0
        self.images_sampled = 0
        self.last_image_seconds: float | None = None  # Unix time
        self.alarms: list[Alarm] = []
        self.drift: Alarm | None = None  # the alarm that nobody has reset yet
        self.promising = True
        self.resets_seen = 0  # number of the last one in the audit
        self._reset_seconds = -math.inf  # Unix time of it
        self.flags: deque[bool] = deque(maxlen=WINDOW_IMAGES)
        # Per image: what `expected_labels` gives.
        self.expected: deque[tuple[float, ...]] = deque(maxlen=WINDOW_IMAGES)
        self.confidences: deque[float] = deque(maxlen=WINDOW_IMAGES)
        self.labels: deque[list[str]] = deque(maxlen=WINDOW_IMAGES)
        self.last_flagged: deque[dict[str, Any]] = deque(maxlen=FLAGGED_KEPT)
        # Points (sampled images in all, log10 evidence per stream), ever further apart.
        self.history: list[tuple[int, list[float | None]]] = []
        self._history_step = 1
        # The last sampled images; not kept over a restart, since they only explain.
        self.window = Window(COMPARED)
        self._comparison: Comparison | None = None  # made when first needed
        self._reasons: Reasons | None = None  # so too
        self._class_mix = ClassMix(bundle, self.alpha)
        self._now: tuple[int, dict[str, Any]] = (-1, {})  # sampled images when it was made
        self.explained: dict[str, Any] | None = None  # what had changed at the alarm

    def take(self, records: pa.Table) -> list[Alarm]:
        """Follow records of this version, oldest first; gives the alarms that they raised.

        The records have to be `streams.fitting_rows`.
        """
        if not len(records):
            return []
        streams = streams_of(records, self.manifest)
        answers = _answers(records)
        components, flagged = components_of(records), records["flagged"].to_pylist()
        chances = probabilities(logits_of(records), self.manifest.calibration, self.manifest.task)
        given = accepted_labels(records, self.manifest.classes)
        self._note(records, streams["confidence"], expected_labels(chances, given))
        alarms = []
        sampled_before = []
        for row, arrival in enumerate(arrivals_of(records)):
            self.images_served += 1
            sampled_before.append(self.images_sampled)
            self.last_image_seconds = arrival.seconds
            if self.images_served % BLOCK == 0:
                self._renew_promise()
            # A file may appear after the reset of what it shows: seen, but no evidence any more.
            if not self.sampler.takes(arrival) or arrival.seconds <= self._reset_seconds:
                continue
            self.images_sampled += 1
            values = {name: its[row] for name, its in streams.items()}
            p_values = self.evidence.add(values, mark=self.drift is None)
            self.window.add(
                {name: values[name] for name in COMPARED},
                predicted=int(values["predicted_class"]),
                components=components[row].copy(),  # else it would keep all of them
                flagged=flagged[row],
                seconds=arrival.seconds,
                log_bets=self.evidence.log_bets,
            )
            self.dependence.add(p_values)
            self.repeats.add(answers[row])
            alarm = self._judge(arrival.seconds)
            if alarm is not None:
                alarms.append(alarm)
            self._remember_point()
        images = sample_of(streams, components, chances, given, np.array(flagged, bool))
        self._class_mix.add(images, sampled_before)
        return alarms

    @property
    def state(self) -> State:
        """Drift until someone resets it; else whether there is a promise, and images."""
        if self.drift is not None:
            return "drift"
        if self.images_served == 0:
            return "waiting"
        return "ok" if self.promising and not self._is_undecided else "cannot promise"

    @property
    def sentence(self) -> str:
        """The state, for people."""
        c = self._settings.false_alarm_images
        match self.state:
            case "drift":
                assert self.drift is not None
                return self.drift.sentence
            case "waiting":
                return "Waiting: no images have been recorded for this version yet."
            case "cannot promise":
                why = self._why_undecided if self._is_undecided else self.why_no_promise
                soon = "the images depended on each other until a moment ago"
                return f"No promise is possible: {why or soon}."
            case _:
                small = ""
                if self.calibration_images < FEW_CALIBRATION_IMAGES:
                    small = (
                        f" The evidence began with only {self.calibration_images} calibration"
                        " images: the promise holds, but change shows later."
                    )
                return (
                    f"All is well: no drift in {self.evidence.images:,} sampled images. The chance"
                    f" of a false alarm so far was at most"
                    f" {min(1.0, self.evidence.images / c):.2g}.{small}"
                )

    @property
    def why_no_promise(self) -> str | None:
        """Why the sampled stream cannot be taken as images independent of each other, or None."""
        if self.sampler.window_is_full and self.sampler.repeated_share > REPEATED_LIMIT:
            return (
                f"{self.sampler.repeated_share:.0%} of the last images repeat others; what is left"
                " is no sample"
            )
        correlation, images = self.dependence.correlation, self.dependence.images
        if correlation is None or images < LEAST_DEPENDENCE_IMAGES:
            return None
        strictness = 1 if self.promising else 0.5
        if self.repeats.share > REPEATED_ANSWERS_LIMIT * strictness:
            return f"{self.repeats.share:.0%} of the last sampled images come again as they were"
        far = self.dependence.far_correlation
        if far is not None and far > FAR_DEPENDENCE_LIMIT * strictness:
            return f"images depend on others further away (correlation {far:.2f})"
        if correlation > (DEPENDENCE_LIMIT + 3 / math.sqrt(images)) * strictness:
            return f"neighbouring images depend on each other (correlation {correlation:.2f})"
        return None

    @property
    def _is_undecided(self) -> bool:
        """Whether the evidence is past the line, on images too few to say whether they depend."""
        too_few = self.dependence.images < LEAST_DEPENDENCE_IMAGES
        return self.drift is None and too_few and self.evidence.strongest[1] >= self.line

    @property
    def _why_undecided(self) -> str:
        return (
            "the evidence is past the alarm line, but whether the images depend on each other shows"
            f" in {LEAST_DEPENDENCE_IMAGES} at the earliest, and it rests on"
            f" {self.dependence.images} of {LEAST_DEPENDENCE_IMAGES} images"
        )

    def reset(self, number: int, seconds: float, *, keeping: bool = False) -> None:
        """Someone has looked into the drift: evidence begins anew.

        The images since the drift leave the bags, and some from before the alarm, which it took to
        show; `keeping` leaves them in, where nothing was wrong with them. `number` is that of the
        reset in the audit; images up to its time `seconds` that come later are no evidence.
        """
        self.resets_seen, self._reset_seconds = number, seconds
        drifted = None
        if self.drift is not None and not keeping:
            drifted = self.evidence.images - self.drift.after_images + BEFORE_ALARM_IMAGES
        self.drift = self.explained = None
        self.window.clear()
        self._class_mix.clear()
        self._now = (-1, {})
        self.evidence.reset(drifted)

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
        why = self.why_no_promise
        if why is not None:
            return untold(len(self.window), f"The class mix cannot be told: {why}.")
        return self._class_mix.explain(self.images_sampled - int(self.explain()["images"]))

    def flagged_share(self) -> float | None:
        """Of the last images; None before there are any."""
        return sum(self.flags) / len(self.flags) if self.flags else None

    def class_mix(self) -> dict[str, float]:
        """Share of the last images by label given; several labels count each."""
        counts = Counter(label for labels in self.labels for label in labels or ["(none)"])
        return {name: count / len(self.labels) for name, count in counts.most_common()}

    def accuracy_estimate(self) -> dict[str, Any]:
        """`cbpe` and `atc` with 95 % intervals, and whether to believe them, or why not.

        Null where there is no estimate: without images, and ATC for several labels.
        """
        expected = np.array(self.expected).reshape(-1, 5)
        confidences = np.array(self.confidences)
        # Restored states of before there were intervals hold fewer of what is expected.
        right, confidences = expected[:, 0], confidences[len(confidences) - len(expected) :]
        task, reference = self.manifest.task, self._atc_reference
        drift = None if self.drift is None else self.drift.stream
        why = why_invalid(sum(self.flags), len(self.flags), self.alpha, drift)
        return {
            "cbpe": cbpe(expected, task),
            "atc": None if reference is None else atc(confidences, reference.at_value),
            "valid": why is None,
            "cbpe_interval": cbpe_interval(expected, task, self.calibration_images),
            "atc_interval": reference and atc_interval(confidences, reference, right),
            "why_invalid": why,
        }

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "tag": self.manifest.tag,
            "evidence": self.evidence.to_state(),
            "sampler": self.sampler.to_state(),
            "dependence": self.dependence.to_state(),
            "repeats": self.repeats.to_state(),
            "images_served": self.images_served,
            "images_sampled": self.images_sampled,
            "last_image_seconds": self.last_image_seconds,
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "drift": None if self.drift is None else asdict(self.drift),
            "promising": self.promising,
            "resets_seen": self.resets_seen,
            "reset_seconds": self._reset_seconds if self.resets_seen else None,
            "flags": list(map(int, self.flags)),
            "expected": list(self.expected),
            "confidences": list(self.confidences),
            "labels": list(self.labels),
            "last_flagged": list(self.last_flagged),
            "history": self.history,
            "history_step": self._history_step,
            "explained": self.explained,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`. Raises ValueError or KeyError where it does not fit."""
        if state["tag"] != self.manifest.tag:
            raise ValueError(f"it is of {state['tag']}, not of {self.manifest.tag}")
        self.evidence = Evidence.from_state(state["evidence"])
        self.sampler.restore(state["sampler"])
        self.dependence.restore(state["dependence"])
        self.repeats.restore(state["repeats"])
        self.images_served = int(state["images_served"])
        self.images_sampled = int(state["images_sampled"])
        self.last_image_seconds = state["last_image_seconds"]
        self.alarms = [Alarm(**its) for its in state["alarms"]]
        self.drift = None if state["drift"] is None else Alarm(**state["drift"])
        self.promising = bool(state["promising"])
        self.resets_seen = int(state["resets_seen"])
        if self.resets_seen:
            self._reset_seconds = float(state["reset_seconds"])
        self.flags.extend(map(bool, state["flags"]))
        # States of before there were intervals hold three figures of each image.
        self.expected.extend(tuple(its) for its in state["expected"] if len(its) == 5)
        self.confidences.extend(state["confidences"])
        self.labels.extend(state["labels"])
        self.last_flagged.extend(state["last_flagged"])
        self.history = [(int(images), list(values)) for images, values in state["history"]]
        self._history_step = int(state["history_step"])
        self.explained = state.get("explained")  # states of before have none

    def _note(self, records: pa.Table, confidences: FloatArray, expected: FloatArray) -> None:
        """Keep what the page and the accuracy estimates show of the last images."""
        flags = records["flagged"].to_pylist()
        self.flags.extend(flags)
        self.expected.extend(map(tuple, expected.tolist()))
        self.confidences.extend(confidences.tolist())
        self.labels.extend(records["labels"].to_pylist())
        for row in np.flatnonzero(flags)[-FLAGGED_KEPT:].tolist():
            one = records.slice(row, 1).to_pylist()[0]
            if self._reasons is None:
                self._reasons = _reasons(self.bundle)
            self.last_flagged.append(
                {
                    "id": one["id"],
                    "time": one["time"].isoformat(),
                    "labels": one["labels"],
                    "outlier_score": one["outlier_score"],
                    "reasons": self._reasons.of(one),
                }
            )

    def _judge(self, seconds: float) -> Alarm | None:
        """Raise an alarm where the evidence reaches the line and there is a promise to keep."""
        stream, evidence = self.evidence.strongest
        if self.drift is not None or evidence < self.line or self._is_undecided:
            return None
        if self.promising:  # if not, it is renewed after every block of images
            self._renew_promise()
        if not self.promising:
            return None
        time = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
        self.drift = Alarm(time, stream, self.evidence.images, evidence)
        self.alarms.append(self.drift)
        try:
            self.explained = self._explain(stream)
        except Exception:  # an alarm must not fail for want of an explanation
            log.exception("the alarm cannot be explained")
        return self.drift

    def _renew_promise(self) -> None:
        why = self.why_no_promise
        if self.promising and why is not None:
            log.warning("no promise is possible: %s", why)
        if not self.promising and why is None:
            log.info("the images can be taken as independent again; the evidence begins anew")
            self.evidence.reset()
        self.promising = why is None

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


def _answers(records: pa.Table) -> list[str]:
    """What the model answered, so coarsely that neighbours in a batch change nothing.

    Brightness and sharpness tell images apart where a model has few classes and is sure.
    """
    measured = [np.asarray(records[name].to_numpy()) * 10 for name in ("brightness", "sharpness")]
    values = np.column_stack([logits_of(records), *measured]).astype(np.float64)
    rounded = values.round(2) + 0.0  # no negative zeros
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rounded]


def _comparison(bundle: Bundle, settings: MonitoringSettings, alpha: float) -> Comparison:
    """With the calibration split, under the rule that production is sampled by."""
    records = reference_records(bundle, _new_sampler(settings))
    streams = streams_of(records, bundle.manifest)
    reference = Images(
        numbers={name: streams[name] for name in COMPARED},
        predicted=streams["predicted_class"].astype(np.int64),
        components=components_of(records),
        flagged=np.array(records["flagged"].to_pylist(), bool),
        seconds=np.zeros(len(records)),
        log_bets=np.zeros((len(records), len(STREAMS))),
    )
    seed = int(bundle.manifest_sha256[:8], 16)
    return Comparison(reference, bundle.manifest.classes, STREAMS, alpha=alpha, seed=seed)


def _reasons(bundle: Bundle) -> Reasons:
    records = read_records(str(bundle.path(REFERENCE)))
    calibration = Calibration(
        measured={name: np.asarray(records[name].to_numpy(), np.float64) for name in MEASURED},
        components=components_of(records),
        labels=records["labels"].to_pylist(),
    )
    return Reasons(calibration, input_pixels=bundle.manifest.input.size, seed=0)


def _new_sampler(settings: MonitoringSettings) -> Sampler:
    return Sampler(
        window_images=settings.sample_window_images,
        near_bits=settings.sample_near_bits,
        client_images=settings.sample_client_images,
        client_seconds=settings.sample_client_seconds,
    )
