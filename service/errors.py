"""The errors of the HTTP contract: one code, one status each."""

from __future__ import annotations

from typing import Literal, get_args

from model.errors import ImageErrorCode

Code = Literal[
    "empty",
    "malformed",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "too_slow",
    "too_large",
    "unsupported_type",
    "undecodable",
    "invalid",
    "overloaded",
    "unavailable",
    "deadline_exceeded",
    "internal",
]

STATUS: dict[str, int] = {
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
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}
assert set(STATUS) == set(get_args(Code)) >= set(get_args(ImageErrorCode))


class RequestError(Exception):
    """A request that is answered with the error object and its status."""

    def __init__(self, code: Code, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.headers = headers or {}

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return STATUS[self.code]


def overloaded(message: str, retry_after_seconds: int) -> RequestError:
    """The 429 answer; clients are told when to come back."""
    return RequestError("overloaded", message, {"Retry-After": str(retry_after_seconds)})


def unavailable(message: str, retry_after_seconds: int = 1) -> RequestError:
    """The 503 answer: while starting or draining, and for feedback that cannot be stored."""
    return RequestError("unavailable", message, {"Retry-After": str(retry_after_seconds)})


def deadline_exceeded() -> RequestError:
    """The 504 answer."""
    return RequestError(
        "deadline_exceeded", "the request could not be answered before its deadline"
    )
