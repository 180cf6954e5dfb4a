"""Evidence that the model's mistakes on labelled images have changed: the only sign of a concept
drift, where the images stay as they were and what they mean does not.

Feedback, joined to the predictions of the sampled images, gives a stream of right (0) and mistaken
(1), in the order in which labels come. It goes through the e-detector of `evidence`, with an alarm
line and a promise of its own, counted in labelled images: within m of them the chance of a false
alarm is at most m / c. That holds for labelled images that are exchangeable with the bag:

- with PLUMBLINE_LABELLED_AT_RANDOM the bag starts from the model's mistakes on its calibration
  split. Wrong as soon as people choose what they label: who labels mistakes first, finds more.
- otherwise it starts empty, and labelled images are held to those before them alone. A habit of
  labelling that stays as it is raises no alarm then; one that changes looks like a drift.

Who labels what can break this promise alone, never that of the images.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, and_, or_, select

from model.bundle import Manifest
from model.state import feedback
from monitoring.alarm import LABELLED_MISTAKES, Alarm
from monitoring.evidence import Evidence
from monitoring.labels import BEGINNING, fault, said_of
from monitoring.predictions import Predictions
from monitoring.promise import LEAST_DEPENDENCE_LABELS, Promise
from monitoring.sampling import BLOCK, Arrival, ClientShares
from monitoring.settings import MonitoringSettings

log = logging.getLogger("plumbline.monitor")

LABELS_AT_ONCE = 1_000
# Feedback is read so much later, and by what records wait for each other, so that what it speaks of
# is known, and nothing comes before it any more: hosts' clocks differ, and transactions end in
# another order than they began in.
SETTLED_SECONDS = 10.0
FLUSHES = 3  # of the records, that are waited for at least
SHOWN_LABELS = 100  # that the share of mistakes is told of
BEFORE_ALARM_LABELS = 200  # that may belong to a drift before it shows
_LEFT_OUT = {  # `labels.fault`, in words
    "contradicted": "contradicted by another client",
    "unknown": "of classes that the model has not",
    "unsuitable": "with labels that the task does not know",
}
_EDGES = {LABELLED_MISTAKES: np.array([0.5])}


@dataclass(frozen=True, slots=True)
class _Said:
    """One row of feedback; the fields are its place in the order of coming."""

    received_at: datetime
    prediction_id: str
    client: str


class LabelledMistakes:
    """Follows the labels of one model version.

    `calibration_mistakes` are those on its calibration split (1 mistaken, 0 right), None where the
    bag is to start empty.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: MonitoringSettings,
        calibration_mistakes: NDArray[np.integer] | None,
        *,
        seed: int,
    ) -> None:
        self._manifest = manifest
        mistakes = np.zeros(0, int) if calibration_mistakes is None else calibration_mistakes
        counts = {LABELLED_MISTAKES: np.bincount(mistakes, minlength=2)}
        self.evidence = Evidence(_EDGES, counts, seed=seed)
        self.is_held_to_calibration = calibration_mistakes is not None
        self.line = self.evidence.alarm_line(settings.false_alarm_images)
        self.promise = Promise(least_images=LEAST_DEPENDENCE_LABELS)
        self.drift: Alarm | None = None  # the alarm that nobody has reset yet
        self.last: deque[bool] = deque(maxlen=SHOWN_LABELS)  # whether mistaken
        self.left_out: Counter[str] = Counter()  # by reason
        self._settled = timedelta(
            seconds=settings.merge_seconds
            + max(SETTLED_SECONDS, FLUSHES * settings.record_flush_seconds)
        )
        self._shares = ClientShares(
            images=settings.sample_client_images, seconds=settings.sample_client_seconds
        )
        self._read_to = _Said(BEGINNING, "", "")
        self.has_read = False  # whether the last join read any
        self._used: list[str] = []  # by the last join, to be marked when it is saved

    def join(
        self, state: Engine, predictions: Predictions, now: datetime, *, reset_seconds: float
    ) -> Iterator[datetime]:
        """Take new labels, those of images after a reset alone; gives when each came.

        It is evidence by then. At most LABELS_AT_ONCE are looked at.
        """
        self._used = []
        new = self._read_on(state, now - self._settled)
        self.has_read = bool(new)
        ids = list(dict.fromkeys(its.prediction_id for its in new))
        predicted = predictions.unused(self._manifest.tag, ids)
        said = said_of(state, list(predicted))
        for its in new:
            prediction = predicted.get(its.prediction_id)
            # What is said may be gone by now: a client has said something else of the image.
            known = said.get(its.prediction_id)
            answers = None if known is None else known.answers
            if prediction is None or answers is None:
                self.left_out["of no sampled image"] += 1
            elif prediction.seconds <= reset_seconds:
                self.left_out["of images from before a reset"] += 1
            elif (reason := fault(answers, self._manifest)) is not None:
                self.left_out[_LEFT_OUT[reason]] += 1
            elif not self._shares.admit(_arrival(its)):
                self.left_out["over the share of a client"] += 1
            else:
                del predicted[its.prediction_id]  # an image counts once, whoever labels it again
                self._used.append(its.prediction_id)
                (labels,) = answers
                mistaken = set(labels) != set(json.loads(prediction.labels))
                self._take(mistaken, its.prediction_id)
                yield its.received_at

    def mark_used(self, predictions: Predictions) -> None:
        """To be called when the state is saved, and after it was restored."""
        predictions.mark_used(self._used)

    @property
    def log10(self) -> float | None:
        """log10 of the evidence; None before there are labels."""
        return self.evidence.strongest[1] if self.evidence.images else None

    def alarm(self, time: str, after_images: int) -> Alarm | None:
        """The alarm, where the evidence has just reached the line and there is a promise."""
        log10 = self.evidence.strongest[1]
        if self.drift is not None or log10 < self.line or self.promise.has_too_few:
            return None
        if self.promise.holds:
            self.promise.renew()
        if not self.promise.allows_alarm():
            return None
        self.evidence.note_drift()
        self.drift = Alarm(
            time, LABELLED_MISTAKES, after_images, log10, self.evidence.images, self._in_words()
        )
        return self.drift

    def reset(self, take_back: int | None = None, *, new_normal: bool = False) -> None:
        """The evidence begins anew, as `Evidence.reset`."""
        self.drift = None
        self.last.clear()
        self.evidence.reset(take_back, new_normal=new_normal)

    def status(self) -> dict[str, Any]:
        """What the page and `/api/status` show."""
        return {
            "images": self.evidence.images,
            "mistaken_share": sum(self.last) / len(self.last) if self.last else None,
            "mistaken_share_before": self._share_before,
            "alarm_line": self.line,
            "held_to": "calibration" if self.is_held_to_calibration else "labels before",
            "left_out": dict(self.left_out),
            "sentence": self.sentence,
        }

    @property
    def sentence(self) -> str:
        """How it stands, for people; empty before there are labels."""
        if not self.evidence.images:
            return ""
        if self.drift is not None:
            return f"{self.drift.sentence} {self.condition}"
        if self.evidence.strongest[1] < self.line:
            return f"No drift in {self.evidence.images:,} labelled images: {self._in_words()}."
        if self.promise.has_too_few:
            return (
                f"{self.evidence.images} labelled images look like a drift; whether they depend on"
                f" each other shows in {LEAST_DEPENDENCE_LABELS} at the earliest."
            )
        why = self.promise.why_not or "they depended on each other until a moment ago"
        return f"No promise is possible of the labelled images: {why}."

    @property
    def condition(self) -> str:
        """What an alarm of this stream rests on."""
        if self.is_held_to_calibration:
            return (
                "That is a drift if the labelled images are drawn at random, as"
                " PLUMBLINE_LABELLED_AT_RANDOM says."
            )
        return (
            "That is a drift if people choose and label images as they did before: the labelled"
            " images are held to those before them."
        )

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        its = self._read_to
        return {
            "held_to_calibration": self.is_held_to_calibration,
            "drift": None if self.drift is None else asdict(self.drift),
            "evidence": self.evidence.to_state(),
            "promise": self.promise.to_state(),
            "last": list(map(int, self.last)),
            "left_out": dict(self.left_out),
            "shares": self._shares.to_state(),
            "read_to": [its.received_at.isoformat(), its.prediction_id, its.client],
            "used": self._used,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`; where labels are held to something else now, with fresh evidence.

        What was read is not read again then.
        """
        self.left_out.update(state["left_out"])
        self._shares.restore(state["shares"])
        time, prediction_id, client = state["read_to"]
        self._read_to = _Said(datetime.fromisoformat(time), prediction_id, client)
        self._used = list(state["used"])
        if bool(state["held_to_calibration"]) != self.is_held_to_calibration:
            log.info("PLUMBLINE_LABELLED_AT_RANDOM has changed: evidence of labels begins anew")
            return
        self.evidence = Evidence.from_state(state["evidence"])
        self.promise.restore(state["promise"])
        self.last.extend(map(bool, state["last"]))
        self.drift = None if state["drift"] is None else Alarm(**state["drift"])

    def _take(self, mistaken: bool, prediction_id: str) -> None:
        p_values, log_bets = self.evidence.bet({LABELLED_MISTAKES: np.array([float(mistaken)])})
        self.evidence.settle(log_bets[0])
        self.evidence.mark_if_due()
        self.promise.add(p_values[0], prediction_id)
        self.last.append(mistaken)
        if self.evidence.images % BLOCK == 0:
            held = self.promise.holds
            self.promise.renew()
            if self.promise.holds and not held and self.drift is None:
                self.evidence.reset()

    def _read_on(self, state: Engine, until: datetime) -> list[_Said]:
        """The next rows of feedback in the order of coming."""
        its, last = feedback.c, self._read_to
        is_later = or_(
            its.received_at > last.received_at,
            and_(its.received_at == last.received_at, its.prediction_id > last.prediction_id),
            and_(
                its.received_at == last.received_at,
                its.prediction_id == last.prediction_id,
                its.client > last.client,
            ),
        )
        query = (
            select(its.received_at, its.prediction_id, its.client)
            .where(is_later, its.received_at <= until)
            .order_by(its.received_at, its.prediction_id, its.client)
            .limit(LABELS_AT_ONCE)
        )
        with state.connect() as connection:
            rows = connection.execute(query).all()
        new = [_Said(*row) for row in rows]
        if new:
            self._read_to = new[-1]
        return new

    @property
    def _share_before(self) -> float | None:
        """Of mistakes among the images of the bag that came before the last ones."""
        right, mistaken = self.evidence.held(LABELLED_MISTAKES)
        before = right + mistaken - len(self.last)
        return (mistaken - sum(self.last)) / before if before > 0 else None

    def _in_words(self) -> str:
        before = self._share_before
        told = "" if before is None else f", against {before:.0%} before"
        return (
            f"the model is wrong on {sum(self.last)} of the last {len(self.last)} labelled images"
            f"{told}"
        )


def _arrival(said: _Said) -> Arrival:
    """As the rule of the clients' shares wants it."""
    return Arrival(said.received_at.timestamp(), "", 0, said.client)
