"""A service whose state database is a PostgreSQL server that goes away, and comes back."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import select

from model.state import open_state, versions, write_transaction
from tests.end_to_end.test_lifecycle import metric, wait_until
from tests.end_to_end.test_service import a_sneaker

pytestmark = pytest.mark.slow


def move_versions(home, url: str) -> None:
    """Stages, from the home's own database into another."""
    own, other = open_state(f"sqlite:///{home / 'state.sqlite'}"), open_state(url)
    with own.connect() as source, write_transaction(other) as target:
        rows = source.execute(select(versions)).mappings().all()
        target.execute(versions.insert(), [dict(row) for row in rows])
    own.dispose()
    other.dispose()


def test_predictions_go_on_while_the_database_is_gone_and_what_is_lost_is_counted(
    trained, serving, postgresql, tmp_path, garment_images
):
    home, url = trained.copy(tmp_path / "home"), postgresql.new_database()
    move_versions(home, url)
    (home / "state.sqlite").unlink()
    image = a_sneaker(garment_images)
    with serving(home, state_url=url) as server, httpx.Client(base_url=server.url) as client:

        def predict() -> str:
            answer = client.post("/v1/predict", content=image)
            assert answer.status_code == 200
            return answer.json()["predictions"][0]["id"]

        def say(prediction_id: str) -> int:
            told = {"id": prediction_id, "labels": ["sneaker"]}
            return client.post("/v1/feedback", json=told).status_code

        assert say(predict()) == 202
        postgresql.stop()
        try:
            told = [say(predict()) for _ in range(3)]
            assert client.get("/readyz").status_code == 200
            name = 'plumbline_shed_requests_total{reason="state_database"}'
            wait_until(lambda: metric(server.url, name) == 3)
        finally:
            postgresql.start()
        assert told == [503] * 3
        wait_until(lambda: say(predict()) == 202)
