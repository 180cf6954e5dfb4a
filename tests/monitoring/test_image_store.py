"""Images are kept whole, within their room and time, and never hold anyone up."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from monitoring import image_store
from monitoring.image_store import ImageStore, StoredImage, find_image, tidy


def an_image(number: int, size: int = 100, *, flagged: bool = False) -> StoredImage:
    return StoredImage(str(uuid.UUID(int=number)), flagged, "png", bytes([number % 256]) * size)


BLOCK = 4096  # that a small file takes up on the disk


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def keep(folder: Path, *images: StoredImage, limit_bytes: int = 10**6) -> ImageStore:
    store = ImageStore(folder, limit_bytes=limit_bytes, keep_seconds=60.0)
    for image in images:
        store.offer(image)
    store.close()
    return store


def test_an_image_is_found_by_its_prediction(tmp_path):
    keep(tmp_path, an_image(1), an_image(2, flagged=True))
    for number in (1, 2):
        found = find_image(tmp_path, str(uuid.UUID(int=number)))
        assert found is not None
        assert found.read_bytes() == bytes([number]) * 100
    assert find_image(tmp_path, str(uuid.UUID(int=3))) is None
    assert {Path(name).parent.name for name in files(tmp_path)} == {"flagged", "others"}


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "x", "..", "a/b"])
def test_what_is_no_id_finds_nothing(tmp_path, name):
    assert find_image(tmp_path, name) is None


def test_over_its_room_the_oldest_unflagged_go_first(tmp_path):
    keep(tmp_path, *(an_image(n, flagged=n < 3) for n in range(10)))
    for number in range(10):
        path = find_image(tmp_path, str(uuid.UUID(int=number)))
        os.utime(path, (time.time() - 30 + number,) * 2)
    tidy(tmp_path, limit_bytes=5 * BLOCK, keep_seconds=60)
    left = [n for n in range(10) if find_image(tmp_path, str(uuid.UUID(int=n)))]
    assert left == [0, 1, 2, 8, 9]
    tidy(tmp_path, limit_bytes=2 * BLOCK, keep_seconds=60)
    left = [n for n in range(10) if find_image(tmp_path, str(uuid.UUID(int=n)))]
    assert left == [1, 2]


def test_a_burst_of_images_does_not_outgrow_the_room(tmp_path, monkeypatch):
    most = []
    write = ImageStore._write

    def write_and_measure(self, image):
        room = write(self, image)
        most.append(len(files(tmp_path)) * BLOCK)
        return room

    monkeypatch.setattr(ImageStore, "_write", write_and_measure)
    keep(tmp_path, *(an_image(n) for n in range(300)), limit_bytes=100 * BLOCK)
    assert len(most) == 300
    assert 100 * BLOCK <= max(most) <= 103 * BLOCK  # 2 % and the image that was one too many


def test_what_is_too_old_goes_whatever_the_room(tmp_path):
    keep(tmp_path, an_image(1), an_image(2, flagged=True))
    old = find_image(tmp_path, str(uuid.UUID(int=2)))
    os.utime(old, (time.time() - 61,) * 2)
    tidy(tmp_path, limit_bytes=10**6, keep_seconds=60)
    assert len(files(tmp_path)) == 1


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "_QUEUE_BYTES", 250)
    gate = image_store.threading.Event()
    monkeypatch.setattr(image_store, "tidy", lambda *args: gate.wait(10))
    store = ImageStore(tmp_path, limit_bytes=10**6, keep_seconds=60)
    for number in range(5):
        store.offer(an_image(number))
    gate.set()
    store.close()
    assert (store.dropped, len(files(tmp_path))) == (3, 2)


def test_what_cannot_be_written_is_counted_and_nothing_else_suffers(tmp_path, caplog):
    (tmp_path / "others").write_text("in the way")
    store = keep(tmp_path, an_image(1), an_image(2, flagged=True))
    assert store.dropped == 1
    assert "was not kept" in caplog.text
    assert find_image(tmp_path, str(uuid.UUID(int=2))) is not None
