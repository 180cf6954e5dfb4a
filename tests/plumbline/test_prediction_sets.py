"""Prediction sets as a user meets them: client, commands, and a version that has none."""

from __future__ import annotations

import json
import shutil
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from PIL import Image
from starlette.requests import Request

from model.bundle import CONFORMAL_SETS
from model.engines import load_engine
from model.errors import CoverageError, DataError
from model.settings import ModelSettings
from model.store import ModelStore
from plumbline.cli import main
from plumbline.client import Client, ServiceError
from plumbline.image_files import ImageFile
from plumbline.predict import judging_here, predict_all
from service.errors import RequestError
from service.http import _least_probability, _model_description
from service.predictor import Predictor
from training.evaluate import evaluate_version

ROW = {"id": "1", "labels": ["cat"], "probabilities": {"cat": 1.0}, "out_of_domain": None}


def client(row: dict[str, Any], asked: list[httpx.URL]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        model = {"name": "x", "version": "1", "stage": "champion"}
        return httpx.Response(200, json={"model": model, "predictions": [{**row, "error": None}]})

    made = Client("http://service")
    made._http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))
    return made


def test_the_client_asks_for_sets_only_where_it_is_told_to():
    asked: list[httpx.URL] = []
    with client({**ROW, "set": ["cat", "dog"]}, asked) as made:
        answer = made.predict([b"image"], coverage=0.9)
    assert answer.predictions[0].prediction_set == ("cat", "dog")
    with client(ROW, asked) as made:
        assert made.predict([b"image"]).predictions[0].prediction_set is None
    assert [url.query for url in asked] == [b"coverage=0.9", b""]


def test_a_service_that_knows_no_sets_is_found_out():
    with client(ROW, []) as made, pytest.raises(ServiceError, match="knows no prediction sets"):
        made.predict([b"image"], coverage=0.9)


@pytest.mark.parametrize("given", ["2", "nan", "", "much"])
@pytest.mark.parametrize("command", ["predict .", "evaluate x --data ."])
def test_a_wrong_coverage_is_one_error(command, given):
    done = CliRunner().invoke(main, [*command.split(), "--coverage", given])
    assert done.exit_code == 2
    assert "valid is a number between 0 and 1" in done.output
    assert done.output.count("\n") == 1


@pytest.fixture
def pictures(garment_images, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(garment_images["images"][number]).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def test_predict_gives_one_set_here_and_by_the_service(trained, server, pictures, run_plumbline):
    def ask(*options: str) -> list[dict[str, Any]]:
        done = run_plumbline(
            *("predict", pictures, "--json", "--coverage", "0.95", *options),
            home=trained.path,
            check=False,
        )
        assert done.returncode == 1, done.stderr  # of the broken one
        return [json.loads(line) for line in done.stdout.splitlines()]

    here, there = ask(), ask("--url", server.url)
    assert ["set" in row for row in here] == [True] * 12 + [False]
    for one, other in zip(here, there, strict=True):
        assert one.get("set") == other.get("set")
    assert here[0]["set"][0] == "ankle boot"


def test_a_coverage_that_cannot_be_promised_is_refused_by_every_command(
    trained, server, pictures, run_plumbline
):
    highest = httpx.get(f"{server.url}/v1/model").json()["prediction_sets"]["highest_coverage"]
    for command in (
        ("predict", pictures),
        ("predict", pictures, "--url", server.url),
        ("evaluate", trained.tag, "--data", trained.data),
    ):
        done = run_plumbline(*command, "--coverage", "0.9999", home=trained.path, check=False)
        assert done.returncode == 2
        assert f"calibration images with a label; at most {highest} can" in done.stderr


@pytest.mark.slow
def test_evaluate_measures_the_sets_as_training_did(trained, run_plumbline):
    asked = ("evaluate", trained.tag, "--data", trained.data, "--coverage", "0.9")
    found = json.loads(run_plumbline(*asked, "--json", home=trained.path).stdout)
    shown = json.loads(run_plumbline("models", "show", trained.tag, home=trained.path).stdout)
    at_90 = next(its for its in shown["prediction_sets"]["measured"] if its["coverage"] == 0.9)
    sets = found["prediction_sets"]
    assert sets["images"] == 1_000
    assert sets["realised"] == pytest.approx(at_90["realised"])
    assert sets["mean_size"] == pytest.approx(at_90["mean_size"])
    # Chance alone puts it outside once in ten thousand: 746 images to calibrate, 1,000 to test.
    assert abs(sets["realised"]["value"] - 0.9) < 0.058
    by_class = [its["value"] for its in sets["by_class"].values()]
    assert len(by_class) == 10
    assert min(by_class) < sets["realised"]["value"] < max(by_class)
    assert "prediction_sets" not in json.loads(
        run_plumbline(*asked[:4], "--json", home=trained.path).stdout
    )
    table = run_plumbline(*asked, home=trained.path).stdout
    assert "coverage at 0.9" in table
    assert "mean set size at 0.9" in table


@pytest.fixture
def older(trained, tmp_path):
    """A store with a version from before there were sets; gives both."""
    store = ModelStore(ModelSettings(home=trained.copy(tmp_path / "home")))
    new = store.load(store.find(trained.tag))
    lacks = {"prediction_sets": None, "files": {}, "name": "older"}
    with store.registering("older") as (version, directory, seal):
        for name in new.manifest.files:
            if name not in (CONFORMAL_SETS, "model.yaml"):
                shutil.copy(new.path(name), directory / name)
        seal(new.manifest.model_copy(update=lacks | {"version": version}))
    yield store, f"older:{version}"
    store.state.dispose()


def test_an_older_version_serves_and_refuses_sets_with_the_command_that_mends_it(
    older, trained, pictures
):
    store, tag = older
    images = [ImageFile.of(path) for path in sorted(pictures.glob("0*.png"))]
    assert predict_all(images, judging_here(store, tag))[0]["labels"] == ["ankle boot"]
    mends = r"plumbline train --data \.\.\. --name older"
    with pytest.raises(CoverageError, match=mends):
        predict_all(images, judging_here(store, tag, coverage=0.9))
    with pytest.raises(CoverageError, match=mends):
        evaluate_version(store, tag, str(trained.data), coverage=0.9)
    bundle = store.load(store.find(tag))
    predictor = Predictor(bundle, load_engine("openvino", bundle, threads=1), stage="champion")
    scope = {"type": "http", "query_string": b"coverage=0.9"}
    with pytest.raises(RequestError, match=mends) as raised:
        _least_probability(Request(scope), predictor)
    assert raised.value.status == 422
    assert _least_probability(Request(scope | {"query_string": b""}), predictor) is None
    assert _model_description(predictor)["prediction_sets"] is None


def test_a_coverage_is_checked_before_the_data_are_read(trained, tmp_path):
    store = ModelStore(ModelSettings(home=trained.copy(tmp_path / "home")))
    with pytest.raises(CoverageError):
        evaluate_version(store, trained.tag, str(tmp_path / "nothing"), coverage=0.9999)
    with pytest.raises(DataError):
        evaluate_version(store, trained.tag, str(tmp_path / "nothing"), coverage=0.9)
    store.state.dispose()
