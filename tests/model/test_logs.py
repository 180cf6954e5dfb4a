"""Log lines: readable by default, or each a JSON object, of other libraries too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

HOUSE = Path(__file__).parent.parent.parent

TELL = """
import logging, sys, warnings
from model.logs import FIELDS, REQUEST_ID, configure_logging
noisy = logging.StreamHandler(sys.stderr)  # as BentoML sets them up
for name in ("", "bentoml", "uvicorn.error"):
    logging.getLogger(name).addHandler(noisy)
configure_logging(*sys.argv[1:])
log = logging.getLogger("plumbline.example")
log.info("a line\\nof %s", "two")
REQUEST_ID.set("0af7651916cd43dd8448eb211c80319c")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed", extra={FIELDS: {"route": "/v1/predict", "seconds": 0.5}})
for name in ("uvicorn.error", "bentoml", "circus", "another"):
    logging.getLogger(name).info("not shown")
    logging.getLogger(name).warning("%s warns", name)
warnings.warn("old", UserWarning)
print(logging.getLogger("uvicorn.access").hasHandlers())
"""


def tell(*form: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", TELL, *form],
        cwd=HOUSE,
        env={**os.environ, "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_json_lines_are_objects_whoever_speaks():
    lines = [json.loads(line) for line in tell("json").stderr.splitlines()]
    first, failed, *others, warned = lines
    assert first["message"] == "a line\nof two"
    assert (first["level"], first["logger"]) == ("info", "plumbline.example")
    assert isinstance(first["process"], int)
    assert "request_id" not in first
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert timedelta() < age < timedelta(minutes=5)
    assert failed["request_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert (failed["route"], failed["seconds"]) == ("/v1/predict", 0.5)
    assert failed["exception"].startswith("Traceback")
    assert "ZeroDivisionError" in failed["exception"]
    names = ["uvicorn.error", "bentoml", "circus", "another"]
    assert [line["logger"] for line in others] == names, "each once, and nothing below a warning"
    assert [line["message"] for line in others] == [f"{name} warns" for name in names]
    assert "UserWarning: old" in warned["message"]


def test_lines_are_readable_where_nothing_else_is_asked_for():
    lines = tell().stderr.splitlines()
    clock = r"\d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{clock} INFO    plumbline.example\[\d+\] a line", lines[0])
    request = re.escape("(request 0af7651916cd43dd8448eb211c80319c)")
    failed = rf"{clock} ERROR   plumbline.example\[\d+\] it failed {request}"
    assert re.fullmatch(failed, lines[2])
    assert tell("text").stderr.splitlines()[2][8:] != ""


def test_uvicorn_puts_no_access_lines_together():
    for form in ((), ("json",)):
        assert tell(*form).stdout == "False\n"
