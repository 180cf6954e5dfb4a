"""BentoML's own client, schema and page, on a real server, and behind the same door as the rest."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest

from tests.end_to_end.test_service import a_sneaker, ask, error_code
from tests.end_to_end.test_watching import CHROMIUM

# In a process of its own, as at a user's: BentoML's dependencies warn.
CLIENT = """
import asyncio, json, os, sys
import bentoml
url, images, token = sys.argv[1], json.loads(sys.stdin.read()), os.environ.get("TOKEN")
with bentoml.SyncHTTPClient(url, token=token) as client:
    first = client.classify(images=images)
async def ask():
    async with bentoml.AsyncHTTPClient(url, token=token) as client:
        return await client.classify(images=images)
print(json.dumps([first, asyncio.run(ask())]))
"""


def ask_by_bentoml(server, images: list[bytes], token: str = "") -> list[dict]:
    """Predictions of the images by the synchronous client, then by the other."""
    answered = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT, server.url],
        input=json.dumps([base64_of(image) for image in images]),
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", **({"TOKEN": token} if token else {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [its for answer in json.loads(answered.stdout) for its in answer["predictions"]]


def base64_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def classify(server, body, **headers) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{server.url}/v1/classify", content=content, headers=named, timeout=20)


def test_bentoml_clients_get_the_answers_of_predict(server, garment_images):
    image = a_sneaker(garment_images)
    expected = ask(server, image).json()["predictions"][0]
    answered = ask_by_bentoml(server, [image] * 3)
    assert len(answered) == 6
    for prediction in answered:
        assert prediction["labels"] == ["sneaker"]
        assert prediction["id"] != expected["id"]
        assert prediction["probabilities"] == expected["probabilities"]
        assert prediction["out_of_domain"] == pytest.approx(expected["out_of_domain"], abs=0.01)


def test_a_broken_image_has_its_own_error_and_its_neighbours_their_answers(server, garment_images):
    image = a_sneaker(garment_images)
    images = [base64_of(image), "no base64!", base64_of(image[:200]), base64_of(b"text"), "", ""]
    images[-1] = base64_of(image)
    response = classify(server, {"images": images})
    assert response.status_code == 200
    found = response.json()["predictions"]
    assert [its["labels"] for its in found] == [["sneaker"], [], [], [], [], ["sneaker"]]
    codes = [its["error"] and its["error"]["code"] for its in found]
    assert codes == [None, "undecodable", "undecodable", "unsupported_type", "empty", None]


def test_images_are_never_fetched_from_a_url(server):
    response = classify(server, {"images": [f"{server.url}/docs"]})
    assert (response.status_code, error_code(response)) == (422, "undecodable")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        ({}, 422, "invalid"),
        ({"images": "one"}, 422, "invalid"),
        ({"images": [1]}, 422, "invalid"),
        ({"images": [{"url": "http://127.0.0.1/"}]}, 422, "invalid"),
        ({"images": []}, 400, "empty"),
        ({"images": ["YQ=="] * 65}, 413, "too_large"),
    ],
)
def test_a_bad_body_is_refused_with_its_code(server, body, status, code):
    response = classify(server, body)
    assert (response.status_code, error_code(response)) == (status, code)


def test_another_type_a_late_deadline_and_an_unknown_coverage_are_refused_as_for_predict(server):
    refused = [
        classify(server, b"{}", **{"Content-Type": "text/plain"}),
        classify(server, {"images": ["YQ=="]}, **{"X-Request-Deadline-Ms": "soon"}),
        httpx.post(f"{server.url}/v1/classify?coverage=2", json={"images": ["YQ=="]}),
        httpx.get(f"{server.url}/v1/classify"),
    ]
    assert [response.status_code for response in refused] == [415, 422, 422, 405]


def test_the_byte_cap_and_the_key_rule_hold(trained, serving, garment_images, tmp_path):
    from service.keys import add_key

    keys = tmp_path / "keys.json"
    key = add_key(keys, "shop", ["predict"])
    sneaker = a_sneaker(garment_images)
    image = base64_of(sneaker)
    with serving(
        trained.path, api_keys_file=str(keys), limit_request_bytes="10000", limit_part_bytes="9000"
    ) as server:
        allowed = {"Authorization": f"Bearer {key}"}
        assert classify(server, {"images": [image]}).status_code == 401
        assert classify(server, {"images": [image]}, **allowed).status_code == 200
        too_large = classify(server, {"images": ["A" * 20_000]}, **allowed)
        assert ask_by_bentoml(server, [sneaker], key)[1]["labels"] == ["sneaker"]
    assert (too_large.status_code, error_code(too_large)) == (413, "too_large")


def test_the_schema_and_the_page_name_the_method_and_nothing_outside(server):
    schema = httpx.get(f"{server.url}/schema.json").json()
    (route,) = schema["routes"]
    assert (route["name"], route["route"]) == ("classify", "/v1/classify")
    assert route["input"]["properties"]["images"]["items"] == {"type": "string"}
    document = httpx.get(f"{server.url}/bentoml/docs.json").json()
    assert "/v1/classify" in document["paths"]
    page = httpx.get(f"{server.url}/bentoml/").text
    assert not re.search(r"https?://", page)
    outside = httpx.get(f"{server.url}/bentoml/static_content/%2e%2e/%2e%2e/server/__init__.py")
    assert outside.status_code == 404


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_the_page_shows_the_method_in_a_browser(server):
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"),
        *("--dump-dom", f"{server.url}/bentoml/"),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "/v1/classify" in shown


def test_what_is_classified_is_recorded_like_every_prediction(
    trained, serving, garment_images, tmp_path
):
    from monitoring.records import read_records

    images = [base64_of(a_sneaker(garment_images, number)) for number in range(3)]
    with serving(trained.path, records_url=str(tmp_path / "records")) as server:
        answer = classify(server, {"images": images}).json()
    rows = read_records(str(tmp_path / "records")).to_pylist()
    assert {row["id"] for row in rows} == {its["id"] for its in answer["predictions"]}
    assert np.unique([row["image_sha256"] for row in rows]).size == 3
