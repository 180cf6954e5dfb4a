"""Tables in a journal are whole or not there, wherever its writer was stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from model.errors import SettingsError
from plumbline.journal import MAGIC, Journal

TABLES = [pa.table({"file": [f"{number}"] * number}) for number in (1, 2, 3)]


def tables(path):
    with Journal(path) as journal:
        return [journal.read(offset) for offset in journal.offsets]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "journal"
    with Journal(path) as journal:
        offsets = [journal.add(table) for table in TABLES]
    return path, offsets


def test_tables_are_read_as_they_were_added(written):
    assert tables(written[0]) == TABLES


def test_adding_goes_on_after_what_is_there(written):
    with Journal(written[0]) as journal:
        journal.add(TABLES[0])
    assert tables(written[0]) == [*TABLES, TABLES[0]]


def test_a_file_cut_anywhere_holds_the_tables_before_and_takes_new_ones(written, tmp_path):
    path, offsets = written
    content = path.read_bytes()
    ends = [*offsets[1:], len(content)]
    cut = tmp_path / "cut"
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        with Journal(cut) as journal:
            assert [journal.read(offset) for offset in journal.offsets] == TABLES[:whole]
            journal.add(TABLES[2])
            assert journal.read(journal.offsets[-1]) == TABLES[2]
        if length % 50 == 0:
            assert tables(cut) == [*TABLES[:whole], TABLES[2]]


@pytest.mark.parametrize("tail", [b"\0" * 500, b"\xff" * 500], ids=["zeros", "ones"])
def test_what_a_power_cut_left_at_the_end_is_cut_off(written, tail):
    path, _ = written
    path.write_bytes(path.read_bytes() + tail)
    assert tables(path) == TABLES


def test_a_flipped_bit_ends_what_is_read(written):
    path, offsets = written
    content = bytearray(path.read_bytes())
    content[offsets[1] + 100] ^= 1
    path.write_bytes(content)
    assert tables(path) == TABLES[:1]


def test_a_table_that_a_full_disk_took_half_of_is_written_over(written, monkeypatch):
    path, _ = written
    write = os.pwrite

    def half(file: int, data: memoryview, offset: int) -> int:
        write(file, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    with Journal(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr("plumbline.journal.os.pwrite", half)
            with pytest.raises(OSError, match="No space"):
                journal.add(TABLES[2])
        journal.add(TABLES[0])
    assert tables(path) == [*TABLES, TABLES[0]]


def test_a_journal_without_tables_leaves_no_file(written, tmp_path):
    with Journal(tmp_path / "new"):
        assert (tmp_path / "new").exists()
    with Journal(written[0]) as journal:
        journal.clear()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "thesis"
    path.write_bytes(b"two years of work")
    with pytest.raises(SettingsError, match="none of plumbline's files"):
        Journal(path)
    assert path.read_bytes() == b"two years of work"


def test_one_process_at_a_time(written):
    path, _ = written
    with Journal(path), pytest.raises(SettingsError, match=f"another process is writing {path}"):
        Journal(path)
    assert tables(path) == TABLES


def test_the_lock_of_a_killed_process_is_gone(written):
    path, _ = written
    code = (
        "import sys, pathlib, time\n"
        "from plumbline.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SettingsError, match="another process"):
            Journal(path)
        holder.kill()
    assert tables(path) == TABLES


def test_a_file_that_is_removed_while_it_is_opened_is_opened_again(written, monkeypatch):
    path, _ = written
    kept = path.with_name("kept")
    shutil.copy(path, kept)
    real, removed = os.open, []

    def open_and_remove(name, *how):
        file = real(name, *how)
        if not removed:
            removed.append(name)
            path.unlink()  # as a process that has just finished does
            kept.rename(path)
        return file

    monkeypatch.setattr("plumbline.journal.os.open", open_and_remove)
    assert tables(path) == TABLES
    assert removed == [path]


def test_the_magic_number_is_the_start_of_the_file(written):
    assert written[0].read_bytes().startswith(MAGIC)
