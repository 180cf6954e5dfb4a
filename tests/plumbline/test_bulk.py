"""`plumbline predict --out FILE.parquet`: nothing asked twice, lost or half written."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from plumbline import predict, predictions_file
from plumbline.cli import main
from plumbline.journal import Journal
from plumbline.predictions_file import SCHEMA, journal_of

COUNT = 40
PATIENCE_SECONDS = 240  # with a machine that does much else; reached by what hangs alone


@pytest.fixture(autouse=True)
def _small_requests(monkeypatch):
    monkeypatch.setattr(predict, "REQUEST_IMAGES", 4)


@pytest.fixture
def folder(tmp_path):
    """Images of which each says its number, in two folders."""
    for number in range(COUNT):
        path = tmp_path / "images" / f"{number % 2}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image %d" % number)
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "predictions.parquet"


@pytest.fixture
def run(small_service, folder, out):
    """`run("--anew")`: the command, in this process, without waits."""

    def invoke(*options, url=None):
        url = small_service.url if url is None else url
        command = ["predict", str(folder), "--url", url, "--out", str(out), "--retries", "0"]
        return CliRunner().invoke(main, [*command, *options])

    return invoke


def rows(path: Path) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


def is_complete(out: Path, folder: Path) -> bool:
    """Every file has its own answer, once, in order; nothing is left beside."""
    found = rows(out)
    assert [row["file"] for row in found] == files_of(folder)
    assert [row["labels"] for row in found] == [
        [Path(file).read_text()] for file in files_of(folder)
    ]
    return sorted(path.name for path in out.parent.iterdir()) == ["images", out.name]


def test_a_row_holds_what_was_answered(run, out, folder):
    done = run()
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{out}: 40 images, 40 of them judged now by m:1; 0 with an error\n"
    assert pyarrow.parquet.read_schema(out).equals(SCHEMA)
    assert is_complete(out, folder)
    row = rows(out)[0]
    stat = (folder / "0" / "000.png").stat()
    assert len(row.pop("id")) == 36
    assert row.pop("modified").timestamp() == pytest.approx(stat.st_mtime, abs=1e-5)
    assert row == {
        "file": str(folder / "0" / "000.png"),
        "bytes": len(b"image 0"),
        "labels": ["image 0"],
        "best_probability": 0.75,
        "probabilities": [("image 0", 0.75), ("other", 0.25)],
        "set": None,
        "flagged": False,
        "p_value": 0.5,
        "score": 1.5,
        "error_code": None,
        "error_message": None,
        "model_name": "m",
        "model_version": "1",
    }


def test_for_programs_the_summary_is_json(run, out):
    summary = {"out": str(out), "model": "m:1", "images": 40, "judged": 40, "errors": 0}
    assert json.loads(run("--json").stdout) == summary


def test_a_bad_image_has_a_row_with_its_error_and_stops_nothing(run, out, folder, small_service):
    (folder / "0" / "000.png").write_bytes(b"bad")
    done = run()
    assert done.exit_code == 1
    assert "1 with an error" in done.stderr
    bad, good = rows(out)[:2]
    assert (bad["error_code"], bad["error_message"]) == ("undecodable", "broken")
    assert (bad["labels"], bad["probabilities"], bad["best_probability"]) == ([], [], None)
    assert (bad["id"], bad["flagged"], bad["p_value"]) == (None, None, None)
    assert (bad["model_version"], good["labels"]) == ("1", ["image 2"])
    small_service.requests.clear()
    assert run().exit_code == 1  # it is answered: the answer is an error
    assert small_service.requests == []


@pytest.mark.parametrize(("status", "code"), [(429, "overloaded"), (503, "unavailable")])
def test_a_service_that_stays_busy_stops_the_work_and_the_same_command_goes_on(
    run, out, folder, small_service, status, code
):
    answered, asked = 5, small_service.predict

    def predict_some(images):
        if len(small_service.requests) > answered:
            return status, {"error": {"code": code, "message": "busy"}}
        return asked(images)

    small_service.predict = predict_some
    stopped = run("--concurrency", "1")
    assert stopped.exit_code == 2
    assert stopped.stderr == (
        f"stopped: 20 files are answered, in {out}.partial; the same command (without --anew)"
        f" goes on from there\nerror: {code} ({status}): busy\n"
    )
    assert not out.exists()
    small_service.predict = asked
    del small_service.requests[answered:]  # which was refused
    assert run().exit_code == 0
    assert is_complete(out, folder)
    assert len(small_service.images) == len(set(small_service.images)) == COUNT


def test_an_error_of_one_request_keeps_the_answers_of_those_beside_it(
    run, out, folder, small_service
):
    asked = small_service.predict

    def predict_some(images):
        if b"image 0" in images:  # is under way until another is refused
            assert small_service.release.wait(PATIENCE_SECONDS)
            return asked(images)
        small_service.release.set()
        return 429, {"error": {"code": "overloaded", "message": "busy"}}

    small_service.predict = predict_some
    assert run("--concurrency", "2").exit_code == 2
    with Journal(journal_of(out)) as journal:
        assert len(journal.offsets) == 1


@pytest.fixture
def start(small_service, folder, out):
    """Start the command in a process of its own, which Ctrl-C reaches."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from plumbline import predict; predict.REQUEST_IMAGES = 4\n"
        "from plumbline.cli import main; main()\n"
    )
    options = ["predict", str(folder), "--url", small_service.url, "--out", str(out)]
    command = [sys.executable, "-c", code, *options, "--concurrency", "1"]
    return lambda stderr=subprocess.PIPE: subprocess.Popen(command, stderr=stderr, text=True)


def test_a_killed_command_goes_on_with_what_is_not_answered(start, run, out, folder, small_service):
    small_service.hold_at = 6
    with start() as killed:
        assert small_service.held.wait(PATIENCE_SECONDS)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    answered = small_service.images[: 6 * 4]
    small_service.requests.clear()
    small_service.release.set()
    assert run().exit_code == 0
    assert is_complete(out, folder)
    assert not set(small_service.images) & set(answered)
    assert len(small_service.images) == COUNT - len(answered)


def test_ctrl_c_ends_at_once_with_130_and_says_how_to_go_on(start, out, small_service):
    small_service.hold_at = 3
    with start() as stopped:
        assert small_service.held.wait(PATIENCE_SECONDS)
        stopped.send_signal(signal.SIGINT)
        told = stopped.stderr.read()
    assert stopped.returncode == 130
    assert f"stopped: 12 files are answered, in {out}.partial" in told
    assert "Traceback" not in told


def test_a_terminal_shows_a_bar_on_stderr(start, out, folder):
    terminal, its_end = pty.openpty()
    with start(stderr=its_end) as done, open(terminal, "rb", buffering=0) as screen:
        os.close(its_end)
        shown = b""
        with suppress(OSError):  # how a terminal ends
            while some := screen.read(4_096):
                shown += some
    assert done.returncode == 0
    assert b"predicting" in shown
    assert b"40/40" in shown
    assert is_complete(out, folder)


def test_however_it_was_cut_off_the_file_comes_out_the_same(
    run, out, folder, small_service, monkeypatch
):
    monkeypatch.setattr(predictions_file, "_ROW_GROUP", 7)
    assert run("--concurrency", "3").exit_code == 0
    whole = [{**row, "id": None} for row in rows(out)]
    out.unlink()
    asked = small_service.predict
    turns = []

    def predict_one_request(images):
        turns.append(images)
        return asked(images) if len(turns) % 2 else (429, {"error": {"code": "overloaded"}})

    small_service.predict = predict_one_request
    runs = 0
    while not out.exists():
        run("--concurrency", "1")
        runs += 1
    assert runs > 5
    assert [{**row, "id": None} for row in rows(out)] == whole


def test_a_kill_while_the_file_is_written_loses_nothing(
    run, out, folder, small_service, monkeypatch
):
    with monkeypatch.context() as patched:

        def die(self, path: Path) -> None:
            path.write_bytes(b"PAR1 half")
            raise KeyboardInterrupt

        patched.setattr(predictions_file.PredictionsFile, "_write", die)
        assert run().exit_code == 130
    assert not out.exists()
    small_service.requests.clear()
    out.with_name(f".{out.name}.whole").write_bytes(b"PAR1 half")  # as a killed one leaves it
    assert run().exit_code == 0
    assert small_service.requests == []
    assert is_complete(out, folder)


def test_a_kill_between_the_file_and_the_end_of_the_journal_changes_nothing(
    run, out, folder, small_service, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "clear", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run().exit_code == 130
    assert out.exists()
    assert journal_of(out).exists()
    small_service.requests.clear()
    assert run().exit_code == 0
    assert small_service.requests == []
    assert is_complete(out, folder)


def test_a_finished_file_takes_what_is_new_and_what_was_changed(run, out, folder, small_service):
    assert run().exit_code == 0
    small_service.requests.clear()
    unchanged = out.read_bytes()
    assert "0 of them judged now" in run().stderr
    assert (small_service.requests, out.read_bytes()) == ([], unchanged)
    (folder / "0" / "a new one.png").write_bytes(b"new")
    (folder / "1" / "001.png").write_bytes(b"changed")
    before = {row["file"]: row["id"] for row in rows(out)}
    done = run()
    assert "41 images, 2 of them judged now" in done.stderr
    assert sorted(small_service.images) == [b"changed", b"new"]
    assert is_complete(out, folder)
    kept = {row["file"]: row["id"] for row in rows(out)}
    assert sum(kept[file] == before[file] for file in before) == COUNT - 1


def test_a_finished_file_stays_whole_while_more_is_added_to_it(run, out, folder, small_service):
    assert run().exit_code == 0
    finished = out.read_bytes()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(b"more %d" % number)
    asked = small_service.predict
    small_service.predict = lambda images: (
        asked(images) if len(small_service.requests) == 11 else (429, {"error": {}})
    )
    assert run("--concurrency", "1").exit_code == 2
    assert out.read_bytes() == finished
    small_service.predict = asked
    del small_service.requests[11:]
    assert run().exit_code == 0
    assert is_complete(out, folder)
    assert len(small_service.images) == COUNT + 8


def test_a_file_whose_error_was_not_its_own_is_asked_again(run, out, folder, small_service):
    asked = small_service.predict

    def fail_one(images):
        status, answer = asked(images)
        answer["predictions"][0] |= {
            "id": None,
            "out_of_domain": None,
            "error": {"code": "internal", "message": "this image could not be judged"},
        }
        return status, answer

    small_service.predict = fail_one
    assert "10 with an error" in run().stderr
    small_service.predict = asked
    done = run()
    assert (done.exit_code, "10 of them judged now" in done.stderr) == (0, True)
    assert is_complete(out, folder)


def test_a_file_that_the_service_cannot_judge_alone_is_an_error_in_its_row(
    run, folder, small_service
):
    refused = 500, {"error": {"code": "internal", "message": "this image could not be judged"}}
    small_service.predict = lambda images: refused
    all_of_them = f"{len(files_of(folder))} with an error"
    for _ in range(2):  # the next time, too
        done = run()
        assert (done.exit_code, all_of_them in done.stderr) == (1, True)


class TestAnotherModel:
    def begun(self, run, small_service):
        """Some answers by version 1, and a service that serves version 2."""
        small_service.requests.clear()
        asked = small_service.predict
        small_service.predict = lambda images: (
            asked(images) if len(small_service.requests) < 4 else (429, {"error": {}})
        )
        assert run("--concurrency", "1").exit_code == 2
        small_service.predict = asked
        small_service.requests.clear()
        small_service.version = "2"

    def test_is_refused_before_anything_is_sent(self, run, out, small_service):
        self.begun(run, small_service)
        kept = journal_of(out).read_bytes()
        done = run()
        assert done.exit_code == 2
        assert done.stderr == (
            f"error: some answers in {out}.partial are by m:1 and others by m:2: keep both with"
            " --mixed (each row names its model), forget what is there with --anew, or choose"
            " another --out\n"
        )
        assert (small_service.requests, journal_of(out).read_bytes()) == ([], kept)

    def test_begins_anew_where_that_is_asked_for(self, run, out, folder, small_service):
        self.begun(run, small_service)
        assert run("--anew").exit_code == 0
        assert {row["model_version"] for row in rows(out)} == {"2"}
        assert len(small_service.images) == COUNT
        assert is_complete(out, folder)

    def test_is_mixed_where_that_is_asked_for_and_stays_told(self, run, out, folder, small_service):
        self.begun(run, small_service)
        assert run("--mixed").exit_code == 0
        versions = [row["model_version"] for row in rows(out)]
        assert (versions.count("1"), versions.count("2")) == (12, 28)
        assert is_complete(out, folder)
        done = run()
        assert done.exit_code == 2
        assert "are by m:1 and others by m:2" in done.stderr

    def test_is_noticed_in_the_middle_of_a_run(self, run, out, small_service):
        small_service.change_after = 5
        done = run("--concurrency", "1")
        assert done.exit_code == 2
        assert "stopped: 20 files are answered" in done.stderr
        assert "the same command" not in done.stderr, "which would be refused"
        assert "are by m:2 and others by m:1" in done.stderr
        assert not out.exists()

    def test_of_a_finished_file_is_refused_and_leaves_nothing_behind(
        self, run, out, folder, small_service
    ):
        assert run().exit_code == 0
        small_service.version = "2"
        finished = out.read_bytes()
        assert run().exit_code == 2
        assert run("--anew", url="http://127.0.0.1:9").exit_code == 2
        assert out.read_bytes() == finished
        assert is_complete(out, folder)

    def test_anew_that_is_stopped_goes_on_without_the_finished_file(
        self, run, out, folder, small_service
    ):
        assert run().exit_code == 0
        finished = out.read_bytes()
        self.begun(lambda *options: run("--anew", *options), small_service)
        assert out.read_bytes() == finished
        small_service.version = "1"
        assert run().exit_code == 0
        assert len(small_service.images) == COUNT - 12
        assert is_complete(out, folder)


def test_answers_that_came_about_otherwise_are_not_mixed_in(run, out, folder, small_service):
    assert run().exit_code == 0
    done = run("--coverage", "0.9")
    assert done.exit_code == 2
    assert f"the answers in {out} came about with coverage None, and now it is 0.9" in done.stderr
    small_service.model = lambda: {"name": "m", "version": "1", "alpha": 0.05}
    assert "with alpha 0.01, and now it is 0.05" in run().stderr
    assert is_complete(out, folder)


def test_answers_for_another_folder_are_not_mixed_in(run, out, folder, small_service):
    assert run().exit_code == 0
    other = ["predict", str(folder / "0"), "--url", small_service.url, "--out", str(out)]
    done = CliRunner().invoke(main, other)
    assert done.exit_code == 2
    assert f"came about with path {folder}, and now it is {folder / '0'}" in done.stderr


@pytest.mark.parametrize("options", [(), ("--anew",)])
@pytest.mark.parametrize("content", ["text", "table"])
def test_a_file_of_something_else_is_never_written_over(run, out, small_service, content, options):
    if content == "text":
        out.write_text("two years of work")
    else:
        pyarrow.parquet.write_table(pa.table({"file": ["a"]}), out)
    before = out.read_bytes()
    done = run(*options)
    assert done.exit_code == 2
    assert "choose another --out" in done.stderr
    assert (out.read_bytes(), small_service.requests) == (before, [])
    assert not journal_of(out).exists()


def test_two_commands_do_not_write_one_file(run, out, small_service):
    with Journal(journal_of(out)):
        done = run()
    assert done.exit_code == 2
    assert "another process is writing" in done.stderr
    assert small_service.requests == []


def test_files_with_odd_names_are_answered_once(run, out, folder, small_service):
    odd = os.fsencode(folder) + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write(b"coffee")
    assert run().exit_code == 0
    small_service.requests.clear()
    assert "41 images, 0 of them judged now" in run().stderr
    assert [row["labels"] for row in rows(out) if "caf" in str(row["file"])] == [["coffee"]]
