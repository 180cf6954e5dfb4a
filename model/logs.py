"""Readable log lines on stderr."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s[%(process)d] %(message)s"


def configure_logging() -> None:
    """Show what Plumbline says, and of BentoML only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    logger = logging.getLogger("plumbline")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("bentoml", "circus", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
