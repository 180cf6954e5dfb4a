"""Serving through promotions, faults and the end; each test has a server of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def png(pixels: np.ndarray, path: Path) -> bytes:
    Image.fromarray(pixels).save(path, "PNG")
    return path.read_bytes()


@pytest.fixture
def image(garment_images, tmp_path):
    return png(garment_images["images"][0], tmp_path / "boot.png")


@pytest.fixture
def home(trained, tmp_path):
    return trained.copy(tmp_path / "home")


def twin_of(trained, home: Path) -> str:
    """Register a second version, equal to the first but for its name."""
    from model import bundle as bundles
    from model.settings import ModelSettings
    from model.store import ModelStore

    store = ModelStore(ModelSettings(home=home))
    first = store.load(store.find(trained.tag))
    with store.registering(first.manifest.name) as (version, directory, seal):
        for name in bundles.REQUIRED_FILES:
            (directory / name).write_bytes(first.path(name).read_bytes())
        seal(first.manifest.model_copy(update={"version": version}))
    store.state.dispose()
    return f"{first.manifest.name}:{version}"


def served_version(url: str) -> str:
    model = httpx.get(f"{url}/v1/model").json()
    return f"{model['name']}:{model['version']}"


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def wait_for_version(url: str, tag: str) -> None:
    wait_until(lambda: served_version(url) == tag)


def metric(url: str, series: str) -> float:
    """The value of one series, 0 where there is none."""
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(f"{series} "):
            return float(line.rpartition(" ")[2])
    return 0.0


class Asking(threading.Thread):
    """Asks without a pause and keeps every status and version."""

    def __init__(self, url: str, image: bytes) -> None:
        super().__init__()
        self.url, self.image = url, image
        self.done = threading.Event()
        self.seen: list[tuple[int, str]] = []

    def run(self) -> None:
        with httpx.Client() as client:
            while not self.done.is_set():
                answer = client.post(f"{self.url}/v1/predict", content=self.image, timeout=20)
                version = answer.json().get("model", {}).get("version", "")
                self.seen.append((answer.status_code, version))


def test_a_promotion_is_followed_without_a_restart_or_a_failed_request(
    trained, home, serving, image, run_plumbline
):
    second = twin_of(trained, home)
    with serving(home, workers="2") as server:
        asking = Asking(server.url, image)
        asking.start()
        wait_until(lambda: asking.seen)
        run_plumbline("promote", second, home=home)
        on_both = f'plumbline_model_info{{model="{second}"}}'
        wait_until(lambda: metric(server.url, on_both) == 2, seconds=5)
        wait_until(lambda: asking.seen[-1][1] == second.split(":")[1], seconds=1)
        asking.done.set()
        asking.join()
        assert {status for status, _ in asking.seen} == {200}
        versions = [version for _, version in asking.seen]
        assert {versions[0], versions[-1]} == {trained.tag.split(":")[1], second.split(":")[1]}
        assert f"{second}: batches of up to" in server.log.read_text(), "not timed under load"
        run_plumbline("rollback", home=home)
        wait_for_version(server.url, trained.tag)


def test_a_champion_that_does_not_verify_leaves_the_old_one_answering(
    trained, home, serving, image
):
    second = twin_of(trained, home)
    name, version = second.split(":")
    with serving(home) as server:
        directory = home / "bentoml" / "models" / name / version
        (directory / "network.bin").write_bytes(b"broken")
        with sqlite3.connect(home / "state.sqlite") as state:
            state.execute("update versions set stage = 'retired' where stage = 'champion'")
            state.execute("update versions set stage = 'champion' where version = ?", (version,))
        wait_until(lambda: metric(server.url, "plumbline_model_load_failures_total") == 1)
        assert served_version(server.url) == trained.tag
        assert httpx.post(f"{server.url}/v1/predict", content=image).status_code == 200
        assert "network.bin is corrupt" in server.log.read_text()


@pytest.mark.faults
def test_feedback_is_turned_away_while_the_state_database_is_locked_and_predictions_go_on(
    home, serving, image
):
    said = {"id": "01900000-0000-7000-8000-000000000001", "labels": ["ankle boot"]}
    with serving(home) as server, closing(sqlite3.connect(home / "state.sqlite")) as state:
        state.execute("begin immediate")
        refused = httpx.post(f"{server.url}/v1/feedback", json=said, timeout=30)
        predicted = httpx.post(f"{server.url}/v1/predict", content=image)
        lost = metric(server.url, 'plumbline_shed_requests_total{reason="state_database"}')
        state.rollback()
        taken = httpx.post(f"{server.url}/v1/feedback", json=said, timeout=30)
    assert (predicted.status_code, lost) == (200, 1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "unavailable"
    assert refused.headers["retry-after"] == "5"
    assert taken.status_code == 202


class HalfSent:
    """A request for which the second half of the body is still to come."""

    def __init__(self, server, image: bytes) -> None:
        port = int(server.url.rpartition(":")[2])
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        self._rest = image[100:]
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._connection.sendall(head.encode() + image[:100])
        wait_until(lambda: metric(server.url, "plumbline_inside_images") == 1)

    def finish(self) -> None:
        self._connection.sendall(self._rest)

    def answer(self) -> bytes:
        """Everything until the server closes the connection."""
        with self._connection:
            return b"".join(iter(lambda: self._connection.recv(65_536), b""))


def test_ending_the_server_finishes_what_is_in_flight_and_refuses_what_comes(home, serving, image):
    with serving(home, stop_seconds="60", body_timeout_seconds="60") as server:
        in_flight = HalfSent(server, image)
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        refused = httpx.post(f"{server.url}/v1/predict", content=image)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert refused.headers["retry-after"] == "1"
        assert metric(server.url, 'plumbline_shed_requests_total{reason="stopping"}') == 1
        in_flight.finish()
        answer = in_flight.answer()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"ankle boot" in answer
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


@pytest.mark.slow
def test_in_the_grace_before_the_end_it_answers_and_says_that_it_is_not_ready(home, serving, image):
    with serving(home, drain_grace_seconds="8", workers="2") as server:
        wait_until(lambda: metric(server.url, "plumbline_workers_ready") == 2)
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, seconds=6)
        answered = httpx.post(f"{server.url}/v1/predict", content=image)
        assert answered.status_code == 200
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.json()["error"]["code"] == "unavailable"
        assert ready.headers["retry-after"] == "1"
        assert server.process.poll() is None
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_it_ends_within_its_limit_and_answers_what_it_gives_up(home, serving, image):
    with serving(home, stop_seconds="1", body_timeout_seconds="120") as server:
        hanging = HalfSent(server, image)
        server.process.terminate()
        assert hanging.answer().startswith(b"HTTP/1.1 503")
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_two_workers_tell_their_metrics_together(trained, home, serving, image):
    asked = 40
    with serving(home, workers="2") as server:
        wait_until(lambda: metric(server.url, "plumbline_workers_ready") == 2)
        for _ in range(asked):  # each over a connection of its own, to either worker
            assert httpx.post(f"{server.url}/v1/predict", content=image).status_code == 200
        told = [httpx.get(f"{server.url}/metrics").text for _ in range(6)][-1]
        for line in (
            f'plumbline_images_total{{outcome="ok"}} {asked}.0',
            f'plumbline_requests_total{{route="/v1/predict",status="200"}} {asked}.0',
            f'plumbline_step_seconds_count{{step="respond"}} {asked}.0',
            f"plumbline_outlier_p_value_count {asked}.0",
            f'plumbline_labels_total{{label="ankle boot"}} {asked}.0',
            f'plumbline_model_info{{model="{trained.tag}"}} 2.0',
        ):
            assert line in told.splitlines()
        pids = {worker.pid for worker in children_of(server)}
        started = [line for line in told.splitlines() if "worker_start_time_seconds{" in line]
        assert {int(line.split('pid="')[1].split('"')[0]) for line in started} == pids


@pytest.mark.faults
@pytest.mark.slow
def test_unknown_paths_do_not_make_one_series_more(home, serving):
    def series(client: httpx.Client) -> list[str]:
        lines = client.get("/metrics").text.splitlines()
        return sorted(line.rpartition(" ")[0] for line in lines if not line.startswith("#"))

    with serving(home) as server, httpx.Client(base_url=server.url) as client:
        wait_until(lambda: metric(server.url, "plumbline_workers_ready") == 1)
        client.get("/first")
        series(client)  # the first of these makes the series of this route
        before = series(client)
        for number in range(2_000):
            assert client.get(f"/{number}/{number:x}?q={number}").status_code == 404
        assert series(client) == before
        other = 'plumbline_requests_total{route="other",status="404"}'
        assert metric(server.url, other) == 2_001


def test_json_logs_name_requests_and_hold_neither_images_nor_keys(
    home, serving, image, run_plumbline
):
    add = ("keys", "add", "--name", "asker", "--scope", "predict")
    key = run_plumbline(*add, home=home).stdout.strip()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {
        "Authorization": f"Bearer {key}",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
    }
    settings = {"log_format": "json", "access_log": "true"}
    with serving(home, api_keys_file=str(home / "api-keys.json"), **settings) as server:
        for body, status in ((image, 200), (b"raw image content", 415)):
            answer = httpx.post(f"{server.url}/v1/predict", content=body, headers=headers)
            assert (answer.status_code, answer.headers["x-request-id"]) == (status, trace)
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"plumbline.service", "plumbline.rollout"} <= {line["logger"] for line in lines}
    ours = [line for line in lines if line.get("request_id") == trace]
    assert [(line["route"], line["status"]) for line in ours] == [
        ("/v1/predict", 200),
        ("/v1/predict", 415),
    ]
    for private in (key, "raw image content", "Bearer"):
        assert private not in text


def children_of(server):
    return psutil.Process(server.process.pid).children(recursive=True)


def answers(url: str, image: bytes) -> bool:
    try:
        return httpx.post(f"{url}/v1/predict", content=image).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_killed_worker_comes_back_and_is_counted_once(trained, home, serving, image):
    serves = f'plumbline_model_info{{model="{trained.tag}"}}'
    with serving(home) as server:
        assert metric(server.url, serves) == 1
        (worker,) = children_of(server)
        worker.kill()
        worker.wait(20)
        wait_until(lambda: answers(server.url, image), seconds=40)
        wait_until(lambda: metric(server.url, serves) == 1)


def end_and_see_who_stays(server, number: int) -> list[psutil.Process]:
    """Send the signal; workers that outlive the server, those started meanwhile included."""
    supervisor, workers = psutil.Process(server.process.pid), set()
    server.process.send_signal(number)
    deadline = time.monotonic() + 30
    while server.process.poll() is None:
        assert time.monotonic() < deadline, "the server did not end"
        with suppress(psutil.NoSuchProcess):
            workers |= set(supervisor.children(recursive=True))
        time.sleep(0.01)
    return [worker for worker in workers if _is_alive(worker)]


def _is_alive(worker: psutil.Process) -> bool:
    """Whether it runs; one that has ended and was not yet heard of does not."""
    with suppress(psutil.NoSuchProcess):
        return worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.usefixtures("hangup_is_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_workers_start_stops_everything(number, home, serving):
    with serving(home, wait=False) as server:
        wait_until(lambda: children_of(server))
        assert end_and_see_who_stays(server, number) == []
        assert server.process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_a_signal_at_any_moment_of_the_start_stops_everything(seconds, home, serving):
    with serving(home, wait=False, workers="2") as server:
        time.sleep(seconds)
        assert end_and_see_who_stays(server, signal.SIGTERM) == []
        # By Python itself before our first line, by our exception before there are workers.
        assert server.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("hangup_is_heard")
def test_a_signal_while_a_dead_worker_is_replaced_stops_everything(home, serving):
    with serving(home) as server:
        (worker,) = children_of(server)
        worker.kill()
        wait_until(lambda: children_of(server) not in ([], [worker]))
        assert end_and_see_who_stays(server, signal.SIGHUP) == []
        assert server.process.returncode == 0


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_in_time(home, serving):
    with serving(home, stop_seconds="1") as server:
        (worker,) = children_of(server)
        worker.suspend()
        server.process.terminate()
        assert server.process.wait(30) == 0
        assert not worker.is_running()


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_supervisor(home, serving):
    with serving(home) as server:
        (worker,) = children_of(server)
        server.process.kill()
        worker.wait(20)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


@pytest.mark.slow
def test_workers_do_not_outlive_a_supervisor_killed_while_they_start(home, serving):
    with serving(home, wait=False) as server:
        wait_until(lambda: children_of(server))
        (worker,) = children_of(server)
        server.process.kill()
        worker.wait(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez")


@pytest.mark.slow
def test_every_core_has_a_worker_by_default(home, serving):
    from service.supervisor import usable_cores

    with serving(home, workers=None) as server:
        assert len(children_of(server)) == usable_cores() >= 1


def test_keys_open_what_their_scope_says(home, serving, image, run_plumbline):
    add = ("keys", "add", "--name")
    reader = run_plumbline(*add, "reader", "--scope", "metrics", home=home).stdout.strip()
    asker = run_plumbline(*add, "asker", "--scope", "predict", home=home).stdout.strip()
    keys_file = home / "api-keys.json"
    assert asker not in keys_file.read_text()
    with serving(home, api_keys_file=str(keys_file)) as server:

        def status(path: str, key: str | None, **content: bytes) -> int:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            method = "POST" if content else "GET"
            return httpx.request(
                method, f"{server.url}{path}", headers=headers, **content
            ).status_code

        assert status("/v1/predict", None, content=image) == 401
        assert status("/v1/predict", "unknown", content=image) == 401
        assert status("/v1/predict", reader, content=image) == 403
        assert status("/v1/predict", asker, content=image) == 200
        assert status("/metrics", None) == 401
        assert status("/metrics", reader) == 200
        assert status("/readyz", None) == 200
        assert status("/docs", None) == 200


class TestRefusals:
    def refusal(self, run_plumbline, home: Path, *arguments: str, **settings: str) -> str:
        done = run_plumbline("serve", *arguments, home=home, check=False, **settings)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    def test_no_champion(self, run_plumbline, tmp_path):
        assert "no champion" in self.refusal(run_plumbline, tmp_path)

    def test_a_state_database_of_a_newer_plumbline(self, run_plumbline, home):
        with closing(sqlite3.connect(home / "state.sqlite")) as state, state:
            state.execute("UPDATE alembic_version SET version_num = '9999'")
        assert "has schema 9999" in self.refusal(run_plumbline, home)

    def test_port_taken(self, run_plumbline, home):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            said = self.refusal(run_plumbline, home, serve_on=f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in said
        assert "--port" in said
        assert "PLUMBLINE_SERVE_ON" in said

    def test_beyond_loopback_without_keys(self, run_plumbline, home):
        assert "API keys" in self.refusal(run_plumbline, home, "--host", "0.0.0.0")

    def test_a_corrupt_champion(self, run_plumbline, home):
        next((home / "bentoml").rglob("outlier.safetensors")).write_bytes(b"x")
        assert "outlier.safetensors is corrupt" in self.refusal(run_plumbline, home)

    def test_an_unknown_setting(self, run_plumbline, home):
        assert "PLUMBLINE_COLOUR" in self.refusal(run_plumbline, home, colour="red")


@contextmanager
def serving_with_torch_at_hand(home: Path, port: int) -> Iterator[str]:
    """`serving` keeps torch away from its servers; this one has it, and runs the network by it."""
    clean = {name: value for name, value in os.environ.items() if "PLUMBLINE" not in name}
    process = subprocess.Popen(
        [sys.executable, "-m", "plumbline", "serve", "--engine", "torch"],
        env={
            **clean,
            "PLUMBLINE_HOME": str(home),
            "PLUMBLINE_WORKERS": "1",
            "PLUMBLINE_SERVE_ON": f"127.0.0.1:{port}",
        },
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_torch_serves_as_openvino_does(home, serving, image):
    with serving(home) as server:
        by_openvino = httpx.post(f"{server.url}/v1/predict", content=image).json()
    with serving_with_torch_at_hand(home, int(server.url.rpartition(":")[2])) as url:
        wait_until(lambda: answers(url, image), seconds=120)
        by_torch = httpx.post(f"{url}/v1/predict", content=image).json()
        assert httpx.get(f"{url}/v1/model").json()["engine"]["name"] == "torch"
    (one,), (other,) = by_openvino["predictions"], by_torch["predictions"]
    assert one["labels"] == other["labels"] == ["ankle boot"]
    assert other["probabilities"] == pytest.approx(one["probabilities"], abs=0.05)


@pytest.fixture
def without_torch(tmp_path) -> Path:
    """The interpreter of a new environment that has what the service needs, and nothing else."""
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    needed = ROOT / "service" / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", needed], check=True)
    assert subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bento_serves_from_another_directory_in_an_environment_without_torch(
    home, image, tmp_path, without_torch
):
    """As `bentoml build` and `bentoml serve` do it, with nothing of the checkout on the path."""
    bentos = tmp_path / "bentos"
    environment = {
        **{name: value for name, value in os.environ.items() if "PLUMBLINE" not in name},
        "BENTOML_HOME": str(bentos),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    environment.pop("PYTHONPATH", None)
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag", str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    tag = built.stdout.strip().rpartition("__tag__:")[2]
    packed = bentos / "bentos" / tag.replace(":", "/") / "src"
    assert (packed / "service" / "app.py").is_file()
    assert not (packed / "training").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [without_torch, "-m", "bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)],
        cwd=elsewhere,
        env={**environment, "PLUMBLINE_HOME": str(home), "PLUMBLINE_WORKERS": "1"},
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.post(f"{url}/v1/predict", content=image).status_code == 200
        return False

    try:
        wait_until(answers, seconds=60)
        answer = httpx.post(f"{url}/v1/predict", content=image)
    finally:
        process.terminate()
        process.wait(30)
    assert answer.json()["predictions"][0]["labels"] == ["ankle boot"]


@pytest.mark.slow
def test_two_servers_on_one_home_keep_their_own_metrics(home, serving, image):
    with serving(home) as first, serving(home) as second:
        for _ in range(3):
            httpx.post(f"{first.url}/v1/predict", content=image)
        line = 'plumbline_images_total{outcome="ok"} 3.0'
        assert line in httpx.get(f"{first.url}/metrics").text
        assert line not in httpx.get(f"{second.url}/metrics").text


@pytest.mark.slow
def test_bentoml_sees_the_versions(home, trained):
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", "models", "list", "--output", "json"],
        env={**os.environ, "BENTOML_HOME": str(home / "bentoml")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert trained.tag in [row["tag"] for row in json.loads(done.stdout)]
