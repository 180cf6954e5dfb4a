"""`plumbline predict`: requests a service takes, and one bad image that spoils nothing."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from model.errors import PlumblineError, ServiceError
from plumbline import predict
from plumbline.cli import main
from plumbline.image_files import find_images, in_requests


def write(folder, contents):
    for number, content in enumerate(contents):
        (folder / f"{number:03}.png").write_bytes(content)
    return find_images(folder)


@pytest.fixture
def ask(small_service):
    """`ask(files)`: their rows, one request at a time, each sent once."""

    def judged(files, **options):
        options = {"concurrency": 1, "retries": 0, **options}
        judging = predict.judging_by_service(small_service.url, None, **options)
        return predict.predict_all(files, judging)

    return judged


def test_rows_are_in_the_order_of_the_files_however_many_requests_are_in_flight(
    small_service, ask, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "REQUEST_IMAGES", 2)
    rows = ask(write(tmp_path, [b"%d" % number for number in range(21)]), concurrency=5)
    assert [row["labels"] for row in rows] == [[f"{number}"] for number in range(21)]
    assert {row["model"]["version"] for row in rows} == {"1"}
    assert sorted(map(len, small_service.requests)) == [1] + [2] * 10


def test_a_request_of_bad_images_alone_gives_their_rows(small_service, ask, tmp_path):
    rows = ask(write(tmp_path, [b"bad", b"bad"]))
    assert [row["error"] for row in rows] == [{"code": "undecodable", "message": "broken"}] * 2
    assert [row["file"][-7:] for row in rows] == ["000.png", "001.png"]
    assert [len(images) for images in small_service.requests] == [2, 1, 1]


def test_requests_keep_to_a_number_of_images_and_of_bytes(tmp_path):
    sizes = [10, 10, 10, 10, 90, 200, 5]
    files = write(tmp_path, [b"x" * size for size in sizes])
    found = list(in_requests(files, most_images=3, most_bytes=100))
    assert [len(some) for some in found] == [3, 2, 1, 1]
    assert [file for some in found for file in some] == files


def test_the_limits_that_a_service_tells_are_kept_to(small_service, ask, tmp_path):
    small_service.limits = {"parts": 3, "part_bytes": 50, "request_bytes": 3 * 1_024 + 60}
    sizes = [10, 10, 10, 10, 51, 40, 40]
    rows = ask(write(tmp_path, [b"x" * size for size in sizes]))
    assert [len(images) for images in small_service.requests] == [3, 1, 1, 1]
    assert [row["error"] and row["error"]["code"] for row in rows] == [
        *[None] * 4,
        "too_large",
        *[None] * 2,
    ]
    assert rows[4]["error"]["message"] == "51 bytes; the service takes at most 50"


def test_a_file_that_cannot_be_read_has_a_row_that_says_so(small_service, ask, tmp_path):
    files = write(tmp_path, [b"cat", b"dog"])
    files[0].path.unlink()
    gone, dog = ask(files)
    assert gone["error"] == {"code": "unreadable", "message": "No such file or directory"}
    assert dog["labels"] == ["dog"]


def test_other_errors_end_it(small_service, ask, tmp_path):
    small_service.refusals.append((401, "unauthorized", None))
    with pytest.raises(PlumblineError, match="unauthorized"):
        ask(write(tmp_path, [b"cat", b"dog"]))
    assert small_service.requests == [[b"cat", b"dog"]]


def test_a_service_that_tells_nothing_of_its_model_is_told(small_service, ask, tmp_path):
    small_service.raw = b"{}"
    with pytest.raises(ServiceError, match="tells no 'name' of its model"):
        ask(write(tmp_path, [b"cat"]))


def test_names_that_are_no_utf8_are_found_and_told_apart(tmp_path):
    names = [b"caf\xe9.png", b"caf\xe8.png", "café.png".encode()]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"image")
    assert {file.name.rpartition("/")[2] for file in find_images(tmp_path)} == {
        "caf\\xe9.png",
        "caf\\xe8.png",
        "café.png",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--anew"], "--anew and --mixed are for --out FILE.parquet"),
        (["--mixed", "--out", "rows.jsonl"], "--anew and --mixed are for --out FILE.parquet"),
        (["--concurrency", "2"], "--concurrency and --retries are for --url"),
        (["--retries", "0"], "--concurrency and --retries are for --url"),
        (["--out", "nowhere/rows.parquet"], "there is no folder nowhere"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, options, said):
    write(tmp_path, [b"cat"])
    done = CliRunner().invoke(main, ["predict", str(tmp_path), *options])
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_lines_are_written_as_before(small_service, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", [b"cat", b"bad"])
    out = tmp_path / "rows.jsonl"
    command = ["predict", str(tmp_path / "in"), "--url", small_service.url, "--out", str(out)]
    assert CliRunner().invoke(main, command).exit_code == 1
    cat, bad = map(json.loads, out.read_text().splitlines())
    assert (cat["labels"], cat["error"]) == (["cat"], None)
    assert bad["error"]["code"] == "undecodable"
