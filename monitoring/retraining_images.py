"""The images of a retraining: copied below `retraining/` in the home, which retention spares.

A folder per retraining, with `held-out/` and `learning/`, each with a table `items.csv`. The images
go when no version needs them any more that may still serve or be gone back to. What stays then
is `learning/digests.txt`: what a version learned from must not be held out when it is compared.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from model.bundle import Manifest, file_sha256
from model.errors import PlumblineError
from model.store import ModelStore, Version
from monitoring.labels import LabelledImage
from monitoring.retraining_lock import last_retraining, running

log = logging.getLogger("plumbline.retrain")

TABLE = "items.csv"
_DIGESTS = "digests.txt"
_OPEN_STAGES = ("champion", "shadow", "canary")


def new_folder(home: Path, name: str, number: int) -> Path:
    """A place for the images of a retraining; of its own though numbers may begin anew."""
    return _parent(home) / f"{name}-{number}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def unlearned(images: Sequence[LabelledImage], champion: Manifest) -> list[LabelledImage]:
    """Those that the champion has not learned, under whatever id, each content once: the newest."""
    learned = _learned_digests(champion)
    by_digest: dict[str, LabelledImage] = {}
    for image in images:
        digest = _digest(image.path)
        if digest and digest not in learned:
            by_digest.pop(digest, None)
            by_digest[digest] = image
    return list(by_digest.values())


def write_table(folder: Path, images: Sequence[LabelledImage], delimiter: str) -> int:
    """Copies of the images and a table of them; gives how many there still were."""
    folder.mkdir(parents=True)
    count = 0
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("fname", "labels"))
        for image in images:
            try:
                shutil.copyfile(image.path, folder / image.path.name)
            except FileNotFoundError:  # its time was up
                continue
            writer.writerow((image.path.name, delimiter.join(image.labels)))
            count += 1
    return count


def write_learning(
    folder: Path,
    images: Sequence[LabelledImage],
    champion: Manifest,
    delimiter: str,
    kept_apart: Path,
) -> None:
    """The table to learn from, and what the champion learned before; nothing that is kept apart."""
    apart = {_digest(path) for path in kept_apart.iterdir()}
    write_table(folder, [its for its in images if _digest(its.path) not in apart], delimiter)
    _add_earlier(folder, champion, apart)


def note_learned(folder: Path, champion: Manifest) -> None:
    """Write down what was learned, the champion's own included: it outlives the images."""
    digests = {_digest(path) for path in folder.iterdir() if path.name != TABLE}
    text = "\n".join(sorted(digests | _learned_digests(champion)))
    (folder / _DIGESTS).write_text(text, encoding="utf-8")


def remove_unneeded(store: ModelStore, name: str) -> None:
    """Remove images that no champion, former champion or open challenger of a name learned from.

    Where one of these versions cannot be read, nothing is removed.
    """
    parent = _parent(store.home)
    # In this order: a retraining that begins after the listing is not in it.
    folders = list(parent.iterdir()) if parent.is_dir() else []
    numbers = set(map(str, running(store.state)))
    try:
        needed = _needed(store, name)
    except PlumblineError as error:
        log.error("images of earlier retrainings are kept: %s", error)
        return
    for folder in folders:
        own, *rest = folder.name.rsplit("-", 2)
        if own == name and rest[0] not in numbers and folder.name not in needed:
            _remove_images(folder)


def _needed(store: ModelStore, name: str) -> set[str]:
    """Names of the folders of what serves, of the champion before it, and the newest challenger."""
    known = store.versions(name)
    retired = [its for its in known if its.stage == "retired"]
    former = max(retired, key=lambda its: its.stage_since, default=None)
    newest = last_retraining(store.state, name, outcome="challenger")
    challenger = None if newest is None else json.loads(newest.detail)["challenger"]

    def is_needed(version: Version) -> bool:
        return version.stage in _OPEN_STAGES or version == former or version.tag == challenger

    tables = [_earlier_table(store.load(its).manifest) for its in known if is_needed(its)]
    # By name: the home may have been moved since.
    return {table.parent.parent.name for table in tables if table is not None}


def _parent(home: Path) -> Path:
    return home.absolute() / "retraining"


def _remove_images(folder: Path) -> None:
    digests = folder / "learning" / _DIGESTS
    if not digests.is_file():  # nothing came of it
        shutil.rmtree(folder, ignore_errors=True)
        return
    shutil.rmtree(folder / "held-out", ignore_errors=True)
    for path in digests.parent.iterdir():
        if path != digests:
            path.unlink(missing_ok=True)


def _earlier_table(version: Manifest) -> Path | None:
    """What a version learned from production, when it did."""
    more = version.training.get("more")
    return Path(more) if more else None


def _learned_digests(champion: Manifest) -> set[str]:
    table = _earlier_table(champion)
    if table is None:
        return set()
    written = table.parent / _DIGESTS
    if written.is_file():
        return set(written.read_text(encoding="utf-8").split())
    return {_digest(image) for image, _ in _rows(table)} - {""}


def _rows(table: Path) -> list[tuple[Path, str]]:
    """Images and labels of a table as written here; empty for others, and where it is gone."""
    if not table.is_file() or table.suffix != ".csv":
        return []
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        (table.parent / row["fname"], row["labels"])
        for row in rows
        if {"fname", "labels"} <= row.keys()
    ]


def _add_earlier(folder: Path, champion: Manifest, apart: Collection[str]) -> None:
    """What the champion itself learned from production is learned again."""
    table = _earlier_table(champion)
    if table is None:
        return
    with (folder / TABLE).open("a", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        for image, labels in _rows(table):
            copied = folder / image.name
            is_new = image.is_file() and not copied.exists()
            if is_new and _digest(image) not in apart:
                shutil.copyfile(image, copied)
                writer.writerow((image.name, labels))


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:  # its time was up
        return ""
