"""Feedback is checked word by word, kept in bounded number, and a repeat replaces."""

from __future__ import annotations

import asyncio
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from model.state import feedback, open_state, write_transaction
from service.errors import RequestError
from service.feedback import LIMIT_LABELS, FeedbackDesk, parse_feedback, store_feedback

CLASSES = ("circle", "square", "star")
ID = "01900000-0000-7000-8000-000000000001"
MODEL = "shapes:20260101-0123abcd"


def said(**fields) -> bytes:
    return json.dumps({"id": ID, "labels": ["star"]} | fields).encode()


def refusal_of(body: bytes, classes=CLASSES) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        parse_feedback(body, classes)
    json.dumps(str(refusal.value)).encode()  # it can be sent
    return refusal.value


# Reading


def test_labels_are_read_sorted_and_each_once():
    assert parse_feedback(said(labels=["star", "circle", "star"]), CLASSES) == (
        ID,
        ["circle", "star"],
    )


def test_no_label_says_that_none_of_the_classes_applies():
    assert parse_feedback(said(labels=[]), CLASSES) == (ID, [])


def test_an_id_is_read_in_any_case():
    assert parse_feedback(said(id=ID.upper()), CLASSES)[0] == ID


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000, b"labels=star", b"{'id': 1}"],
)
def test_what_is_not_json_is_malformed(body):
    error = refusal_of(body)
    assert (error.code, error.status) == ("malformed", 400)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        json.dumps({"id": ID}).encode(),
        json.dumps({"labels": []}).encode(),
        said(more=1),
        said(labels="star"),
        said(labels=None),
        said(labels=[1]),
        said(labels=[["star"]]),
        said(labels=["triangle"]),
        said(labels=["star", "Circle"]),
        said(labels=["\ud800"]),
        said(id=7),
        said(id=None),
        said(id=""),
        said(id="not-a-uuid"),
        said(id=ID + "0"),
        said(id="x" * 10_000),
    ],
)
def test_json_with_other_content_is_invalid(body):
    error = refusal_of(body)
    assert (error.code, error.status) == ("invalid", 422)
    assert len(str(error)) < 300


def test_an_unknown_class_is_named_with_the_place_that_lists_them():
    assert "'triangle'; GET /v1/model" in str(refusal_of(said(labels=["star", "triangle"])))


def test_more_labels_than_64_are_refused():
    many = [str(number) for number in range(LIMIT_LABELS + 1)]
    assert LIMIT_LABELS == 64
    assert parse_feedback(said(labels=many[:-1]), many)[1] == sorted(many[:-1])
    assert refusal_of(said(labels=many), many).code == "invalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode))
def test_whatever_is_sent_gets_an_answer_of_the_contract(body):
    assert refusal_of(body).code in {"malformed", "invalid"}


# Keeping


@pytest.fixture
def state(state_url):
    engine = open_state(state_url)
    yield engine
    engine.dispose()


def kept(state) -> list[tuple[str, str, list[str]]]:
    with state.connect() as connection:
        rows = connection.execute(select(feedback).order_by(feedback.c.received_at))
        return [(row.prediction_id, row.client, json.loads(row.labels)) for row in rows]


def keep(state, prediction_id=ID, client="anna", labels=("star",), limit=100) -> None:
    store_feedback(state, prediction_id, client, list(labels), MODEL, limit=limit)


def test_feedback_is_kept_with_its_model_and_time(state):
    keep(state)
    with state.connect() as connection:
        row = connection.execute(select(feedback)).one()
    assert (row.model, row.labels) == (MODEL, '["star"]')
    assert row.received_at is not None
    assert kept(state) == [(ID, "anna", ["star"])]


def test_a_repeat_by_the_same_client_replaces(state):
    keep(state, labels=["star"])
    keep(state, labels=["circle"])
    assert kept(state) == [(ID, "anna", ["circle"])]


def test_another_client_may_say_otherwise(state):
    keep(state, client="anna", labels=["star"])
    keep(state, client="ben", labels=[])
    assert kept(state) == [(ID, "anna", ["star"]), (ID, "ben", [])]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_over_the_limit_the_oldest_go(limit, state):
    ids = [str(uuid.UUID(int=number)) for number in range(9)]
    for prediction_id in ids:
        keep(state, prediction_id, limit=limit)
    assert [row[0] for row in kept(state)] == ids[len(ids) - limit :]


def test_over_the_limit_a_flood_pushes_out_its_own(state):
    keep(state, ID, client="anna", limit=10)
    for number in range(2, 300):
        keep(state, str(uuid.UUID(int=number)), client="ben", limit=10)
    assert len(kept(state)) == 10
    assert (ID, "anna", ["star"]) in kept(state)
    assert (str(uuid.UUID(int=299)), "ben", ["star"]) in kept(state)


def test_a_full_table_makes_room_for_more_than_one(state):
    for number in range(201):
        keep(state, str(uuid.UUID(int=number)), limit=200)
    assert len(kept(state)) == 199


def test_a_repeat_does_not_push_out_another(state):
    keep(state, ID, limit=2)
    keep(state, str(uuid.UUID(int=2)), limit=2)
    keep(state, ID, labels=["circle"], limit=2)
    assert len(kept(state)) == 2


def test_many_clients_at_once_are_all_kept(state):
    ids = [str(uuid.UUID(int=number)) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda prediction_id: keep(state, prediction_id), ids))
    assert sorted(row[0] for row in kept(state)) == ids


# A state database that does not answer


def hand_in(state, *, during=nullcontext(), times=1, store_seconds=60.0):  # noqa: B008
    """Hand feedback in that often while something lasts; what was said each time."""

    async def story():
        desk = FeedbackDesk(state, limit=100, store_seconds=store_seconds)
        said = []
        try:
            with during:
                for _ in range(times):
                    one = desk.store(ID, "anna", ["star"], MODEL)
                    said += await asyncio.gather(one, return_exceptions=True)
            return said
        finally:
            await asyncio.to_thread(desk.close)

    return asyncio.run(asyncio.wait_for(story(), 25))  # SQLite itself waits ten each


def test_feedback_is_handed_in(state):
    assert hand_in(state) == [None]
    assert kept(state) == [(ID, "anna", ["star"])]


def test_a_locked_database_turns_feedback_away_in_bounded_time(state, state_url):
    other = open_state(state_url)
    errors = hand_in(state, during=write_transaction(other), times=3, store_seconds=0.1)
    other.dispose()
    assert [(error.code, error.status) for error in errors] == [("unavailable", 503)] * 3
    assert {error.headers["Retry-After"] for error in errors} == {"5"}


def test_an_unreachable_database_turns_feedback_away(state):
    with state.begin() as connection:
        feedback.drop(connection)
    (error,) = hand_in(state)
    assert (error.code, error.status) == ("unavailable", 503)
