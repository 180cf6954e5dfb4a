"""State is whole or the one before, and damage is never taken for a beginning."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from model.errors import MonitorError
from monitoring import state_file


def test_what_is_saved_is_loaded_and_replaced(tmp_path):
    path = tmp_path / "monitor" / "state.json"
    assert state_file.load(path) is None
    for number in range(3):
        state_file.save(path, {"number": number, "share": 0.1 + 0.2})
    assert state_file.load(path) == {"number": 2, "share": 0.1 + 0.2}
    assert [its.name for its in path.parent.iterdir()] == ["state.json"]


def test_every_damaged_byte_is_noticed_with_the_way_back(tmp_path):
    path = tmp_path / "state.json"
    state_file.save(path, {"evidence": [1, 2, 3]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(MonitorError, match=r"mv .*state\.json .*state\.json\.damaged"):
            state_file.load(path)


@pytest.mark.parametrize("kept", [0, 1, 40, 100])
def test_a_torn_file_is_refused(tmp_path, kept):
    path = tmp_path / "state.json"
    state_file.save(path, {"evidence": list(range(50))})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MonitorError):
        state_file.load(path)


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"schema": 3, "sha256": "0"}) + "\n{}\n")
    with pytest.raises(MonitorError, match="schema 3; this Plumbline reads 2"):
        state_file.load(path)


def test_what_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "state.json"
    state_file.save(path, {"number": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        state_file.save(path, {"number": float("nan")})
    assert state_file.load(path) == {"number": 1}


def test_a_second_monitor_of_one_home_is_refused(tmp_path):
    with (
        state_file.only_one(tmp_path / "monitor"),
        pytest.raises(MonitorError, match=rf"process {os.getpid()}\) .*PLUMBLINE_HOME"),
        state_file.only_one(tmp_path / "monitor"),
    ):
        pass
    with state_file.only_one(tmp_path / "monitor"):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, pathlib, time\n"
        "from monitoring.state_file import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(MonitorError, match=f"process {holder.pid}"),
            state_file.only_one(tmp_path),
        ):
            pass
        holder.kill()
    with state_file.only_one(tmp_path):
        pass
