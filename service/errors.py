"""The errors of the HTTP contract: one code, one status each.

RequestError   answered with the error object and its status
ClientGoneError     answered to nobody: the client has hung up
"""

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
    "head_too_large",
    "unavailable",
    "deadline_exceeded",
    "internal",
]

# Why a request is turned away that nothing is wrong with, and why an image is given up.
ShedReason = Literal[
    "queue_full", "memory_full", "share_full", "starting", "stopping", "state_database"
]
DropReason = Literal["deadline", "client_gone", "stopping"]

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
    "head_too_large": 431,
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}
assert set(STATUS) == set(get_args(Code)) >= set(get_args(ImageErrorCode))


class RequestError(Exception):
    """A request that is answered with the error object and its status.

    `shed` tells metrics why a request was turned away that nothing is wrong with.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        shed: ShedReason | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.headers = headers or {}
        self.shed = shed

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return STATUS[self.code]


class ClientGoneError(Exception):
    """The client hung up before its answer; metrics call that status 499, as nginx does."""

    status = 499


def overloaded(
    message: str, retry_after_seconds: int, shed: ShedReason = "queue_full"
) -> RequestError:
    """The 429 answer; clients are told when to come back."""
    headers = {"Retry-After": str(retry_after_seconds)}
    return RequestError("overloaded", message, headers, shed=shed)


def unavailable(
    message: str, retry_after_seconds: int = 1, *, shed: ShedReason | None = None
) -> RequestError:
    """The 503 answer: while starting or stopping, and for feedback that cannot be stored."""
    headers = {"Retry-After": str(retry_after_seconds)}
    return RequestError("unavailable", message, headers, shed=shed)


def deadline_exceeded(headers: dict[str, str] | None = None) -> RequestError:
    """The 504 answer."""
    return RequestError(
        "deadline_exceeded", "the request could not be answered before its deadline", headers
    )
