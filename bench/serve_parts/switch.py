"""A promotion under full load: how soon all workers answer by the new version, and at what cost.

    .venv/bin/python bench/serve.py switch [--payload 256] [--rounds N] [--another-kind]

Two workers on both cores and the load generator beside them, in a closed loop of full load with one
image a request. In each round the other of two versions of one model is promoted, so that they go
back and forth, in a copy of the home folder. Asked for: the last answer of the version before, of
whichever worker, at most 5 seconds after the promotion began; and no request that fails. Beside it
stand p99 and pace, from the promotion to that answer, and before it. The two versions have the same
network, so the second takes over the batch size of the first; with `--another-kind` every promoted
version is timed anew, as one of another architecture is.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.settings import ModelSettings
from model.store import ModelStore
from serve_parts import load
from serve_parts.figures import Figures, begin, parser_of
from serve_parts.pace import plan_of_full_load
from serve_parts.payloads import model_of
from serve_parts.servers import LOAD_CORE, SERVER_CORE, Server, plumbline

MOST_SECONDS = 5.0
AFTER_SECONDS = 2 * MOST_SECONDS  # the load goes on: what comes too late is seen as well
LEAST_SHARE = 0.25  # of a worker in the work of both; else it was not asked


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--another-kind", action="store_true")
    figures, options = begin("switch", parser)
    name, found = model_of(options.payload), Found()
    with copy_of(options.home) as home:
        store = ModelStore(ModelSettings(home=home))
        turns = [store.champion(name).tag, register_twin(store, name)]
        with plumbline(
            home,
            name,
            cores=(SERVER_CORE, LOAD_CORE),
            look_inside=options.another_kind,
            environment={"BENCH_TIMED_ANEW": "yes"} if options.another_kind else None,
            workers="2",
        ) as server:
            play(server, options.payload, options.seconds)  # whatever runs first is not counted
            for number in range(options.rounds):
                tag = turns[(number + 1) % 2]
                before = work_of_workers(server)
                with ThreadPoolExecutor(1) as aside:
                    seconds = options.seconds + AFTER_SECONDS
                    playing = aside.submit(play, server, options.payload, seconds)
                    time.sleep(options.seconds)
                    promoted_at = time.perf_counter()
                    store.promote(tag)
                work = np.subtract(work_of_workers(server), before)
                found.take(playing.result(), promoted_at, tag)
                found.shares.append(float(min(work) / sum(work)))
        store.state.dispose()
    found.tell(figures)
    figures.end()


class Found:
    """What the rounds gave."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.shares: list[float] = []
        self.failed = 0
        self.before: list[tuple[float, float]] = []  # p99 in ms, requests a second
        self.meanwhile: list[tuple[float, float]] = []

    def take(self, seen: load.Seen, promoted_at: float, tag: str) -> None:
        """One round; `promoted_at` by the clock that both processes read."""
        self.failed += sum(answer.status != 200 for answer in seen.answers)
        good = [answer for answer in seen.answers if answer.status == 200]
        old = [answer for answer in good if not tag.endswith(f":{answer.version}")]
        last = max([answer.moment for answer in old], default=promoted_at)
        until = max(last, promoted_at)
        self.seconds.append(until - promoted_at)
        first = min(answer.moment for answer in good)
        self.before.append(p99_and_pace(good, first, promoted_at))
        self.meanwhile.append(p99_and_pace(good, promoted_at, until))

    def tell(self, figures: Figures) -> None:
        """Print them."""
        figures.add("promotion to the last answer of the version before, s", self.seconds, ".2f")
        figures.add("the longest of these, s", [max(self.seconds)], ".2f", most=MOST_SECONDS)
        figures.add("requests that failed", [self.failed], ".0f", most=0)
        for when, pairs in (("before", self.before), ("meanwhile", self.meanwhile)):
            for what, values in zip(("p99, ms", "images/s"), zip(*pairs, strict=True), strict=True):
                figures.add(f"{when}, {what}", values)
        figures.add("the lesser worker's share", self.shares, ".2f", least=LEAST_SHARE)


def p99_and_pace(answers: Sequence[load.Answer], since: float, until: float) -> tuple[float, float]:
    """In milliseconds, and answers a second, of those that came in that time."""
    latencies = [answer.seconds for answer in answers if since <= answer.moment <= until]
    if not latencies:
        raise SystemExit("no answer in a part of the round; give it more --seconds")
    return 1e3 * float(np.quantile(latencies, 0.99)), len(latencies) / (until - since)


def play(server: Server, payload: str, seconds: float) -> load.Seen:
    """Full load, each answer kept."""
    plan = plan_of_full_load(server, payload, 1, seconds)
    return load.run(replace(plan, keep_answers=True))


def work_of_workers(server: Server) -> list[float]:
    """CPU seconds so far of the two processes that hold a model: those with the most memory."""
    family = sorted(server.family, key=lambda one: one.memory_info().rss)
    return [sum(one.cpu_times()[:2]) for one in sorted(family[-2:], key=lambda one: one.pid)]


@contextmanager
def copy_of(home: Path) -> Iterator[Path]:
    """A home folder of its own, since promotions change it."""
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns("cache", "records", "runs", "checkpoints")
        yield Path(shutil.copytree(home, Path(folder) / "home", ignore=ignored))


def register_twin(store: ModelStore, name: str) -> str:
    """A second version, equal to the champion but for its tag, which it gives."""
    first = store.load(store.champion(name))
    with store.registering(name) as (version, directory, seal):
        for file in first.manifest.files:
            shutil.copyfile(first.path(file), directory / file)
        seal(first.manifest.model_copy(update={"version": version}))
    return f"{name}:{version}"
