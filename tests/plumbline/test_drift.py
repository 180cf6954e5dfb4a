"""The traffic that `plumbline drift` plays really changes, and stays images."""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import MonitorError
from model.images import InputSpec
from plumbline import drift
from plumbline.client import Client
from plumbline.drift import MonitorPages, Play, Player, change, play
from service.settings import ServiceSettings
from training.sources import Source, open_source
from training.splits import Split

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)


@pytest.mark.parametrize("kind", ["dark", "blur", "noise", "foreign"])
def test_a_change_changes_and_keeps_shape_and_type(kind):
    changed = change(kind, PIXELS, np.random.default_rng(1))
    assert (changed.shape, changed.dtype) == (PIXELS.shape, np.uint8)
    assert not np.array_equal(changed, PIXELS)


def test_dark_halves_brightness_and_clean_changes_nothing():
    random = np.random.default_rng(1)
    assert change("dark", PIXELS, random).mean() == pytest.approx(PIXELS.mean() / 2, abs=0.5)
    assert np.array_equal(change("clean", PIXELS, random), PIXELS)


def test_no_monitor_is_told_with_how_to_start_it():
    with pytest.raises(MonitorError, match="make up"):
        MonitorPages("http://127.0.0.1:9").status()


@dataclass
class Heard:
    """What a service was sent: images by the id it gave them, ids with labels, and keys."""

    images: dict[str, bytes] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    keys: list[str | None] = field(default_factory=list)
    watched: list[str | None] = field(default_factory=lambda: ["m:1"])  # the last one stays
    waits: str | None = None  # what the monitor's retraining is waiting for
    address: str = ""


@pytest.fixture
def heard() -> Iterator[Heard]:
    """A server that speaks the service's language and the monitor's, and writes down."""
    heard = Heard()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.keys.append(self.headers["Authorization"])
            model = heard.watched.pop(0) if len(heard.watched) > 1 else heard.watched[0]
            status = {"state": "drift", "sentence": "drift", "model": model}
            status["retraining_waits"] = heard.waits
            self._answer(status if self.path == "/api/status" else {"name": "m", "version": "1"})

        def do_POST(self) -> None:
            heard.keys.append(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/feedback":
                said = json.loads(body)
                heard.labels[said["id"]] = said["labels"]
                self._answer({})
                return
            starts = body.split(b"\x89PNG")[1:]
            given = {str(uuid.uuid4()): b"\x89PNG" + its for its in starts}
            heard.images.update(given)
            rows = [
                {"id": its, "labels": [], "probabilities": {}, "out_of_domain": None, "error": None}
                for its in given
            ]
            model = {"name": "m", "version": "1", "stage": "champion"}
            self._answer({"model": model, "predictions": rows})

        def _answer(self, content: dict[str, object]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *its: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    heard.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield heard
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two classes of small images that all differ."""
    random = np.random.default_rng(3)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(60):
            pixels = random.integers(128, 256, (28, 28, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return open_source(tmp_path)


SPEC = InputSpec(size=28, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture
def player(heard: Heard, source: Source, monkeypatch: pytest.MonkeyPatch):
    """`player(kind="dark", ...)`: sends to `heard`, without a pause."""
    monkeypatch.setattr(drift, "_PAUSE_SECONDS", 0.0)

    def make(**play: object) -> Player:
        pages = MonitorPages(f"http://{heard.address}")
        return Player(Client(f"http://{heard.address}"), pages, source, SPEC, Play(**play))

    return make


def pixels_of(data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data))).tobytes()


def rows_of(source: Source, split: Split) -> set[bytes]:
    return {source.reader.prepare(row, SPEC).tobytes() for row in source.rows(split)}


def test_nobody_labels_a_clean_image(heard, source, player):
    """Both versions are compared on the test images: what is labelled is learned."""
    player(kind="dark").send(Split.TEST, 10, changed=False)
    sent = {pixels_of(its) for its in heard.images.values()}
    assert sent <= rows_of(source, Split.TEST)
    assert (len(heard.images), heard.labels) == (10, {})


def test_only_what_was_changed_is_labelled(heard, source, player):
    player(kind="dark", share=0.5).send(Split.VALIDATION, 16, changed=True)
    kept = rows_of(source, Split.VALIDATION)
    unchanged = {its for its, data in heard.images.items() if pixels_of(data) in kept}
    assert 0 < len(unchanged) < 16
    assert set(heard.labels) == set(heard.images) - unchanged


def classes_of(source: Source, images: Iterable[bytes]) -> Counter[str]:
    """Classes of images that are as the data have them."""
    labels = {
        source.reader.prepare(row, SPEC).tobytes(): source.labels[row][0]
        for row in range(len(source))
    }
    return Counter(labels[pixels_of(its)] for its in images)


def test_another_prior_makes_the_first_classes_three_times_as_frequent(
    heard, source, player, monkeypatch
):
    monkeypatch.setattr(drift, "_FAVOURED_CLASSES", 1)
    rows = source.rows(Split.VALIDATION)
    before = Counter(source.labels[row][0] for row in rows)
    player(kind="prior").send(Split.VALIDATION, 99, changed=True)
    found = classes_of(source, heard.images.values())
    assert found["cat"] == before["cat"]
    assert 0 < found["dog"] < 0.7 * before["dog"]
    assert heard.labels == {}  # nothing new to learn


def test_another_concept_leaves_images_and_changes_what_they_are_called(heard, source, player):
    player(kind="concept").send(Split.VALIDATION, 16, changed=True)
    assert len(heard.labels) == 16
    for its, labels in heard.labels.items():
        (seen,) = classes_of(source, [heard.images[its]])
        assert labels == [{"cat": "dog", "dog": "cat"}[seen]]


def test_no_changed_image_is_made_from_a_test_image(heard, source, player):
    player(kind="dark").send(Split.VALIDATION, 99, changed=True)
    dark = {(np.frombuffer(its, np.uint8) // 2).tobytes() for its in rows_of(source, Split.TEST)}
    assert not dark & {pixels_of(its) for its in heard.images.values()}
    assert len(heard.images) == len(source.rows(Split.VALIDATION))


def test_two_plays_send_the_images_in_another_order_and_say_how_to_repeat_one(monkeypatch, capsys):
    seeds = Counter()
    for seconds in (1_000, 1_001):
        monkeypatch.setattr(drift.time, "time", lambda now=seconds: now)
        seeds[drift._with_seed(Play(kind="dark")).seed] += 1
    assert seeds == {1_000: 1, 1_001: 1}
    assert "--seed 1000 plays the same again" in capsys.readouterr().out
    assert drift._with_seed(Play(kind="dark", seed=5)).seed == 5


def test_the_play_shows_its_api_key(heard, monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBLINE_API_KEY", "s3cret")
    settings = ServiceSettings(home=tmp_path, serve_on=heard.address, monitor_on=heard.address)
    with pytest.raises(MonitorError, match="drift already"):
        play(settings, Play(kind="dark"))
    assert heard.keys[0] == "Bearer s3cret"


@pytest.mark.parametrize("what", ["trust", "labels"])
def test_labels_that_nobody_trusts_end_the_play_and_too_few_of_them_do_not(
    what, heard, player, capsys
):
    heard.waits = f"waiting for {what}: 150 of 300 images ... 'shop' labelled 300"
    assert player(kind="dark").send_until_retraining(Split.VALIDATION) is False
    assert f"monitor: retraining: {heard.waits}" in capsys.readouterr().out
    assert (heard.images == {}) is (what == "trust")


def test_a_monitor_that_has_just_started_is_waited_for(heard, player):
    client, pages = Client(f"http://{heard.address}"), MonitorPages(f"http://{heard.address}")
    heard.watched = [None, "m:0", "m:1"]
    with pytest.raises(MonitorError, match="drift already"):
        drift._check_ready(client, pages)
    assert heard.watched == ["m:1"]


def test_a_monitor_of_another_model_is_named(heard, player, monkeypatch):
    monkeypatch.setattr(drift, "_FOLLOWING_LIMIT_SECONDS", 0.0)
    heard.watched = ["other:1"]
    client, pages = Client(f"http://{heard.address}"), MonitorPages(f"http://{heard.address}")
    with pytest.raises(MonitorError, match="serves m:1 and the monitor watches other:1"):
        drift._check_ready(client, pages)
