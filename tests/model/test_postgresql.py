"""A PostgreSQL server as the state database: several machines, other time zones, and its absence.

What holds on SQLite too is claimed in test_state.py, test_store.py and test_feedback.py, on both.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from model.errors import StoreError
from model.settings import ModelSettings
from model.state import audit, open_state, record, versions, write_transaction
from model.store import ModelStore
from service.errors import RequestError
from service.feedback import FeedbackDesk

ID = "01900000-0000-7000-8000-000000000001"


@pytest.mark.parametrize("url", ["postgresql://db/plumbline", "postgres://db/plumbline"])
def test_without_the_driver_one_error_names_the_extra(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"driver psycopg is not.*pip install 'plumbline\[postgre"):
        open_state(url)


def test_another_driver_that_is_not_installed_is_named_with_the_one_that_is_offered():
    with pytest.raises(StoreError, match=r"driver pg8000 is not installed.*begin with postgresql:"):
        open_state("postgresql+pg8000://db/plumbline")


def test_a_server_that_is_not_there_is_told_with_its_address_and_without_the_password():
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9/plumbline cannot be opened") as refusal:
        open_state("postgresql://anna:s3cret@127.0.0.1:9/plumbline")
    assert "s3cret" not in str(refusal.value)


@pytest.mark.slow
def test_the_url_that_every_tool_writes_is_understood(postgresql):
    url = postgresql.new_database()
    for scheme in ("postgresql://", "postgres://"):
        open_state(url.replace("postgresql+psycopg://", scheme)).dispose()


@pytest.mark.slow
def test_workers_that_start_at_the_same_moment_make_the_schema_once(postgresql):
    url = postgresql.new_database()
    code = "import sys; from model.state import open_state; open_state(sys.argv[1]).dispose()"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = [worker.communicate()[1] for worker in workers]
    assert ([worker.returncode for worker in workers], told) == ([0] * 4, [""] * 4)
    state = open_state(url)
    with state.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(versions)) == 0
    state.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("zone", ["America/Vancouver", "Asia/Kolkata"])
def test_sessions_in_another_time_zone_give_the_same_moments(postgresql, zone):
    state = open_state(postgresql.new_database(timezone=zone))
    before = datetime.now(UTC)
    with write_transaction(state) as connection:
        record(connection, "look", "at the clock")
    with state.connect() as connection:
        time = connection.scalar(select(audit.c.time))
    assert before <= time <= datetime.now(UTC)
    assert time.tzinfo is UTC  # whoever prints the hour prints that of UTC
    state.dispose()


@pytest.fixture
def server(postgresql):
    """One that a test may stop; it runs again afterwards."""
    yield postgresql
    postgresql.stop()
    postgresql.start()


@pytest.mark.slow
def test_a_database_that_goes_away_is_told_and_one_that_comes_back_is_used(
    server, tmp_path, make_manifest, fill_bundle
):
    store = ModelStore(ModelSettings(home=tmp_path, state_url=server.new_database()))
    with store.registering("shapes") as (version, directory, seal):
        fill_bundle(directory)
        seal(make_manifest(version=version))
    tag = store.promote(f"shapes:{version}").tag
    server.stop()
    for ask in (store.champion, store.versions):
        with pytest.raises(StoreError, match=r"cannot be read.*check that it can be reached"):
            ask()
    server.start()
    assert store.champion().tag == tag  # the same connections, that stood before
    assert store.promote(tag).tag == tag
    store.state.dispose()


@pytest.mark.slow
def test_feedback_is_turned_away_while_the_database_is_gone_and_taken_after_it(server):
    state = open_state(server.new_database())

    async def story() -> list[object]:
        desk = FeedbackDesk(state, limit=100)
        said: list[object] = []
        for change in (lambda: None, server.stop, server.start):
            await asyncio.to_thread(change)
            one = desk.store(ID, "anna", ["star"], "shapes:1")
            said += await asyncio.gather(one, return_exceptions=True)
        await asyncio.to_thread(desk.close)
        return said

    first, refused, last = asyncio.run(story())
    assert (first, last) == (None, None)
    assert isinstance(refused, RequestError)
    assert (refused.code, refused.status) == ("unavailable", 503)
    state.dispose()
