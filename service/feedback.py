"""Feedback: what a person says an image shows. Kept in the state database."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from model.state import feedback, write_transaction
from service.errors import RequestError, unavailable

log = logging.getLogger("plumbline.feedback")

STORE_SECONDS = 2.0
RETRY_AFTER_SECONDS = 5
LIMIT_BODY_BYTES = 64 * 1024
LIMIT_LABELS = 64


def parse_feedback(body: bytes, classes: Collection[str]) -> tuple[str, list[str]]:
    """Read `{"id": UUID, "labels": [...]}`. Raises `RequestError` malformed or invalid."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("malformed", f"the body is not JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != {"id", "labels"}:
        raise RequestError("invalid", 'valid is {"id": "...", "labels": ["...", ...]}')
    return _valid_id(content["id"]), _valid_labels(content["labels"], classes)


def _valid_id(given: object) -> str:
    try:
        return str(uuid.UUID(given)) if isinstance(given, str) else _refuse_id(given)
    except ValueError:
        return _refuse_id(given)


def _refuse_id(given: object) -> str:
    raise RequestError("invalid", f"id is {str(given)[:80]!r}; valid is the id of a prediction")


def _valid_labels(given: object, classes: Collection[str]) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(label, str) for label in given):
        raise RequestError("invalid", "labels must be a list of class names")
    if len(given) > LIMIT_LABELS:
        raise RequestError("invalid", f"{len(given)} labels; at most {LIMIT_LABELS} are taken")
    unknown = [label for label in given if label not in classes]
    if unknown:
        raise RequestError(
            "invalid", f"unknown class {unknown[0][:80]!r}; GET /v1/model lists the classes"
        )
    return sorted(set(given))


class FeedbackDesk:
    """Stores feedback in a thread of its own: a database that hangs holds up nothing else."""

    def __init__(self, state: Engine, *, limit: int, store_seconds: float = STORE_SECONDS) -> None:
        self._state = state
        self._limit = limit
        self._store_seconds = store_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")

    async def store(self, prediction_id: str, client: str, labels: list[str], model: str) -> None:
        """`store_feedback` in bounded time.

        Raises `RequestError` `unavailable`. What was begun by then may still be stored, which
        does no harm: when it is sent again it replaces.
        """
        job = self._thread.submit(
            store_feedback, self._state, prediction_id, client, labels, model, limit=self._limit
        )
        try:
            async with asyncio.timeout(self._store_seconds):
                await asyncio.wrap_future(job)
        except (TimeoutError, SQLAlchemyError) as error:
            log.warning("feedback is turned away: the state database %s", _reason(error))
            raise unavailable(
                "the feedback cannot be stored at the moment; send it again",
                RETRY_AFTER_SECONDS,
                shed="state_database",
            ) from None

    def close(self) -> None:
        """Let go of what waits, and end the thread."""
        self._thread.shutdown(cancel_futures=True)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not answer in time"
    return f"fails: {getattr(error, 'orig', None) or error}"


def store_feedback(
    state: Engine, prediction_id: str, client: str, labels: list[str], model: str, *, limit: int
) -> None:
    """Keep the labels; a repeat by the same client replaces.

    Over `limit` rows the oldest go of the client that has the most: nobody pushes others out.
    """
    same = (feedback.c.prediction_id == prediction_id) & (feedback.c.client == client)
    with write_transaction(state) as connection:
        connection.execute(delete(feedback).where(same))
        connection.execute(
            feedback.insert().values(
                prediction_id=prediction_id,
                client=client,
                labels=json.dumps(labels),
                model=model,
                received_at=datetime.now(UTC),
            )
        )
        count = connection.scalar(select(func.count()).select_from(feedback)) or 0
        if count > limit:
            _drop_oldest(connection, count - limit)


def _drop_oldest(connection: Connection, rows: int) -> None:
    most = (
        select(feedback.c.client)
        .group_by(feedback.c.client)
        .order_by(func.count().desc(), func.min(feedback.c.received_at))
        .limit(1)
    )
    client = connection.scalar(most)
    # A hundredth of them at once, so that a full table is not searched for every row.
    held = connection.scalar(
        select(func.count()).select_from(feedback).where(feedback.c.client == client)
    )
    oldest = (
        select(feedback.c.prediction_id)
        .where(feedback.c.client == client)
        .order_by(feedback.c.received_at)
        .limit(max(rows, (held or 0) // 100))
    )
    connection.execute(
        delete(feedback).where(
            feedback.c.client == client, feedback.c.prediction_id.in_(oldest.scalar_subquery())
        )
    )
