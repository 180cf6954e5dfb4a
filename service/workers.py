"""How many worker processes serve, on which GPUs, and what each gets of the machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from model.errors import PlumblineError
from service.default_engine import passes_for_torch
from service.devices import visible_devices
from service.settings import ServiceSettings

log = logging.getLogger("plumbline.service")

_MOST_DECODE_THREADS = 16


@dataclass(frozen=True)
class WorkerPlan:
    """`devices` are the GPUs, none on a CPU: then one core runs one worker."""

    workers: int
    devices: tuple[str, ...]
    decode_threads: int


def plan_workers(settings: ServiceSettings, *, cores: int) -> WorkerPlan:
    """One worker a GPU where torch runs on GPUs, else one a core; what settings say comes first.

    A GPU computes faster than two threads decode, so its worker decodes on its share of the cores,
    but for one that is left to the worker itself.
    """
    devices = tuple(visible_devices()) if _runs_on_gpus(settings) else ()
    workers = settings.workers or len(devices) or cores
    if not devices:
        return WorkerPlan(workers, (), settings.decode_threads)
    if workers < len(devices):
        log.warning(
            "%d of %d GPUs are not used: there are no more workers (PLUMBLINE_WORKERS)",
            len(devices) - workers,
            len(devices),
        )
    if workers > len(devices):
        log.warning(
            "%d workers share %d GPUs: each loads the model into the memory of its own",
            workers,
            len(devices),
        )
    threads = settings.decode_threads
    if "decode_threads" not in settings.model_fields_set:
        threads = min(max(threads, cores // workers - 1), _MOST_DECODE_THREADS)
    return WorkerPlan(workers, devices[:workers], threads)


def _runs_on_gpus(settings: ServiceSettings) -> bool:
    """Whether torch is given, or likely and the champion passed its gate.

    Where there is no champion to ask, the workers are about to say so themselves.
    """
    if settings.engine != "torch" or settings.engine_is_given:
        return settings.engine == "torch"
    from model.store import ModelStore  # not on a CPU: it holds up the start

    try:
        store = ModelStore(settings)
        try:
            bundle = store.load(store.champion(settings.model))
        finally:
            store.state.dispose()
    except PlumblineError:
        return True
    return passes_for_torch(bundle, settings.precision)
