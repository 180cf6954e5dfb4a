"""What goes wrong beside the watching is told beside it, and changes nothing that was seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from model.state import feedback, retrainings, write_transaction
from monitoring.app import MonitorProcess
from monitoring.image_store import FOLDERS
from monitoring.launcher import Launcher
from monitoring.metrics import SIDE_JOBS
from monitoring.monitor import Monitor
from monitoring.records import read_records, write_records
from monitoring.reports import ReportLauncher
from monitoring.settings import MonitoringSettings


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home, monitor_seconds=0.05, report_images=0)


@pytest.fixture
def reports(settings):
    return ReportLauncher(settings)


@pytest.fixture
def page(store, settings, reports, watched, draw) -> Iterator[TestClient]:
    """A monitor that has seen 100 clean images."""
    records = draw(watched(), 100, 1)
    folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
    folder.mkdir(parents=True)
    write_records(folder / "a.parquet", records)
    process = MonitorProcess(settings, Monitor(settings, store), Launcher(settings, store), reports)
    with TestClient(process.app(), base_url="http://127.0.0.1") as client:
        wait_for(lambda: status(client)["images_served"] == 100)
        yield client


def status(page: TestClient) -> dict:
    return dict(page.get("/api/status").json())


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def test_what_is_different_now_is_told(page):
    wait_for(lambda: page.get("/api/windows").json()["now"] is not None)
    found = page.get("/api/windows").json()
    assert found["at_alarm"] is None
    assert found["now"]["images"] == 100
    assert found["now"]["sentence"] == "The last images look like those of calibration."
    assert "What changed" in page.get("/").text


def test_all_is_well_has_no_trouble(page):
    assert (status(page)["state"], status(page)["failure"]) == ("ok", None)
    assert status(page)["side_jobs"] == dict.fromkeys(SIDE_JOBS)
    assert 'plumbline_monitor_side_job_failing{job="retraining"} 0.0' in page.get("/metrics").text
    assert "went wrong" not in page.get("/").text


def test_labels_are_told_with_what_their_promise_rests_on(page, store):
    assert "Labelled images" not in page.get("/").text
    records = read_records(str(store.home / "records"))
    long_ago = datetime(2026, 3, 5, tzinfo=UTC)
    with store.state.begin() as connection:
        for number, (its, labels) in enumerate(
            zip(records["id"].to_pylist(), records["labels"].to_pylist(), strict=True)
        ):
            connection.execute(
                feedback.insert().values(
                    prediction_id=its,
                    client="anna",
                    labels=json.dumps(labels if number % 10 else ["star"]),
                    model="shapes:1",
                    received_at=long_ago + timedelta(seconds=number),
                )
            )
    wait_for(lambda: status(page)["labels"]["images"] == 100)
    text = page.get("/").text
    assert "No drift in 100 labelled images: the model is wrong on" in text
    assert "if people choose and label images as they did before" in text
    assert 'plumbline_evidence_log10{stream="labelled_mistakes"}' in page.get("/metrics").text


def test_a_retraining_that_cannot_be_looked_at_leaves_the_promise_alone(page, store):
    retrainings.drop(store.state)
    wait_for(lambda: status(page)["side_jobs"]["retraining"] is not None)
    found = status(page)
    assert "retrainings" in found["side_jobs"]["retraining"]
    assert (found["state"], found["failure"]) == ("ok", None)
    assert found["sentence"].startswith("All is well")
    assert page.get("/readyz").status_code == 200
    assert 'plumbline_monitor_side_job_failing{job="retraining"} 1.0' in page.get("/metrics").text
    assert "Beside the watching, retraining went wrong" in page.get("/").text
    retrainings.create(store.state)
    wait_for(lambda: status(page)["side_jobs"]["retraining"] is None)


def test_labels_that_wait_for_trust_are_told_with_whose_they_are(store, settings, watched, draw):
    """Its name as it is: it goes into a setting. And as text: the client may have chosen it."""
    records = draw(watched(), 400, 1, darker=0.4)
    put_labelled(store, settings, records, client="Shop <b>")
    few = settings.model_copy(update={"retrain_least_labels": 20})
    process = MonitorProcess(
        few, Monitor(few, store), Launcher(few, store), ReportLauncher(settings)
    )
    with TestClient(process.app(), base_url="http://127.0.0.1") as page:
        wait_for(lambda: status(page).get("retraining_waits") is not None)
        told = status(page)["retraining_waits"]
        assert told.startswith("waiting for trust: 10 of 20 images since the alarm are labelled")
        assert "'Shop <b>' labelled 50" in told
        shown = page.get("/").text
    assert "<p>Waiting for trust: 10 of 20 images" in shown
    assert "&#39;Shop &lt;b&gt;&#39; labelled 50; name those that you trust" in shown
    assert "PLUMBLINE_RETRAIN_TRUSTED_CLIENTS" in shown


def put_labelled(store, settings, records, client: str) -> None:
    """Records, and of the last fifty images and labels."""
    folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
    folder.mkdir(parents=True)
    write_records(folder / "a.parquet", records)
    images = settings.images / FOLDERS[0]
    images.mkdir(parents=True)
    for its in records[-50:]:
        (images / f"{its.id}.png").write_bytes(its.id.encode())
    said = {"client": client, "labels": json.dumps(["star"]), "received_at": datetime.now(UTC)}
    rows = [{"prediction_id": its.id, "model": "m", **said} for its in records[-50:]]
    with write_transaction(store.state) as connection:
        connection.execute(feedback.insert(), rows)


def test_accuracy_is_told_with_its_interval_and_where_it_comes_from(page):
    wait_for(lambda: status(page)["accuracy_from_feedback"] is not None)
    estimate = status(page)["accuracy_estimate"]
    low, high = estimate["cbpe_interval"]
    assert low < estimate["cbpe"] < high
    assert (estimate["valid"], estimate["why_invalid"]) == (True, None)
    assert status(page)["accuracy_from_feedback"]["labelled"] == 0
    assert "expected by the probabilities (CBPE)" in page.get("/").text
    assert f"{low:.3f} to {high:.3f}" in page.get("/").text


def test_the_class_mix_is_told_or_why_it_is_not(page):
    wait_for(lambda: status(page)["prior_shift"] is not None)
    assert "100 images are too few" in status(page)["prior_shift"]["sentence"]
    assert "plumbline_prior_shift 0.0" in page.get("/metrics").text


def test_a_report_that_went_wrong_is_told(page, reports):
    reports.trouble = "the last report ended with code 1"
    wait_for(lambda: status(page)["side_jobs"]["reports"] is not None)
    assert status(page)["state"] == "ok"
    assert "reports went wrong: the last report ended with code 1" in page.get("/").text
