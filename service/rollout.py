"""Which model answers: follows the champion in the state database without a restart."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Hashable
from time import monotonic

from model.engines import load_engine
from model.errors import PlumblineError
from model.store import ModelStore, Version
from service import metrics
from service.default_engine import usable_engine
from service.predictor import Predictor
from service.settings import ServiceSettings
from service.start import Start

log = logging.getLogger("plumbline.rollout")

_LONGEST_PAUSE_SECONDS = 60.0
_FORMER_CHAMPIONS = 3


class Rollout:
    """Holds the predictor in force and replaces it when another version is promoted.

    A version that cannot be loaded, whatever the reason, leaves the old one answering. It is
    tried again after pauses that grow: the reason may pass, or be mended. How the first one went is
    told to whoever waits for the `start`.
    """

    def __init__(
        self, settings: ServiceSettings, store: ModelStore, start: Start | None = None
    ) -> None:
        self._settings = settings
        self._store = store
        self._start = start
        self._told: tuple[str, str] | None = None  # the refusal last logged: of what, and why
        self._refused: str | None = None
        self._pause_seconds = settings.follow_seconds
        self._again_at = 0.0
        self.has_looked = False  # once: there is a champion, or it is known why not
        self.champion: Predictor | None = None
        self.classes: frozenset[str] = frozenset()  # of the champion and those before it
        self._knows_former = False  # those before it
        self._measured: dict[Hashable, int] = {}  # batch sizes, by what their time depends on

    async def follow(self) -> None:
        """Look for the champion for ever; runs as a task."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("looking for the champion failed; trying again")
            self.has_looked = True
            await asyncio.sleep(self._settings.follow_seconds)

    async def look(self) -> None:
        """Look once, and load what is new in a thread while the old one answers."""
        try:
            version = await asyncio.to_thread(self._store.champion, self._settings.model)
        except Exception as error:  # noqa: BLE001 (told)
            self._tell("none", error)
            return
        is_new = version.tag != self._champion_tag
        if not is_new and self._knows_former:
            self._refused = self._told = None
            return
        if version.tag == self._refused and monotonic() < self._again_at:
            return
        try:
            if is_new:
                self._replace(await asyncio.to_thread(self._load, version))
            # After it serves: to load up to three others may take long.
            former = await asyncio.to_thread(self._former_classes, version)
        except Exception as error:  # noqa: BLE001 (told)
            self._refuse(version.tag, error)
            return
        self._learn(former)

    @property
    def _champion_tag(self) -> str | None:
        return None if self.champion is None else self.champion.bundle.manifest.tag

    def _load(self, version: Version) -> Predictor:
        bundle = self._store.load(version)
        settings = self._settings
        name = settings.engine
        if not settings.engine_is_given:
            name = usable_engine(name, bundle, settings.precision)
        engine = load_engine(
            name,
            bundle,
            threads=settings.engine_threads,
            precision=settings.precision,
            serving=True,
            batch_images=settings.batch_images,
        )
        predictor = Predictor(bundle, engine, stage=version.stage, alpha=settings.alpha)
        self._warm_up(predictor)
        return predictor

    def _warm_up(self, predictor: Predictor) -> None:
        """Measure the batch size, or take it over: a promotion is not to wait for timings.

        Those would be taken beside the load of the model that still answers.
        """
        if self._settings.batch_images is not None:
            predictor.warm_up(self._settings.batch_images)
            return
        kind = _kind_of(predictor)
        measured = self._measured.get(kind)
        predictor.warm_up(measured=measured)
        if measured is None:
            self._measured[kind] = predictor.batch_images
            return
        tag, most = predictor.bundle.manifest.tag, predictor.batch_images
        log.info("%s: batches of up to %d, as measured of a model of its kind", tag, most)

    def _former_classes(self, version: Version) -> frozenset[str]:
        """Of the last champions: what was predicted before a promotion is told after it."""
        retired = [its for its in self._store.versions(version.name) if its.stage == "retired"]
        retired.sort(key=lambda its: its.stage_since, reverse=True)
        classes: set[str] = set()
        for its in retired[:_FORMER_CHAMPIONS]:
            try:
                classes.update(self._store.load(its).manifest.classes)
            except PlumblineError as error:
                log.warning("feedback may not name the classes of %s: %s", its.tag, error)
        return frozenset(classes)

    def _learn(self, former: frozenset[str]) -> None:
        assert self.champion is not None
        self.classes = former.union(self.champion.classes)
        self._knows_former = True

    def _replace(self, predictor: Predictor) -> None:
        if self.champion is not None:
            metrics.MODEL.labels(self.champion.bundle.manifest.tag).set(0)
        self.classes = self.classes.union(predictor.classes)
        self._knows_former = False
        self.champion = predictor
        self.has_looked = True
        self._refused = self._told = None
        metrics.MODEL.labels(predictor.bundle.manifest.tag).set(1)
        # What is loaded lives long: the collector need not walk it again and again.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        tag, most = predictor.bundle.manifest.tag, predictor.batch_images
        log.info("serving %s in batches of up to %d", tag, most)
        if self._start is not None:
            self._start.succeed()
            self._start = None  # what comes after it ends nothing

    def _refuse(self, tag: str, error: Exception) -> None:
        longer = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        self._pause_seconds = longer if tag == self._refused else self._settings.follow_seconds
        self._again_at = monotonic() + self._pause_seconds
        self._refused = tag
        self._tell(tag, error)

    def _tell(self, tag: str, error: Exception) -> None:
        """Log and count a refusal once, however often it is tried.

        During the start the supervisor is told of what a user can mend: it says so, and ends.
        """
        if self._told == (tag, str(error)):
            return
        is_foreseen = isinstance(error, PlumblineError)
        if is_foreseen and self._start is not None and not self._start.is_over:
            self._start.refuse(str(error))
            return  # logged at the next look, should another worker have served meanwhile
        metrics.MODEL_LOAD_FAILURES.inc()
        serving = self._champion_tag or "nothing"
        log.error("still serving %s: %s", serving, error, exc_info=None if is_foreseen else error)
        self._told = (tag, str(error))


def _kind_of(predictor: Predictor) -> Hashable:
    """Models of one kind take as long for a batch in this worker, whose threads stay the same."""
    manifest, engine = predictor.bundle.manifest, predictor.engine
    return (
        manifest.architecture,
        manifest.input,
        manifest.embedding_size,
        engine.name,
        engine.precision,
    )
