"""Which GPUs there are, by a driver that stands for NVIDIA's, and which worker gets which."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from service import default_engine, devices
from service.devices import share_out, visible_devices
from service.settings import ServiceSettings
from service.workers import WorkerPlan, plan_workers


@pytest.fixture
def driver(monkeypatch):
    """`driver(4)`: one that shows four GPUs; `driver(code=100)`: one that finds none."""

    def install(count: int = 0, code: int = 0) -> None:
        def count_into(reference):
            reference._obj.value = count
            return 0

        driver = SimpleNamespace(cuInit=lambda flags: code, cuDeviceGetCount=count_into)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_gpus_are_numbered_where_nothing_names_them(driver):
    driver(3)
    assert visible_devices() == ["0", "1", "2"]


def test_the_words_of_a_scheduler_are_kept_as_far_as_the_driver_takes_them(driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5e1a, 3,no-such,2")
    driver(2)  # whatever comes after a name that is none is hidden
    assert visible_devices() == ["GPU-5e1a", "3"]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_none(hidden, driver, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    driver(0)
    assert visible_devices() == []


def test_without_a_driver_or_a_gpu_there_are_none(driver, monkeypatch):
    driver(code=100)  # CUDA_ERROR_NO_DEVICE
    assert visible_devices() == []
    monkeypatch.undo()
    monkeypatch.setattr(devices, "_DRIVER", "libnone.so.1")
    assert visible_devices() == []
    monkeypatch.setattr(devices, "_DRIVER", None)  # this program itself, a library of no CUDA
    assert visible_devices() == []


def test_workers_are_spread_evenly():
    assert share_out(4, ["a", "b"]) == [("a", 2), ("b", 2)]
    assert share_out(5, ["a", "b", "c"]) == [("a", 2), ("b", 2), ("c", 1)]
    assert share_out(1, ["a", "b"]) == [("a", 1)]


# How many serve


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs; and torch, which a default takes for a reason to use them."""
    monkeypatch.setattr("service.workers.visible_devices", lambda: ["4", "7"])
    monkeypatch.setattr(default_engine, "_has_gpu", lambda: True)
    monkeypatch.setattr(default_engine, "_has_torch", lambda: True)


@pytest.mark.usefixtures("gpus")
def test_torch_on_gpus_has_one_worker_on_each_and_decodes_on_the_other_cores():
    plan = plan_workers(ServiceSettings(engine="torch"), cores=16)
    assert plan == WorkerPlan(2, ("4", "7"), decode_threads=7)
    assert plan_workers(ServiceSettings(engine="torch"), cores=2).decode_threads == 2
    assert plan_workers(ServiceSettings(engine="torch"), cores=200).decode_threads == 16


@pytest.mark.usefixtures("gpus")
def test_what_settings_say_comes_first():
    settings = ServiceSettings(engine="torch", workers=4, decode_threads=3)
    assert plan_workers(settings, cores=16) == WorkerPlan(4, ("4", "7"), 3)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("workers", "used", "said"),
    [(1, ("4",), "1 of 2 GPUs are not used"), (5, ("4", "7"), "5 workers share 2 GPUs")],
)
def test_fewer_and_more_workers_than_gpus_are_taken_and_that_is_said(workers, used, said, caplog):
    plan = plan_workers(ServiceSettings(engine="torch", workers=workers), cores=16)
    assert (plan.workers, plan.devices) == (workers, used)
    assert said in caplog.text


@pytest.mark.usefixtures("gpus")
def test_openvino_has_one_worker_a_core_beside_any_gpu():
    plan = plan_workers(ServiceSettings(engine="openvino"), cores=6)
    assert plan == WorkerPlan(6, (), decode_threads=2)


def test_torch_without_a_gpu_has_one_worker_a_core(monkeypatch):
    monkeypatch.setattr("service.workers.visible_devices", list)
    assert plan_workers(ServiceSettings(engine="torch"), cores=6) == WorkerPlan(6, (), 2)


@pytest.mark.usefixtures("gpus")
def test_where_nothing_names_the_engine_the_champion_has_to_have_passed_for_torch(
    store, register, make_manifest
):
    gates = make_manifest().engines
    passed = {**gates, "torch-bf16": gates["openvino"]}
    settings = ServiceSettings(home=store.home)
    assert (settings.engine, settings.engine_is_given) == ("torch", False)
    assert plan_workers(settings, cores=6).workers == 2  # no champion: the workers will say so
    store.promote(register())
    assert plan_workers(settings, cores=6) == WorkerPlan(6, (), 2)
    store.promote(register(engines=passed))
    assert plan_workers(settings, cores=6).devices == ("4", "7")
