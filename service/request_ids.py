"""The id of a request, by which log lines and its answer are brought together."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

RESPONSE_HEADER = b"x-request-id"

# https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags; later versions may
# have more behind them.
_TRACEPARENT = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL
)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The trace id of a valid `traceparent`, else a fresh one: 32 hexadecimal digits.

    Takes nothing else from clients: an id goes into logs and into a header.
    """
    given = [value for name, value in headers if name == b"traceparent"]
    trace = trace_id(given[0]) if len(given) == 1 else None
    # Not os.urandom: it gives way to another thread, and an id is no secret.
    return trace or f"{random.getrandbits(128):032x}"


def trace_id(traceparent: bytes) -> str | None:
    """The trace id, or None where the W3C's rules say to ignore the header.

    >>> trace_id(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '0af7651916cd43dd8448eb211c80319c'
    >>> trace_id(b"00-00000000000000000000000000000000-b7ad6b7169203331-01") is None
    True
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    return None if _is_zero(trace) or _is_zero(parent) else trace.decode()


def _is_zero(digits: bytes) -> bool:
    return not digits.strip(b"0")
