"""API keys are shown once, kept as hashes, and a keys file that is none is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys

import pytest

from model.errors import SettingsError
from monitoring.settings import THIS_MACHINE
from service.keys import KeyRing, add_key, read_keys


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "keys.json"


def test_a_key_that_was_made_is_found_with_its_name_and_scopes(path):
    secret = add_key(path, "anna", ["predict", "feedback"])
    key = read_keys(path).find(secret)
    assert key is not None
    assert (key.name, key.scopes) == ("anna", {"predict", "feedback"})


def test_each_of_several_keys_is_found(path):
    secrets = {name: add_key(path, name, ["predict"]) for name in ("anna", "ben", "cleo")}
    ring = read_keys(path)
    assert {name: ring.find(secret).name for name, secret in secrets.items()} == {
        name: name for name in secrets
    }
    assert len(set(secrets.values())) == 3


@pytest.mark.parametrize("presented", ["", "anna", "x" * 43, "ünïcode", "\x00"])
def test_other_words_are_not_found(presented, path):
    add_key(path, "anna", ["predict"])
    assert read_keys(path).find(presented) is None


def test_the_hash_in_the_file_does_not_open_the_door(path):
    add_key(path, "anna", ["predict"])
    stored = json.loads(path.read_text())["keys"][0]["sha256"]
    assert read_keys(path).find(stored) is None


def test_the_file_holds_names_scopes_and_sha256_and_not_the_key(path):
    secret = add_key(path, "anna", ["predict", "metrics"])
    assert json.loads(path.read_text()) == {
        "keys": [
            {
                "name": "anna",
                "scopes": ["metrics", "predict"],
                "sha256": hashlib.sha256(secret.encode()).hexdigest(),
            }
        ]
    }


def test_a_key_is_256_random_bits(path):
    assert len(add_key(path, "anna", ["predict"])) >= 43  # of 6 bits each


def test_only_the_owner_can_read_the_file_and_nothing_but_a_lock_is_left_beside_it(path):
    add_key(path, "anna", ["predict"])
    path.chmod(0o644)
    add_key(path, "ben", ["predict"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lock = path.with_name(".keys.json.lock")
    assert lock.read_bytes() == b""
    assert sorted(path.parent.iterdir()) == [lock, path]


def test_a_write_that_fails_leaves_the_keys_as_they_were(path, monkeypatch):
    secret = add_key(path, "anna", ["predict"])

    def full(content, file, **options):
        file.write("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        add_key(path, "ben", ["predict"])
    assert read_keys(path).find(secret).name == "anna"
    assert not list(path.parent.glob("*.partial"))


ADD_TEN = (
    "import sys; from pathlib import Path; from service.keys import add_key\n"
    "for number in range(10): add_key(Path(sys.argv[1]), sys.argv[2] + str(number), ['predict'])"
)


def test_keys_that_are_added_at_the_same_time_are_all_kept(path):
    adding = [subprocess.Popen([sys.executable, "-c", ADD_TEN, path, who]) for who in "abcd"]
    assert [process.wait() for process in adding] == [0] * 4
    names = {row["name"] for row in json.loads(path.read_text())["keys"]}
    assert names == {f"{who}{number}" for who in "abcd" for number in range(10)}


def test_a_name_is_given_once(path):
    secret = add_key(path, "anna", ["predict"])
    with pytest.raises(SettingsError, match="there is a key named 'anna'"):
        add_key(path, "anna", ["metrics"])
    assert read_keys(path).find(secret).scopes == {"predict"}


@pytest.mark.parametrize("name", ["", "  ", "x" * 129, "anna, ben", " anna", "anna\n"])
def test_a_name_that_records_or_settings_cannot_hold_is_refused(name, path):
    with pytest.raises(SettingsError, match="valid: 1 to 128 characters"):
        add_key(path, name, ["predict"])
    assert not path.exists()


def test_no_key_is_taken_for_the_machine_of_the_service(path):
    with pytest.raises(SettingsError, match="give another name"):
        add_key(path, THIS_MACHINE, ["feedback"])
    assert not path.exists()


@pytest.mark.parametrize("scopes", [[], ["admin"], ["predict", "admin"]])
def test_unknown_scopes_and_none_are_refused_and_the_valid_ones_listed(scopes, path):
    with pytest.raises(SettingsError, match="predict, feedback, metrics"):
        add_key(path, "anna", scopes)
    assert not path.exists()


def test_a_missing_file_is_refused_with_the_command_that_makes_one(path):
    with pytest.raises(SettingsError, match="plumbline keys add"):
        read_keys(path)


SHA = "0" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"keys": 3}',
        b'{"keys": {"anna": 1}}',
        b'{"keys": [{"name": "anna"}]}',
        json.dumps({"keys": [{"name": 1, "scopes": ["predict"], "sha256": SHA}]}).encode(),
        json.dumps({"keys": [{"name": "a", "scopes": "predict", "sha256": SHA}]}).encode(),
        json.dumps({"keys": [{"name": "a", "scopes": ["admin"], "sha256": SHA}]}).encode(),
        json.dumps({"keys": [{"name": "a", "scopes": ["predict"], "sha256": None}]}).encode(),
        json.dumps({"keys": [{"name": THIS_MACHINE, "scopes": [], "sha256": SHA}]}).encode(),
        json.dumps({"keys": [{"name": "a", "scopes": ["predict"], "sha256": "ä" * 64}]}).encode(),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(content, tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"keys\.json is no API keys file"):
        read_keys(path)


def test_an_empty_ring_knows_nobody():
    assert KeyRing([]).find("anything") is None
