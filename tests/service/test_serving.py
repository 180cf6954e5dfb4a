"""What is said before the workers start."""

from __future__ import annotations

import logging

import pytest

from service.keys import add_key
from service.serving import tell_who_is_served
from service.settings import ServiceSettings


@pytest.fixture
def told(caplog):
    """Level and text of what is logged for these settings."""

    def tell(**settings) -> list[tuple[str, str]]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "plumbline"):
            tell_who_is_served(ServiceSettings(**settings))
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    return tell


def test_without_keys_it_is_said_that_only_this_machine_is_served(told):
    assert told() == [("INFO", "no API keys: only this machine is served")]


def test_who_serves_whoever_asks_is_warned(told):
    ((level, text),) = told(allow_without_keys=True, serve_on="0.0.0.0:3000")
    assert level == "WARNING"
    assert "whoever reaches 0.0.0.0:3000 is served" in text


def test_with_keys_there_is_nothing_to_say(told, tmp_path):
    add_key(tmp_path / "keys.json", "anna", ["predict"])
    assert told(api_keys_file=tmp_path / "keys.json", allow_without_keys=True) == []
