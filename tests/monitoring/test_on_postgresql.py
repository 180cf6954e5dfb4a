"""What the monitor and a retraining keep in the state database, they keep on PostgreSQL as well.

The same claims as in test_monitor.py and test_retrain.py, in sessions far from UTC.
"""

from __future__ import annotations

import gc

import pytest

from model.store import ModelStore
from monitoring.settings import MonitoringSettings
from tests.monitoring.test_monitor import (
    after_now,
    put,
)
from tests.monitoring.test_retrain import (
    LEAST,
    commands,
    predicted,
    production,
)

# Commands end with their process, and so do their connections: here they outlive them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

__all__ = [name for name in globals() if name.startswith(("test_", "Test"))]
__all__ += ["after_now", "commands", "predicted", "production", "put"]  # fixtures of theirs


@pytest.fixture
def settings(tmp_path, postgresql):
    return MonitoringSettings(
        home=tmp_path / "home",
        state_url=postgresql.new_database(timezone="Asia/Kolkata"),
        retrain_least_labels=LEAST,
        record_merge_seconds=0.0,
    )


@pytest.fixture
def store(settings):
    store = ModelStore(settings)
    yield store
    store.state.dispose()
    gc.collect()
