"""The description of the interface says what the interface does."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.routing import Route

from service.errors import STATUS
from service.http import Door
from service.native import NativeApi
from service.openapi import docs_page, openapi
from service.settings import ServiceSettings

NATIVE = NativeApi(SimpleNamespace(apis={"classify": None}), limit_images=64)
# `too_large` and its like, with one status each, as design.md lists them.
DESIGN = {
    "empty": 400,
    "malformed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "too_large": 413,
    "unsupported_type": 415,
    "undecodable": 422,
    "invalid": 422,
    "overloaded": 429,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


@pytest.fixture(scope="module")
def document():
    return openapi(ServiceSettings())


def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_it_is_openapi_and_json(document):
    assert document["openapi"].startswith("3.1")
    assert json.loads(json.dumps(document)) == document
    assert {"title", "version"} <= set(document["info"])


@pytest.mark.parametrize("native", [None, NATIVE])
def test_it_lists_exactly_the_routes_that_are_served(native):
    names = ("clients", "rollout", "admission", "batcher", "records", "images", "feedback")
    parts = {**dict.fromkeys(names), "native": native}
    routes = Door(ServiceSettings(), **parts).app().rest.routes
    served = {
        (next(iter(route.methods - {"HEAD"})), route.path)
        for route in routes
        if isinstance(route, Route)
    }
    document = openapi(ServiceSettings(), native=native is not None)
    assert set(operations(document)) == served


def test_every_reference_leads_somewhere(document):
    for reference in references(document):
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node


def test_the_codes_are_those_of_the_design_and_the_unexpected_one():
    # The head of a request is refused before it is known what it asks for.
    assert {"internal": 500, "head_too_large": 431, **DESIGN} == STATUS


def test_every_error_that_is_answered_names_its_codes(document):
    for (method, path), operation in operations(document).items():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                codes = response["description"].split(", ")
                assert codes == [code for code in DESIGN if DESIGN[code] == int(status)], (
                    method,
                    path,
                )
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}


def test_a_prediction_may_be_refused_in_every_way_of_the_design(document):
    told = operations(document)["POST", "/v1/predict"]["responses"]
    expected = set(DESIGN.values()) - {404, 405}  # of paths and methods, not of this operation
    assert {int(status) for status in told} == {200} | expected


def test_the_error_object_lists_every_code(document):
    schema = document["components"]["schemas"]["ErrorObject"]
    assert schema["properties"]["code"]["enum"] == list(STATUS)


def test_the_limits_in_force_are_told():
    document = openapi(
        ServiceSettings(limit_parts=7, limit_part_bytes=12_345, limit_pixels=678_900)
    )
    operation = operations(document)["POST", "/v1/predict"]
    assert "1 to 7" in operation["summary"]
    assert "12345 bytes" in operation["description"]
    assert "678900 pixels" in operation["description"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["maxItems"] == 7


def test_the_coverage_of_prediction_sets_is_told(document):
    coverage, *_ = operations(document)["POST", "/v1/predict"]["parameters"]
    assert (coverage["name"], coverage["in"], coverage["required"]) == ("coverage", "query", False)
    prediction = document["components"]["schemas"]["Prediction"]
    assert prediction["properties"]["set"]["items"] == {"type": "string"}
    assert "set" not in prediction["required"]
    assert "?coverage=0.9" in docs_page(document)


def test_the_deadline_that_a_request_may_name_is_told_with_its_limit():
    document = openapi(ServiceSettings(deadline_seconds=2.5, limit_deadline_seconds=12.5))
    its = operations(document)["POST", "/v1/predict"]["parameters"][1]
    assert (its["name"], its["in"], its["required"]) == ("X-Request-Deadline-Ms", "header", False)
    assert its["schema"] == {"type": "integer", "minimum": 1, "maximum": 12_500}
    assert "2.5 seconds" in its["description"]
    assert "X-Request-Deadline-Ms: 500" in docs_page(document)


def test_every_answer_has_its_id_and_those_for_load_say_when_to_come_back(document):
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))


def test_a_key_is_asked_for_only_where_there_is_a_keys_file(document):
    assert document["security"] == []
    secured = openapi(ServiceSettings(api_keys_file=Path("keys.json")))
    assert secured["security"] == [{"key": []}]


class Page(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.loads: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "img", "link"):
            self.loads.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_every_operation_and_loads_nothing(document):
    page = Page()
    page.feed(docs_page(document))
    for (method, path), operation in operations(document).items():
        assert f"{method} {path}" in page.text
        assert operation["summary"] in page.text
    for code in DESIGN.keys() - {"not_found", "method_not_allowed"}:
        assert code in page.text
    assert page.loads == []


def test_the_page_escapes_what_it_shows(document):
    hostile = json.loads(json.dumps(document).replace("Is a model loaded?", "<script>1</script>"))
    page = Page()
    page.feed(docs_page(hostile))
    assert page.loads == []
    assert "<script>1</script>" in page.text
