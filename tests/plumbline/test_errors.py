"""Whatever a user can mend is one line and exit code 2; nothing is a traceback."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from sqlalchemy.exc import OperationalError

from model.state import versions, write_transaction
from plumbline import predict as predict_module
from plumbline.cli import PlumblineGroup, main
from plumbline.image_files import find_images


@pytest.fixture
def run(store, monkeypatch):
    """`run("promote", ...)` in this process, on `store`."""
    monkeypatch.setenv("PLUMBLINE_HOME", str(store.home))
    return lambda *arguments: CliRunner().invoke(main, [str(its) for its in arguments])


def raising(error):
    group = PlumblineGroup("group")

    @group.command("fail")
    def fail():
        raise error

    return CliRunner().invoke(group, ["fail"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/there"), "error: /there: Permission denied\n"),
        (OSError("no more room"), "error: no more room\n"),
        (
            OperationalError("select 1\nfrom x", {}, Exception("database is locked")),
            "error: the state database: database is locked; check PLUMBLINE_STATE_URL\n",
        ),
    ],
)
def test_errors_of_disk_and_database_are_one_line(error, said):
    done = raising(error)
    assert (done.exit_code, done.stderr) == (2, said)


def test_ctrl_c_ends_with_130_and_says_nothing():
    done = raising(KeyboardInterrupt())
    assert (done.exit_code, done.output.strip()) == (130, "")


def test_a_broken_pipe_is_left_to_click():
    group = PlumblineGroup("group")
    group.add_command(
        click.Command("fail", callback=lambda: (_ for _ in ()).throw(BrokenPipeError))
    )
    with pytest.raises(BrokenPipeError):
        group.main(["fail"], standalone_mode=False)


def test_a_folder_with_the_name_of_an_image_is_no_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "folder.jpg" / "image.png")
    found = [file.path for file in find_images(tmp_path)]
    assert found == [tmp_path / "folder.jpg" / "image.png"]


def test_a_keys_file_that_cannot_be_written_is_told(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLUMBLINE_API_KEYS_FILE", str(tmp_path / "file" / "keys.json"))
    done = run("keys", "add", "--name", "shop", "--scope", "predict")
    assert done.exit_code == 2
    assert "keys.json cannot be" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_database_that_fails_is_told(run, store):
    with write_transaction(store.state) as connection:
        versions.drop(connection)
    done = run("models", "list")
    assert done.exit_code == 2
    assert "no such table" in done.stderr
    assert done.stderr.count("\n") == 1


def test_rollback_takes_the_model_of_the_settings(run, store, register, monkeypatch):
    first = {name: register(name) for name in ("digits", "shapes")}
    for tag in [*first.values(), register("digits"), register("shapes")]:
        store.promote(tag)
    assert "set PLUMBLINE_MODEL" in run("rollback").stderr
    monkeypatch.setenv("PLUMBLINE_MODEL", "digits")
    assert run("rollback").stdout == f"champion: {first['digits']}\n"
    assert run("rollback", "--name", "shapes").stdout == f"champion: {first['shapes']}\n"


def test_predict_takes_model_engine_and_alpha_of_the_settings(
    run, store, register, tmp_path, monkeypatch
):
    tags = [register(name) for name in ("digits", "shapes")]
    for tag in tags:
        store.promote(tag)
    monkeypatch.setenv("PLUMBLINE_MODEL", "digits")
    monkeypatch.setenv("PLUMBLINE_ENGINE", "torch")
    monkeypatch.setenv("PLUMBLINE_PRECISION", "bf16")
    monkeypatch.setenv("PLUMBLINE_ALPHA", "0.2")
    seen = []

    class StopError(Exception):
        """Ends the command where a network would be needed."""

    def load_engine(name, bundle, *, threads, precision):
        return name, precision

    def predictor(bundle, engine, *, stage, alpha, augment):
        seen.extend([bundle.manifest.tag, *engine, alpha, augment])
        raise StopError

    monkeypatch.setattr(predict_module, "load_engine", load_engine)
    monkeypatch.setattr(predict_module, "Predictor", predictor)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    assert isinstance(run("predict", tmp_path / "image.png").exception, StopError)
    assert seen == [tags[0], "torch", "bf16", 0.2, False]


def test_a_service_is_not_asked_for_test_time_augmentation(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    done = run("predict", tmp_path / "image.png", "--url", "http://127.0.0.1:1", "--tta")
    assert done.exit_code == 2
    assert "--tta and --url" in done.stderr
