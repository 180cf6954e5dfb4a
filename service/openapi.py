"""The interface as an OpenAPI document, and the page that shows it to people."""

from __future__ import annotations

import html
import json
from typing import Any

from service.errors import STATUS
from service.settings import ServiceSettings

DEADLINE_HEADER = "X-Request-Deadline-Ms"

_ERROR = {"$ref": "#/components/schemas/Error"}
_REQUEST_ID = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
_RETRY_AFTER = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}

_HEADERS: dict[str, Any] = {
    "RequestId": {
        "description": "Names the request in the log: the trace id of its traceparent, else a"
        " fresh one.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "RetryAfter": {
        "description": "Whole seconds after which to come back; with 429 those in which what the"
        " service holds will have left, as fast as it does at the time.",
        "schema": {"type": "integer", "minimum": 1},
    },
}

_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"$ref": "#/components/schemas/ErrorObject"}},
    },
    "ErrorObject": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": {"type": "string", "enum": list(STATUS)},
            "message": {"type": "string"},
        },
    },
    "ModelName": {
        "type": "object",
        "required": ["name", "version", "stage"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string", "examples": ["20260101-0123abcd"]},
            "stage": {"type": "string"},
        },
    },
    "Prediction": {
        "type": "object",
        "required": ["id", "labels", "probabilities", "out_of_domain", "error"],
        "properties": {
            "id": {"type": ["string", "null"], "description": "UUID; feedback refers to it."},
            "labels": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Empty when none of the classes applies.",
            },
            "probabilities": {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "set": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The prediction set, the most probable class first; there only"
                " where a coverage is asked for. Empty when no class is probable enough for it: a"
                " higher coverage gives larger sets.",
            },
            "out_of_domain": {
                "type": ["object", "null"],
                "description": "flagged: p_value <= alpha. score: higher for more foreign images.",
                "required": ["flagged", "p_value", "score"],
                "properties": {
                    "flagged": {"type": "boolean"},
                    "p_value": {"type": "number"},
                    "score": {"type": "number"},
                },
            },
            "error": {
                "oneOf": [{"$ref": "#/components/schemas/ErrorObject"}, {"type": "null"}],
                "description": "Why this image of a multipart request has no prediction.",
            },
        },
    },
    "Predictions": {
        "type": "object",
        "required": ["model", "predictions"],
        "properties": {
            "model": {"$ref": "#/components/schemas/ModelName"},
            "predictions": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Prediction"},
                "description": "In the order sent.",
            },
        },
    },
    "Classify": {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "contentEncoding": "base64"},
            }
        },
    },
    "Feedback": {
        "type": "object",
        "required": ["id", "labels"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "labels": {"type": "array", "maxItems": 64, "items": {"type": "string"}},
        },
    },
}


def openapi(settings: ServiceSettings, *, native: bool = False) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the service, with the limits in force.

    `native` says that BentoML's face is served too.
    """
    secured = settings.api_keys_file is not None
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Plumbline",
            "version": "1",
            "description": "Classifies images, and says of each how foreign it is to the model.",
        },
        "paths": {**_paths(settings), **(_native_paths(settings) if native else {})},
        "components": {
            "schemas": _SCHEMAS,
            "headers": _HEADERS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if secured else [],
    }


_COVERAGE: dict[str, Any] = {
    "name": "coverage",
    "in": "query",
    "required": False,
    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "example": 0.9,
    "description": "Adds to every prediction a set of classes that holds, of an image that shows"
    " any of them, on average at least this share of the true labels. GET /v1/model tells the"
    " highest that can be promised.",
}


_TRACEPARENT: dict[str, Any] = {
    "name": "traceparent",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "description": "W3C trace context; its trace id is the id of the request. Every operation"
    " takes it. One that is not valid is ignored.",
}


def _deadline(settings: ServiceSettings) -> dict[str, Any]:
    most = round(1000 * settings.longest_deadline_seconds)
    return {
        "name": DEADLINE_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": most},
        "example": 500,
        "description": "Milliseconds from the arrival of the request after which its answer is of"
        " no use: it is 504 then, and what has not begun is not computed. Without it"
        f" {settings.deadline_seconds:g} seconds from the whole request.",
    }


def _paths(settings: ServiceSettings) -> dict[str, Any]:
    image = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": settings.limit_parts,
                    "items": {"type": "string", "format": "binary"},
                }
            },
        }
    }
    kinds = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
    predict = _operation(
        f"Classify one image, or 1 to {settings.limit_parts} as multipart parts named 'image'.",
        f"JPEG, PNG or WebP of at most {settings.limit_part_bytes} bytes and"
        f" {settings.limit_pixels} pixels.",
        200,
        "Predictions",
        errors=(400, 401, 403, 408, 413, 415, 422, 429, 503, 504),
        body={**dict.fromkeys(kinds, image), "multipart/form-data": form},
        parameters=[_COVERAGE, _deadline(settings), _TRACEPARENT],
    )
    feedback = _operation(
        "Say what an image really shows.",
        "The id is that of a prediction; a repeat by the same client replaces.",
        202,
        "Feedback",
        errors=(400, 401, 403, 408, 413, 415, 422, 503),
        body={"application/json": {"schema": {"$ref": "#/components/schemas/Feedback"}}},
    )
    model = _operation("The model in force.", "", 200, None, errors=(401, 403, 503))
    return {
        "/v1/predict": {"post": predict},
        "/v1/feedback": {"post": feedback},
        "/v1/model": {"get": model},
        "/metrics": {"get": _operation("Prometheus metrics.", "", 200, None, errors=(401, 403))},
        "/livez": {"get": _operation("Is the process alive?", "", 200, None)},
        "/healthz": {"get": _operation("The same as /livez.", "", 200, None)},
        "/readyz": {"get": _operation("Is a model loaded?", "", 200, None, errors=(503,))},
        "/docs": {"get": _operation("This page.", "", 200, None)},
        "/openapi.json": {"get": _operation("This document.", "", 200, None)},
        "/": {"get": _operation("Leads to /docs.", "", 307, None)},
    }


def _native_paths(settings: ServiceSettings) -> dict[str, Any]:
    classify = _operation(
        f"Classify 1 to {settings.limit_parts} images as base64 in JSON: BentoML's API method.",
        "Otherwise as /v1/predict. BentoML's own clients call it.",
        200,
        "Predictions",
        errors=(400, 401, 403, 408, 413, 415, 422, 429, 503, 504),
        body={"application/json": {"schema": {"$ref": "#/components/schemas/Classify"}}},
        parameters=[_COVERAGE, _deadline(settings), _TRACEPARENT],
    )
    schema = _operation("The schema that BentoML's clients read.", "", 200, None)
    document = _operation("The document behind BentoML's page.", "", 200, None)
    page = _operation("BentoML's page, to try the API method.", "", 200, None)
    return {
        "/v1/classify": {"post": classify},
        "/schema.json": {"get": schema},
        "/bentoml/docs.json": {"get": document},
        "/bentoml/": {"get": page},
    }


def _operation(
    summary: str,
    description: str,
    status: int,
    schema: str | None,
    *,
    errors: tuple[int, ...] = (),
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": summary, "headers": _REQUEST_ID}
    if schema is not None:
        reference = {"$ref": f"#/components/schemas/{schema}"}
        answer["content"] = {"application/json": {"schema": reference}}
    responses = {str(status): answer}
    for error in errors:
        codes = ", ".join(code for code, its in STATUS.items() if its == error)
        content = {"application/json": {"schema": _ERROR}}
        headers = _REQUEST_ID | _RETRY_AFTER if error in (429, 503) else _REQUEST_ID
        responses[str(error)] = {"description": codes, "headers": headers, "content": content}
    operation: dict[str, Any] = {
        "summary": summary,
        "description": description,
        "responses": responses,
    }
    if 401 not in errors:
        operation["security"] = []
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    if parameters is not None:
        operation["parameters"] = parameters
    return operation


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8886; padding: .5rem 0 1rem }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #8882; border-radius: 4px }
code { padding: .1em .3em } pre { padding: .7rem; overflow-x: auto }
h2 { font-size: 1.1rem }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top }
"""


def docs_page(document: dict[str, Any]) -> str:
    """The OpenAPI document as one HTML page without scripts or outside parts."""
    sections = [
        _section(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    prediction = json.dumps(document["components"]["schemas"]["Prediction"], indent=2)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Plumbline</title><style>{_STYLE}</style><h1>Plumbline</h1>"
        f"<p>{html.escape(document['info']['description'])}</p>"
        "<p>For programs: <a href=/openapi.json>/openapi.json</a>. An example:</p>"
        "<pre>curl --data-binary @image.png http://127.0.0.1:3000/v1/predict</pre>"
        + "".join(sections)
        + f"<section><h2>A prediction</h2><pre>{html.escape(prediction)}</pre></section></html>"
    )


def _as_sent(parameter: dict[str, Any]) -> str:
    name, example = parameter["name"], parameter["example"]
    return f"?{name}={example}" if parameter["in"] == "query" else f"{name}: {example}"


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{status}<td>{html.escape(response['description'])}"
        for status, response in operation["responses"].items()
    )
    parameters = "".join(
        f"<p><code>{html.escape(_as_sent(its))}</code> {html.escape(its['description'])}</p>"
        for its in operation.get("parameters", ())
    )
    return (
        f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(operation['summary'])} {html.escape(operation['description'])}</p>"
        f"{parameters}"
        f"<table>{rows}</table></section>"
    )
