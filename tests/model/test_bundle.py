"""A bundle is complete or absent, and loading tells what is wrong with one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from model import bundle as bundles
from model.bundle import load, save_arrays, seal, sweep_partials, writing
from model.errors import BundleError


def change_manifest(directory: Path, **changes) -> None:
    path = directory / bundles.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def list_file(directory: Path, name: str, sha256: str = "0" * 64) -> None:
    files = json.loads((directory / bundles.MANIFEST).read_text())["files"]
    change_manifest(directory, files=files | {name: sha256})


# Writing


def test_a_bundle_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / "models" / "new"
    with writing(target) as partial:
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
def test_an_exception_while_writing_leaves_nothing_and_passes_on(error, tmp_path):
    with pytest.raises(error), writing(tmp_path / "new") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_bundle_error_and_leaves_nothing(tmp_path):
    with pytest.raises(BundleError, match="No space left on device"):
        with writing(tmp_path / "new") as partial:
            (partial / "file").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_last_flush_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"), writing(tmp_path / "new") as partial:
        (partial / "file").write_text("whole")
    assert list(tmp_path.iterdir()) == []


def test_all_of_a_bundle_is_on_the_disk_before_its_name_and_its_name_before_the_end(
    tmp_path, monkeypatch
):
    target = tmp_path / "models" / "new"
    flushed, really_flush = {}, os.fsync

    def flush(descriptor: int) -> None:
        flushed[os.fstat(descriptor).st_ino] = target.exists()
        really_flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    with writing(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("content")
    before = {target, target / "deep", target / "deep" / "file"}
    after = {target.parent, tmp_path}  # the folder of the models is new too
    assert flushed == {path.stat().st_ino: path in after for path in before | after}


def test_a_name_that_does_not_get_to_the_disk_is_taken_back(tmp_path, monkeypatch):
    def fail_once_renamed(descriptor: int) -> None:
        if (tmp_path / "new").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_once_renamed)
    with pytest.raises(BundleError, match="Input/output error"), writing(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text", "arrays"])
def test_a_really_full_disk_leaves_nothing(kind, small_disk):
    with pytest.raises(BundleError, match="No space left"), writing(small_disk / "new") as partial:
        if kind == "text":
            (partial / "file").write_bytes(bytes(2**23))
        else:
            save_arrays(partial / "file", {"weights": np.zeros(2**23, np.uint8)})
    assert list(small_disk.iterdir()) == []


def test_a_bundle_is_never_overwritten(bundle_directory):
    with pytest.raises(BundleError, match="exists already"), writing(bundle_directory):
        raise AssertionError("the block must not run")
    load(bundle_directory)


def test_sealing_names_the_files_that_are_missing(tmp_path, make_manifest, fill_bundle):
    fill_bundle(tmp_path)
    (tmp_path / "report.html").unlink()
    (tmp_path / "network.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks network\.onnx, report\.html"):
        seal(tmp_path, make_manifest())


# Sweeping


def interrupted(folder: Path) -> Path:
    """A partial bundle of a process that was killed."""
    code = (
        "import os, sys; from pathlib import Path; from model.bundle import writing\n"
        "with writing(Path(sys.argv[1]) / 'new') as partial:\n"
        "    (partial / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=False)
    (left,) = folder.iterdir()
    return left


def test_what_a_killed_process_left_is_swept(tmp_path):
    interrupted(tmp_path)
    sweep_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bundles_and_those_that_are_being_written_are_not_swept(tmp_path):
    with writing(tmp_path / "whole"):
        pass
    with writing(tmp_path / "new") as partial:
        sweep_partials(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([partial, tmp_path / "whole"])


@pytest.mark.parametrize("name", [".new.1234.1@another-machine.partial", ".new.1234abcd.partial"])
def test_what_cannot_be_told_to_be_left_over_is_swept_after_a_day(name, tmp_path):
    left = tmp_path / name
    left.mkdir()
    sweep_partials(tmp_path)
    assert left.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    sweep_partials(tmp_path)
    assert not left.exists()


# Loading


def test_what_was_sealed_is_loaded(tmp_path, make_manifest, fill_bundle):
    fill_bundle(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(b"more than the required files")
    manifest = make_manifest(metrics_split="validation")
    sealed = seal(tmp_path, manifest)
    bundle = load(tmp_path)
    assert bundle.manifest == sealed
    assert sealed == manifest.model_copy(update={"files": sealed.files})
    assert set(sealed.files) == {*bundles.REQUIRED_FILES, "pictures/one.png"}
    assert bundle.manifest_sha256 == bundles.file_sha256(tmp_path / bundles.MANIFEST)
    assert bundle.manifest.tag == "shapes:20260101-0123abcd"


def test_arrays_come_back_as_they_were(bundle_directory, tmp_path, make_manifest, fill_bundle):
    arrays = {
        "bank": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
        "count": np.array([7], np.int64),
    }
    fill_bundle(tmp_path)
    save_arrays(tmp_path / bundles.OUTLIER, arrays)
    seal(tmp_path, make_manifest())
    loaded = load(tmp_path).arrays(bundles.OUTLIER)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert (loaded[name] == array).all()
        assert loaded[name].dtype == array.dtype


@pytest.mark.parametrize("name", bundles.REQUIRED_FILES)
def test_one_changed_byte_is_found_and_its_file_named(name, bundle_directory):
    path = bundle_directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} is corrupt"):
        load(bundle_directory)


def test_a_missing_file_is_named(bundle_directory):
    (bundle_directory / bundles.REFERENCE).unlink()
    with pytest.raises(BundleError, match=r"reference\.parquet is missing"):
        load(bundle_directory)


def test_a_required_file_that_is_not_listed_is_named(bundle_directory):
    files = json.loads((bundle_directory / bundles.MANIFEST).read_text())["files"]
    del files[bundles.OUTLIER]
    change_manifest(bundle_directory, files=files)
    with pytest.raises(BundleError, match=r"does not list outlier\.safetensors"):
        load(bundle_directory)


def test_a_newer_schema_is_refused_before_anything_else_is_read(bundle_directory):
    change_manifest(bundle_directory, schema_number=3, surprise="of a later version")
    with pytest.raises(BundleError, match=r"schema 3; this Plumbline reads 1 and 2.*--upgrade"):
        load(bundle_directory)


@pytest.mark.parametrize("schema", [0, -1, None, "2", 1.5, [2]])
def test_a_schema_that_never_was_is_refused_with_another_mend(schema, bundle_directory):
    change_manifest(bundle_directory, schema_number=schema)
    with pytest.raises(BundleError, match=r"this Plumbline reads 1 and 2\. Make the version anew"):
        load(bundle_directory)


def test_a_bundle_of_the_first_schema_is_read_as_one_of_today(bundle_directory):
    path = bundle_directory / bundles.MANIFEST
    files = json.loads(path.read_text())["files"]
    # As the first version of Plumbline wrote it.
    path.write_text((Path(__file__).parent / "schema_1" / "manifest.json").read_text())
    change_manifest(bundle_directory, files=files)
    manifest = load(bundle_directory).manifest
    assert manifest.schema_number == 2
    assert manifest.classes == ("bag", "t-shirt", "trouser")
    assert [gate.passed for gate in manifest.gates_of("openvino")] == [True]
    assert manifest.outlier.detector == "KNN + ViM"


def test_aurocs_without_intervals_of_an_older_bundle_are_read(bundle_directory):
    content = json.loads((bundle_directory / bundles.MANIFEST).read_text())
    older = {"KNN on penultimate": {"noise": 0.9}}
    change_manifest(bundle_directory, outlier=content["outlier"] | {"candidates": older})
    measured = load(bundle_directory).manifest.outlier.candidates["KNN on penultimate"]["noise"]
    assert (measured.value, measured.low) == (0.9, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(content, bundle_directory):
    (bundle_directory / bundles.MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load(bundle_directory)


def test_a_manifest_of_absurd_size_is_not_read(bundle_directory):
    with (bundle_directory / bundles.MANIFEST).open("ab") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(BundleError, match="larger than"):
        load(bundle_directory)


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_what_is_no_bundle_at_all_is_refused(kind, tmp_path):
    place = tmp_path / "place"
    if kind == "empty":
        place.mkdir()
    elif kind == "file":
        place.write_text("no directory")
    with pytest.raises(BundleError, match="is no model bundle"):
        load(place)


@pytest.mark.parametrize("name", ["extra.bin", "deep/extra.bin", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(name, bundle_directory):
    (bundle_directory / name).parent.mkdir(exist_ok=True)
    (bundle_directory / name).write_text("slipped in")
    with pytest.raises(BundleError, match=rf"{name} is no part of the bundle"):
        load(bundle_directory)


def test_a_link_that_the_manifest_does_not_list_is_refused(bundle_directory, tmp_path):
    (bundle_directory / "folder").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BundleError, match="folder is no part of the bundle"):
        load(bundle_directory)


def test_older_bundles_whose_description_is_not_listed_load(bundle_directory):
    (bundle_directory / bundles.BENTOML_DESCRIPTION).write_text("name: shapes")
    load(bundle_directory)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "pictures/../../secret"])
def test_a_manifest_that_reaches_outside_is_refused(name, bundle_directory):
    (bundle_directory.parent / "secret").write_text("not part of it")
    list_file(bundle_directory, name)
    with pytest.raises(BundleError, match="outside the bundle"):
        load(bundle_directory)


@pytest.mark.parametrize("name", ["", ".", "nul\x00byte", "x" * 5000])
def test_an_impossible_file_name_is_a_missing_file(name, bundle_directory):
    list_file(bundle_directory, name)
    with pytest.raises(BundleError, match="missing"):
        load(bundle_directory)


def test_a_link_in_the_place_of_a_file_is_refused(bundle_directory):
    path = bundle_directory / bundles.REPORT
    path.rename(bundle_directory.parent / "elsewhere")
    path.symlink_to(bundle_directory.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"report\.html is missing"):
        load(bundle_directory)


def test_a_linked_folder_is_refused(bundle_directory, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("content")
    (bundle_directory / "inside").symlink_to(outside)
    list_file(bundle_directory, "inside/file", bundles.file_sha256(outside / "file"))
    with pytest.raises(BundleError, match="inside/file is missing"):
        load(bundle_directory)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"surprise": 1}, "surprise"),
        ({"classes": ["only one"]}, "classes"),
        ({"task": "both"}, "task"),
        ({"metrics_split": "fit"}, "metrics_split"),
        ({"input": {"size": 28}}, "input.mean"),
    ],
)
def test_a_manifest_with_a_wrong_or_unknown_field_is_refused_by_name(
    change, where, bundle_directory
):
    change_manifest(bundle_directory, **change)
    with pytest.raises(BundleError, match=rf"manifest\.json: {where}"):
        load(bundle_directory)


def test_a_manifest_cannot_be_changed_by_accident(make_manifest):
    with pytest.raises(ValidationError):
        make_manifest().name = "another"
