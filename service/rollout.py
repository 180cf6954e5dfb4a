"""Which model answers: follows the champion in the state database without a restart."""

from __future__ import annotations

import asyncio
import gc
import logging

from model.engines import load_engine
from model.errors import PlumblineError, StoreError
from model.store import ModelStore, Version
from service import metrics
from service.predictor import Predictor
from service.settings import ServiceSettings

log = logging.getLogger("plumbline.rollout")


class Rollout:
    """Holds the predictor in force and replaces it when another version is promoted.

    A version that cannot be loaded leaves the old one answering; it is tried again only when
    the state database names another.
    """

    def __init__(self, settings: ServiceSettings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._refused: str | None = None
        self.champion: Predictor | None = None
        self.classes: frozenset[str] = frozenset()  # of the champion and the one before it

    async def follow(self) -> None:
        """Look for the champion for ever; runs as a task."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("looking for the champion failed; trying again")
            await asyncio.sleep(self._settings.follow_seconds)

    async def look(self) -> None:
        """Look once, and load what is new in a thread while the old one answers."""
        try:
            version = await asyncio.to_thread(self._store.champion, self._settings.model)
        except StoreError as error:
            self._refuse("none", error)
            return
        if version.tag == self._champion_tag:
            self._refused = None
            return
        # With nothing to serve a refused version is tried again: it may be mended.
        if version.tag == self._refused and self.champion is not None:
            return
        try:
            predictor = await asyncio.to_thread(self._load, version)
        except PlumblineError as error:
            self._refuse(version.tag, error)
            return
        self._replace(predictor)

    @property
    def _champion_tag(self) -> str | None:
        return None if self.champion is None else self.champion.bundle.manifest.tag

    def _load(self, version: Version) -> Predictor:
        bundle = self._store.load(version)
        settings = self._settings
        engine = load_engine(settings.engine, bundle, threads=settings.engine_threads)
        predictor = Predictor(bundle, engine, stage=version.stage, alpha=settings.alpha)
        predictor.warm_up(settings.batch_images)
        return predictor

    def _replace(self, predictor: Predictor) -> None:
        former: tuple[str, ...] = ()
        if self.champion is not None:
            metrics.MODEL.labels(self.champion.bundle.manifest.tag).set(0)
            former = self.champion.classes
        self.classes = frozenset(predictor.classes + former)
        self.champion = predictor
        self._refused = None
        metrics.MODEL.labels(predictor.bundle.manifest.tag).set(1)
        # What is loaded lives long: the collector need not walk it again and again.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        log.info("serving %s", predictor.bundle.manifest.tag)

    def _refuse(self, tag: str, error: PlumblineError) -> None:
        if self._refused != tag:
            metrics.MODEL_LOAD_FAILURES.inc()
            log.error("still serving %s: %s", self._champion_tag or "nothing", error)
        self._refused = tag
