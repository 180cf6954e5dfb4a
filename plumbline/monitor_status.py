"""What a running monitor says."""

from __future__ import annotations

from typing import Any

import httpx

from model.errors import MonitorError


def monitor_status(url: str) -> dict[str, Any]:
    """`GET /api/status`. Raises `MonitorError` when there is no answer."""
    try:
        answer = httpx.get(f"{url}/api/status", timeout=10)
        found = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise MonitorError(
            f"no monitor answers at {url}: {error}; start it with plumbline monitor,"
            " or everything with make up"
        ) from error
    assert isinstance(found, dict)
    return found
