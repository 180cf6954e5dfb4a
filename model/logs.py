"""Log lines on stderr: readable ones, or JSON for programs.

Lines that belong to a request name it by its id. What clients send, images and keys above all, is
in none.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

# The id of the request that is being answered; its tasks and `asyncio.to_thread` inherit it.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
# `log.info(..., extra={FIELDS: {...}})`: fields of their own in a JSON line.
FIELDS = "plumbline_fields"

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s"
_OTHERS = ("bentoml", "circus", "uvicorn", "uvicorn.error")


def configure_logging(form: Literal["text", "json"] = "text") -> None:
    """Show what Plumbline says, and of BentoML and other libraries only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines(_FORMAT, "%H:%M:%S"))
    logger = logging.getLogger("plumbline")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("bentoml", "circus", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Without a handler uvicorn does not even put together what nobody reads.
    logging.getLogger("uvicorn.access").propagate = False
    if form == "json":
        _take_over(handler)


def _take_over(handler: logging.Handler) -> None:
    """Let everything else that is logged, warnings too, come out in the same form."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OTHERS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    """Lines for people; the id of a request stands at their end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        """The line without its traceback."""
        line = super().formatMessage(record)
        request = REQUEST_ID.get()
        return line if request is None else f"{line} (request {request})"


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is a field of it."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        request = REQUEST_ID.get()
        if request is not None:
            line["request_id"] = request
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
