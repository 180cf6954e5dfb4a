"""The watching half with real parts: a service, a monitor process, a browser."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.store import ModelStore
from monitoring import state_file
from monitoring.alarm import LABELLED_MISTAKES
from monitoring.evidence import STREAMS
from monitoring.monitor import Monitor
from monitoring.settings import MonitoringSettings
from training.idx import FASHION_MNIST_CLASSES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def monitoring(home, port: int, **settings: str) -> Iterator[subprocess.Popen[str]]:
    clean = {name: value for name, value in os.environ.items() if "PLUMBLINE" not in name}
    given = {f"PLUMBLINE_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "plumbline", "monitor", "--port", str(port)],
        env={**clean, "PLUMBLINE_HOME": str(home), "PLUMBLINE_REPORT_IMAGES": "0", **given},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), process)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 40
) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"it ended:\n{process.communicate()[1]}")
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)
    return found


def send(url: str, images: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for start in range(0, len(images), 50):
        files = []
        for image in images[start : start + 50]:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            files.append(("image", ("x", buffer.getvalue())))
        answer = httpx.post(f"{url}/v1/predict", files=files, timeout=30)
        found += answer.raise_for_status().json()["predictions"]
    return found


def test_from_clean_to_dark_to_reset(trained, serving, garment_images, tmp_path, run_plumbline):
    home = trained.copy(tmp_path / "home")
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    images = garment_images["images"]

    def status() -> dict[str, Any]:
        return dict(httpx.get(f"{page}/api/status").json())

    def settled(served: int) -> dict[str, Any]:
        wait_for(lambda: status()["images_served"] >= served)
        return status()

    with serving(home, store_images="true", record_flush_seconds="0.5") as server:
        with monitoring(home, port) as monitor:
            assert status()["state"] == "waiting"
            send(server.url, images[:250])
            clean = settled(250)
            assert clean["state"] == "ok"
            assert clean["model"] == trained.tag
            assert 150 < clean["images_sampled"] <= 250
            assert set(clean["log10_evidence"]) == {*STREAMS, LABELLED_MISTAKES}
            predictions = send(server.url, images[250:450] // 2)
            dark = settled(450)
            assert dark["state"] == "drift"
            assert len(dark["alarms"]) == 1
            assert dark["alarms"][0]["after_images"] <= clean["images_sampled"] + 100
            text = httpx.get(f"{page}/metrics").text
            assert 'plumbline_monitor_state{state="drift"} 1.0' in text
            assert "plumbline_watched_images_total 450.0" in text
            kept = httpx.get(f"{page}/images/{predictions[0]['id']}")
            assert kept.headers["content-type"] == "image/png"
            for path in ("%2e%2e%2fstate.json", "..%2fstate.json", "x"):
                assert httpx.get(f"{page}/images/{path}").status_code == 404
            assert httpx.get(page, headers={"Host": "evil.example"}).status_code == 400
            monitor.kill()
            monitor.wait()
        with monitoring(home, port):
            again = status()
            # What waits for labels, and what only explains, are no part of the state.
            others = {"retraining_waits": None, "prior_shift": None}
            assert {**again, **others} == {**dark, **others}
            why = ("monitor", "reset", "--why", "the lamp was out")
            assert trained.tag in run_plumbline(*why, home=home).stdout
            wait_for(lambda: status()["state"] == "ok")
            assert status()["images_since_reset"] == 0


@pytest.mark.slow
def test_kills_in_mid_stream_change_nothing(trained, serving, garment_images, tmp_path):
    """Record files come one by one, and the monitor dies twice while they do."""
    served, killed, steady = (trained.copy(tmp_path / name) for name in ("a", "b", "c"))
    images = garment_images["images"][:600]
    with serving(served, record_flush_seconds="0.05", record_file_rows="10") as server:
        send(server.url, images)
    files = sorted((served / "records").glob("*/*.parquet"))
    assert len(files) >= 60

    def put(home, path) -> None:
        """As the service does: whole, in one step."""
        folder = home / "records" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / ".x.partial")
        (folder / ".x.partial").rename(folder / path.name)

    port = free_port()
    url = f"http://127.0.0.1:{port}/api/status"
    for part in (files[:20], files[20:40]):
        with monitoring(killed, port, monitor_seconds="0.02") as monitor:
            before = httpx.get(url).json()["images_served"]
            for path in part:
                put(killed, path)
                time.sleep(0.02)
            # It is somewhere within this part, or at its end: looking, taking or saving.
            wait_for(lambda known=before: httpx.get(url).json()["images_served"] > known)
            monitor.kill()
            monitor.wait()
    with monitoring(killed, port, monitor_seconds="0.02"):
        for path in files[40:]:
            put(killed, path)
        wait_for(lambda: httpx.get(url).json()["images_served"] == len(images))
        shown = httpx.get(url).json()

    shutil.copytree(served / "records", steady / "records")
    settings = MonitoringSettings(home=steady, record_merge_seconds=0.0)
    uninterrupted = Monitor(settings, ModelStore(settings))
    uninterrupted.poll()
    expected = json.loads(json.dumps(uninterrupted.status()))
    assert expected["images_served"] == len(images)
    assert {name: shown[name] for name in expected} == expected
    kept = state_file.load(killed / "monitor" / "state.json")
    assert kept["watches"][trained.tag] == json.loads(json.dumps(uninterrupted.watch.to_state()))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_the_page_in_a_browser(trained, serving, garment_images, tmp_path):
    home = trained.copy(tmp_path / "home")
    port = free_port()
    with serving(home, store_images="true", record_flush_seconds="0.5") as server:
        noise = np.random.default_rng(0).integers(0, 256, (120, 28, 28), np.uint8)
        send(server.url, noise)
        with monitoring(home, port):
            page = f"http://127.0.0.1:{port}"
            wait_for(lambda: httpx.get(f"{page}/api/status").json()["state"] == "drift")
            shown = subprocess.run(
                [
                    *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"),
                    *("--virtual-time-budget=8000", "--dump-dom", f"{page}/"),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
    assert "The domain has drifted" in shown
    assert '<section class="sentence drift" role="status">' in shown
    assert shown.count("<polyline") == len(STREAMS)
    assert "alarm line" in shown
    assert 'src="/images/' in shown
    assert "plumbline monitor reset --why" in shown


class TestRefusals:
    def refusal(self, run_plumbline, home, *arguments: str, **settings: str) -> str:
        done = run_plumbline("monitor", *arguments, home=home, check=False, **settings)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    def test_port_taken(self, run_plumbline, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            said = self.refusal(run_plumbline, tmp_path, "--port", port)
        assert f"127.0.0.1:{port}" in said
        assert "PLUMBLINE_MONITOR_ON" in said

    def test_beyond_loopback(self, run_plumbline, tmp_path):
        assert "SSH tunnel" in self.refusal(run_plumbline, tmp_path, "--host", "0.0.0.0")

    def test_a_damaged_state(self, run_plumbline, tmp_path):
        (tmp_path / "monitor").mkdir()
        (tmp_path / "monitor" / "state.json").write_text("{}")
        assert "mv " in self.refusal(run_plumbline, tmp_path, "--port", str(free_port()))

    def test_a_second_monitor_of_one_home(self, run_plumbline, tmp_path):
        with state_file.only_one(tmp_path / "monitor"):
            said = self.refusal(run_plumbline, tmp_path, "--port", str(free_port()))
        assert f"another monitor (process {os.getpid()})" in said

    def test_a_reset_without_a_reason(self, run_plumbline, tmp_path):
        assert "--why is empty" in self.refusal(run_plumbline, tmp_path, "reset", "--why", " ")

    def test_a_reset_of_nothing(self, run_plumbline, tmp_path):
        assert "no champion" in self.refusal(run_plumbline, tmp_path, "reset", "--why", "x")


@pytest.mark.slow
def test_drift_without_a_service_says_how_to_start_it(trained, run_plumbline):
    port = free_port()
    done = run_plumbline(
        *("drift", "dark"), home=trained.path, check=False, serve_on=f"127.0.0.1:{port}"
    )
    assert done.returncode == 2
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_labels_of_dark_images_make_a_challenger(
    trained, serving, garment_images, tmp_path, run_plumbline
):
    """The whole way, with nothing stood in for: predictions, feedback, training, comparison."""
    home = trained.copy(tmp_path / "home")
    images, targets = garment_images["images"][:120], garment_images["labels"][:120]
    with serving(home, store_images="true", record_flush_seconds="0.5") as server:
        classes = httpx.get(f"{server.url}/v1/model").json()["classes"]
        for answer, target in zip(send(server.url, images // 2), targets, strict=True):
            said = {"id": answer["id"], "labels": [FASHION_MNIST_CLASSES[target]]}
            assert said["labels"][0] in classes
            assert httpx.post(f"{server.url}/v1/feedback", json=said).status_code == 202
        wait_for(lambda: len(list((home / "images" / "others").glob("*.png"))) > 80)
        time.sleep(2)  # the last records are written
        ask = ("retrain", "--why", "a test")
        few = run_plumbline(*ask, home=home, check=False)
        assert (few.returncode, "120 images with new labels" in few.stderr) == (1, True)
        wanted = {"retrain_least_labels": "100", "retrain_trusted_clients": "this-machine"}
        done = run_plumbline(*ask, home=home, **wanted)
        assert "newest labelled production images" in done.stdout
        assert httpx.get(f"{server.url}/v1/model").json()["version"] in trained.tag
    listed = json.loads(run_plumbline("models", "list", "--json", home=home).stdout)
    stages = {row["version"]: row["stage"] for row in listed}
    assert sorted(stages.values()) == ["champion", "registered"]
    assert stages[trained.tag] == "champion"
    (challenger,) = set(stages) - {trained.tag}
    shown = json.loads(run_plumbline("models", "show", challenger, home=home).stdout)
    assert shown["data"]["base_fingerprint"] != shown["data"]["fingerprint"]
    assert shown["training"]["weights"] == trained.tag
