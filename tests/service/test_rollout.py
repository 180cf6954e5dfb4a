"""Who serves, through promotions, restarts and versions that do not load."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from model.errors import BundleError
from service import rollout
from service.rollout import Rollout
from service.settings import ServiceSettings
from service.start import Start


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test lets pass."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(rollout, "monotonic", lambda: clock.now)
    return clock


class Watched(Rollout):
    """Loads bundles from the real store, without the network in them; or fails as told."""

    def __init__(self, store, start: Start | None = None, **settings) -> None:
        super().__init__(ServiceSettings(home=store.home, **settings), store, start)
        self.fault: Exception | None = None
        self.tries = 0

    def _load(self, version):
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        bundle = self._store.load(version)
        engine = SimpleNamespace(name="openvino", precision="f32")
        return SimpleNamespace(
            bundle=bundle, classes=bundle.manifest.classes, engine=engine, batch_images=8
        )

    def look_now(self) -> str | None:
        asyncio.run(self.look())
        return self._champion_tag


def failures() -> float:
    return REGISTRY.get_sample_value("plumbline_model_load_failures_total") or 0.0


@pytest.mark.parametrize("precision", [None, "int8"])
def test_a_version_is_loaded_in_the_precision_of_the_settings(
    precision, store, register, monkeypatch
):
    asked = []

    class Predictor(SimpleNamespace):
        def __init__(self, bundle, engine, **options):
            super().__init__(bundle=bundle, classes=bundle.manifest.classes, batch_images=4)

        def warm_up(self, images):
            asked.append(images)

    def load_engine(name, bundle, *, threads, precision, serving, batch_images):
        asked.extend([name, precision, serving, batch_images])

    monkeypatch.setattr(rollout, "load_engine", load_engine)
    monkeypatch.setattr(rollout, "Predictor", Predictor)
    store.promote(register())
    settings = {"engine": "openvino", "precision": precision, "batch_images": 4}
    asyncio.run(Rollout(ServiceSettings(home=store.home, **settings), store).look())
    assert asked == ["openvino", precision, True, 4, 4]


# Batch sizes


@pytest.fixture
def measuring(store, monkeypatch):
    """A roll-out whose predictors would measure 16 images, or fit as few as it says in `most`."""

    class Measuring(Rollout):
        measurements, engine, most = 0, ("openvino", "bf16"), 64

    class Predictor(SimpleNamespace):
        def __init__(self, bundle, engine, **options):
            super().__init__(bundle=bundle, classes=bundle.manifest.classes, engine=engine)

        def warm_up(self, images=None, *, measured=None):
            rollout.measurements += images is None and measured is None
            self.batch_images = min(images or measured or 16, rollout.most)

    def load_engine(*_, **__):
        name, precision = rollout.engine
        return SimpleNamespace(name=name, precision=precision)

    monkeypatch.setattr("service.rollout.load_engine", load_engine)
    monkeypatch.setattr("service.rollout.Predictor", Predictor)
    rollout = Measuring(ServiceSettings(home=store.home, engine="openvino"), store)
    return rollout


def promote(rollout, store, tag) -> int:
    """The batch size that the version then serves with."""
    store.promote(tag)
    asyncio.run(rollout.look())
    assert rollout.champion.bundle.manifest.tag == tag
    return rollout.champion.batch_images


def test_a_model_like_the_one_before_takes_its_batch_size_over_and_says_so(
    measuring, store, register, caplog
):
    first = promote(measuring, store, register(classes=("circle", "square")))
    second = register()
    with caplog.at_level(logging.INFO, "plumbline"):
        assert promote(measuring, store, second) == first == 16
    assert measuring.measurements == 1
    assert f"{second}: batches of up to 16, as measured of a model of its kind" in caplog.text


@pytest.mark.parametrize(
    ("changes", "engine"),
    [
        ({"architecture": "another"}, ("openvino", "bf16")),
        ({"input": {"size": 56}}, ("openvino", "bf16")),
        ({"embedding_size": 16}, ("openvino", "bf16")),
        ({}, ("openvino", "f32")),
        ({}, ("torch", "bf16")),
    ],
    ids=["architecture", "input", "embedding", "precision", "engine"],
)
def test_a_model_of_another_kind_is_measured_and_its_kind_remembered(
    changes, engine, measuring, store, register, make_manifest
):
    promote(measuring, store, first := register())
    if "input" in changes:
        changes = {"input": make_manifest().input.model_copy(update=changes["input"])}
    measuring.engine = engine
    promote(measuring, store, register(**changes))
    assert measuring.measurements == 2
    measuring.engine = ("openvino", "bf16")
    promote(measuring, store, first)
    assert measuring.measurements == 2, "both kinds are known by now"


def test_a_model_that_found_no_room_for_its_batches_leaves_the_next_one_those_measured(
    measuring, store, register
):
    assert promote(measuring, store, register()) == 16
    measuring.most = 4  # of memory there is little while two models are loaded
    assert promote(measuring, store, register()) == 4
    measuring.most = 64
    assert promote(measuring, store, register()) == 16
    assert measuring.measurements == 1


# Classes that feedback may name


def test_a_new_worker_knows_the_classes_of_champions_before_its_time(store, register):
    for classes in (("old", "both"), ("middle", "both"), ("new", "both")):
        store.promote(register(classes=classes))
    follower = Watched(store)
    follower.look_now()
    assert follower.classes == {"old", "middle", "new", "both"}


def test_after_a_rollback_the_classes_of_both_are_known(store, register):
    store.promote(register(classes=("old", "both")))
    store.promote(register(classes=("new", "both")))
    store.rollback("shapes")
    follower = Watched(store)
    follower.look_now()
    assert follower.classes == {"old", "new", "both"}


def test_classes_of_other_models_and_of_versions_never_served_are_not_known(store, register):
    store.promote(register("stars", classes=("dwarf", "giant")))
    register(classes=("never", "served"))
    store.promote(register(classes=("circle", "square")))
    follower = Watched(store, model="shapes")
    follower.look_now()
    assert follower.classes == {"circle", "square"}


def test_a_former_champion_that_is_gone_does_not_keep_the_new_one_from_serving(store, register):
    former = register(classes=("old", "both"))
    store.promote(former)
    store.promote(present := register(classes=("new", "both")))
    next(store.bentoml_home.rglob(f"{former.split(':')[1]}/manifest.json")).unlink()
    follower = Watched(store)
    assert follower.look_now() == present
    assert follower.classes == {"new", "both"}


def test_the_new_champion_serves_before_those_before_it_are_looked_at(store, register, monkeypatch):
    store.promote(register(classes=("old", "both")))
    follower, seen = Watched(store), []
    follower.look_now()
    store.promote(new := register(classes=("new", "both")))
    former_classes = follower._former_classes

    def look_at_the_former(version):
        seen.append((follower._champion_tag, follower.has_looked, follower.classes))
        return former_classes(version)

    monkeypatch.setattr(follower, "_former_classes", look_at_the_former)
    follower.look_now()
    assert seen == [(new, True, {"old", "new", "both"})]
    assert follower.look_now() == new
    assert len(seen) == 1, "once a promotion"


def test_what_the_former_champions_knew_is_asked_again_where_it_could_not_be_read(
    store, register, clock, monkeypatch, caplog
):
    store.promote(register(classes=("old", "both")))
    store.promote(new := register(classes=("new", "both")))
    follower = Watched(store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "versions", lambda name: 1 / 0)
        for _ in range(3):
            assert follower.look_now() == new
    assert follower.classes == {"new", "both"}
    assert len(caplog.records) == 1
    clock.now += 60
    follower.look_now()
    assert follower.classes == {"old", "new", "both"}
    assert follower.tries == 1, "the champion is not loaded again"


# Versions that do not load


@pytest.mark.parametrize("fault", [BundleError("corrupt"), RuntimeError("odd"), MemoryError()])
def test_a_refusal_is_logged_and_counted_once_and_the_old_one_stays(
    fault, store, register, clock, caplog
):
    store.promote(old := register())
    follower = Watched(store)
    follower.look_now()
    store.promote(register())
    before, follower.fault = failures(), fault
    with caplog.at_level(logging.ERROR, "plumbline"):
        for _ in range(100):
            clock.now += 1
            assert follower.look_now() == old
    assert failures() - before == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert old in caplog.text


def test_what_was_refused_is_tried_again_after_pauses_that_grow(store, register, clock):
    store.promote(register())
    follower = Watched(store)
    follower.look_now()
    store.promote(new := register())
    follower.fault = OSError("out of file handles")
    tried_at = []
    for second in range(300):
        before = follower.tries
        follower.look_now()
        if follower.tries > before:
            tried_at.append(second)
        clock.now += 1
    assert tried_at == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    follower.fault = None
    clock.now += 60
    assert follower.look_now() == new


def test_another_version_is_tried_at_once(store, register, clock):
    follower = Watched(store)
    follower.fault = OSError("out of file handles")
    store.promote(register())
    for _ in range(10):
        follower.look_now()
    assert follower.tries == 1
    store.promote(register())
    follower.look_now()
    assert follower.tries == 2


def test_a_store_that_cannot_be_read_is_told_once(store, monkeypatch, caplog):
    def fail(name):
        raise RuntimeError("odd")

    monkeypatch.setattr(store, "champion", fail)
    follower, before = Watched(store), failures()
    for _ in range(3):
        assert follower.look_now() is None
    assert failures() - before == 1
    assert len(caplog.records) == 1


# What the supervisor is told


def test_a_start_without_a_champion_is_told_once_and_one_with_it_is_over(
    store, register, tmp_path, caplog
):
    start = Start(tmp_path)
    follower = Watched(store, start)
    follower.look_now()
    assert "there is no champion" in start.refusal
    assert "still serving" not in caplog.text, "the supervisor says it, for all workers"
    store.promote(register())
    follower.look_now()
    assert (start.is_over, start.refusal) == (True, None)


def test_what_nobody_can_mend_does_not_end_the_start(store, register, tmp_path, caplog):
    start = Start(tmp_path)
    store.promote(register())
    follower = Watched(store, start)
    follower.fault = KeyError("x")
    follower.look_now()
    assert start.refusal is None
    assert "still serving nothing: 'x'" in caplog.text


def test_a_worker_that_refused_while_another_served_says_so_itself(
    store, register, tmp_path, caplog, clock
):
    start = Start(tmp_path)
    store.promote(register())
    follower = Watched(store, start)
    follower.fault = BundleError("damaged")
    follower.look_now()
    Start(tmp_path).succeed()
    clock.now += 1000
    follower.look_now()
    assert "still serving nothing: damaged" in caplog.text


def test_after_the_start_a_worker_that_cannot_load_ends_nothing(store, register, tmp_path, caplog):
    start = Start(tmp_path)
    start.succeed()
    store.promote(register())
    late = Watched(store, start)
    late.fault = BundleError("damaged")
    assert late.look_now() is None
    assert start.refusal is None
    assert "still serving nothing: damaged" in caplog.text
