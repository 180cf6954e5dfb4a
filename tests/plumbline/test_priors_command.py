"""`plumbline monitor priors` tells what the monitor knows of the class mix, and adjusts to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from model.bundle import TRUTH
from model.settings import ModelSettings
from model.store import ModelStore
from plumbline.cli import main

SHARES = (0.3, 0.3, 0.1, 0.05, 0.05, 0.04, 0.04, 0.04, 0.04, 0.04)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """A monitor's status, to be filled, at the address that the settings name."""
    status: dict[str, object] = {"model": "m:1", "sentence": "Waiting: no images."}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps(status).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *its: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("PLUMBLINE_MONITOR_ON", f"127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield status
    server.shutdown()
    thread.join()
    server.server_close()


def change(classes: tuple[str, ...], *, recognised: bool = True) -> dict[str, object]:
    """What a monitor says of a class mix."""
    shares = dict(zip(classes, SHARES, strict=True))
    expected = {"before": 0.8, "after": 0.85, "gain": 0.05, "gain_low": 0.04, "gain_high": 0.06}
    proposal = {
        "what": "prior-corrected probabilities",
        "factors": {name: 10 * share for name, share in shares.items()},
        "thresholds": {},
        "expected": {**expected, "by": "100 labelled reference images, weighted by class"},
        "worthwhile": True,
    }
    return {
        "images": 1_000,
        "recognised": recognised,
        "sentence": "The class mix alone explains what is seen.",
        "classes": [
            {
                "name": name,
                "reference": 0.1,
                "share": share,
                "low": share - 0.01,
                "high": share + 0.01,
                "black_box": None,
                "black_box_low": None,
                "black_box_high": None,
                "changed": True,
            }
            for name, share in shares.items()
        ],
        "proposal": proposal if recognised else None,
    }


def ask(*arguments: str):
    return CliRunner().invoke(main, ["monitor", "priors", *arguments])


def test_it_shows_shares_and_proposal(says):
    says["prior_shift"] = change(tuple("abcdefghij"))
    told = ask()
    assert told.exit_code == 0
    assert "The class mix alone explains what is seen." in told.output
    assert "30.0% (29.0% to 31.0%)" in told.output
    assert "gain +0.0500, 95 %: +0.0400 to +0.0600" in told.output
    found = json.loads(ask("--json").output)
    assert (found["model"], found["adjusted"]) == ("m:1", None)


def test_what_the_class_mix_does_not_explain_is_exit_code_1_and_adjusts_nothing(says):
    says["prior_shift"] = change(tuple("abcdefghij"), recognised=False)
    told = ask("--adjust", "--why", "a test", "--json")
    assert told.exit_code == 1
    assert json.loads(told.output)["adjusted"] is None


def test_wrong_use_is_told(says, monkeypatch):
    assert "--why is empty" in ask("--adjust").output
    says["prior_shift"] = None
    told = ask()
    assert told.exit_code == 2
    assert "cannot tell the class mix now: Waiting: no images." in told.output
    monkeypatch.setenv("PLUMBLINE_MONITOR_ON", "127.0.0.1:9")
    assert "no monitor answers at http://127.0.0.1:9" in ask().output


@pytest.mark.slow
def test_it_makes_a_version_that_serves_the_new_class_mix(
    says, trained, tmp_path, monkeypatch, run_plumbline
):
    home = trained.copy(tmp_path / "home")
    store = ModelStore(ModelSettings(home=home))
    before = store.load(store.find(trained.tag))
    assert TRUTH in before.manifest.files
    says |= {"model": trained.tag, "prior_shift": change(before.manifest.classes)}
    monkeypatch.setenv("PLUMBLINE_HOME", str(home))
    told = ask("--adjust", "--why", "the summer collection", "--json")
    assert told.exit_code == 0, told.output
    tag = json.loads(told.output)["adjusted"]["version"]
    after = store.load(store.find(tag)).manifest
    assert after.calibration.method == "temperature and priors"
    assert store.champion(before.manifest.name).tag == trained.tag
    done = run_plumbline("evaluate", tag, "--data", trained.data, "--json", home=home)
    was = run_plumbline("evaluate", trained.tag, "--data", trained.data, "--json", home=home)
    assert json.loads(done.stdout)["accuracy"] < json.loads(was.stdout)["accuracy"] + 0.01
    store.state.dispose()
