"""Workers tell how the start goes; the first that serves ends it."""

from __future__ import annotations

from service.start import FOLDER_VARIABLE, Start


def test_a_refusal_is_told_until_a_worker_serves(tmp_path):
    start = Start(tmp_path)
    assert (start.is_over, start.refusal) == (False, None)
    start.refuse("there is no champion: Käse")
    assert (start.is_over, start.refusal) == (False, "there is no champion: Käse")
    Start(tmp_path).succeed()
    assert (start.is_over, start.refusal) == (True, None)


def test_a_worker_that_nobody_waits_for_tells_nobody(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert Start.of_this_worker() is None
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    its = Start.of_this_worker()
    its.refuse("why")
    assert Start(tmp_path).refusal == "why"
