"""Model versions (the BentoML model store on disk) and their stages (the state database)."""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, select
from sqlalchemy.exc import SQLAlchemyError

from model import bundle as bundles
from model.bundle import Bundle, Manifest
from model.errors import BundleError, StoreError
from model.settings import ModelSettings
from model.state import audit, cause_of, open_state, record, versions, write_transaction

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9]([-._a-z0-9]{0,60}[a-z0-9])?")
_VERSION = re.compile(r"\d{8}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Version:
    """One row of the versions table."""

    name: str
    version: str
    stage: str
    manifest_sha256: str
    registered_at: datetime
    stage_since: datetime

    @property
    def tag(self) -> str:
        """The BentoML tag, `name:version`."""
        return f"{self.name}:{self.version}"


class ModelStore:
    """The versions of every model under one home folder.

    Each bundle lies where BentoML's own model store keeps it, so `bentoml models list`, `export`
    and `import` work on it with `BENTOML_HOME` set to `bentoml_home`.
    """

    def __init__(self, settings: ModelSettings, state: Engine | None = None) -> None:
        self.home = settings.home.absolute()
        self.bentoml_home = self.home / "bentoml"
        self.state = state if state is not None else open_state(settings.state_database)

    # Writing

    @contextmanager
    def registering(self, name: str) -> Iterator[tuple[str, Path, Callable[[Manifest], None]]]:
        """Make a new version: gives its version, a directory to fill, and a function to seal it.

        When the block ends well the version stands in the store with stage `registered`;
        otherwise nothing of it is left.
        """
        check_name(name)
        version = f"{datetime.now(UTC):%Y%m%d}-{uuid.uuid4().hex[:8]}"
        directory = self._directory(name, version)
        bundles.sweep_partials(directory.parent)
        with bundles.writing(directory) as partial:

            def seal(manifest: Manifest) -> None:
                _write_bentoml_description(partial, manifest)
                bundles.seal(partial, manifest)
                bundles.load(partial)  # what will not load is not registered

            yield version, partial, seal
            if not (partial / bundles.MANIFEST).is_file():
                raise BundleError(f"{name}:{version} was never sealed; nothing is registered")
        self._insert(name, version, directory)
        _point_latest_at(directory)

    def _insert(self, name: str, version: str, directory: Path) -> None:
        now = datetime.now(UTC)
        try:
            with self._writing() as connection:
                connection.execute(
                    versions.insert().values(
                        name=name,
                        version=version,
                        stage="registered",
                        manifest_sha256=bundles.file_sha256(directory / bundles.MANIFEST),
                        registered_at=now,
                        stage_since=now,
                    )
                )
                record(connection, "register", f"{name}:{version}")
        except BaseException:
            shutil.rmtree(directory)
            raise

    def promote(self, reference: str) -> Version:
        """Make a version the champion of its name; the champion before it is retired.

        The bundle is verified first. Raises `StoreError` or `BundleError`.
        """
        version = self.find(reference)
        self.load(version)
        with self._writing() as connection:
            before = _champion(connection, version.name)
            if before is not None and before.version == version.version:
                return before
            _crown(connection, version, before, "promote")
        return self.find(version.tag)

    def rollback(self, name: str | None = None) -> Version:
        """Make the champion before the present one champion again; repeated, go further back.

        The bundle is verified first. Raises `StoreError` or `BundleError`.
        """
        present = self.champion(name)
        version = self._before(present)
        self.load(version)  # seconds of hashing, in which others may write
        with self._writing() as connection:
            if _champion(connection, present.name) != present:
                raise StoreError(
                    f"{present.tag} is no longer the champion: another command changed it just"
                    " now; nothing was rolled back. See: plumbline models list"
                )
            _crown(connection, version, present, "rollback")
        return self.find(version.tag)

    def _before(self, present: Version) -> Version:
        with self.state.connect() as connection:
            before = _champion_before(connection, present)
        if before is None:
            raise StoreError(
                f"{present.tag} has no champion before it; nothing to roll back to."
                " Promote a version by name: plumbline promote VERSION"
            )
        return self.find(before)

    # Reading

    def versions(self, name: str | None = None) -> list[Version]:
        """Every version, newest first; of one model where a name is given."""
        query = select(versions).order_by(versions.c.registered_at.desc())
        if name is not None:
            query = query.where(versions.c.name == name)
        return self._read(query)

    def find(self, reference: str) -> Version:
        """Find `name:YYYYMMDD-8hex`, `name:champion` or `name:latest`.

        Raises `StoreError` that lists what there is.
        """
        name, _, which = reference.partition(":")
        check_name(name)
        if which == "champion":
            return self.champion(name)
        known = self.versions(name)
        if which == "latest" and known:
            return known[0]
        for version in known:
            if version.version == which:
                return version
        there = ", ".join(version.tag for version in known[:5]) or "no version of that name"
        raise StoreError(
            f"there is no model version {reference!r}; valid: name:YYYYMMDD-8hex,"
            f" name:champion, name:latest. In the store: {there}"
        )

    def champion(self, name: str | None = None) -> Version:
        """The champion of a model name; with no name, the only champion there is."""
        query = select(versions).where(versions.c.stage == "champion")
        if name is not None:
            query = query.where(versions.c.name == name)
        found = self._read(query)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(sorted(version.name for version in found))
            raise StoreError(f"several models have a champion ({names}); set PLUMBLINE_MODEL")
        raise StoreError(
            f"there is no champion{f' of {name!r}' if name else ''};"
            " train one (plumbline train ... --promote) or promote a version"
            " (plumbline promote VERSION)"
        )

    def load(self, version: Version) -> Bundle:
        """Load and verify the bundle of a version.

        The digest of the manifest in the state database shows whether the bundle was exchanged
        for another; the hashes in the manifest show corruption. Raises `BundleError`.
        """
        bundle = bundles.load(self._directory(version.name, version.version))
        if bundle.manifest_sha256 != version.manifest_sha256:
            raise BundleError(
                f"{bundle.path(bundles.MANIFEST)} is not the manifest that was registered for"
                f" {version.tag}; restore it, or train again"
            )
        return bundle

    def _directory(self, name: str, version: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise StoreError(f"{version!r} is no version; valid: YYYYMMDD-8hex")
        return self.bentoml_home / "models" / name / version

    def _read(self, query: Select[Any]) -> list[Version]:
        try:
            with self.state.connect() as connection:
                return [_version(row) for row in connection.execute(query)]
        except SQLAlchemyError as error:
            raise StoreError(
                f"the state database {self.state.url.render_as_string()} cannot be read:"
                f" {cause_of(error)}; check that it can be reached, and PLUMBLINE_STATE_URL"
            ) from error

    def _writing(self) -> AbstractContextManager[Connection]:
        return write_transaction(self.state)


def _version(row: Row[Any]) -> Version:
    return Version(**row._mapping)


def check_name(name: str) -> None:
    """Raise `StoreError` unless `name` can be the name of a model."""
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} is no model name; valid: 1 to 62 of a-z, 0-9, '-', '.', '_', beginning and"
            " ending with a letter or digit"
        )


def _champion(connection: Connection, name: str) -> Version | None:
    row = connection.execute(
        select(versions).where(versions.c.name == name, versions.c.stage == "champion")
    ).first()
    return None if row is None else _version(row)


def _champion_before(connection: Connection, present: Version) -> str | None:
    """The tag to roll back to: what was champion before `present`, by the audit."""
    rows = connection.execute(
        select(audit.c.action, audit.c.subject)
        .where(audit.c.action.in_(("promote", "rollback")))
        .where(audit.c.subject.startswith(f"{present.name}:", autoescape=True))
        .order_by(audit.c.id)
    )
    line: list[str] = []  # of champions; a promotion adds one, a rollback takes back to one
    for action, tag in rows:
        if action == "rollback":
            line = _until(line, tag)
        line.append(tag)
    earlier = [tag for tag in _until(line, present.tag) if tag != present.tag]
    return earlier[-1] if earlier else None


def _until(line: list[str], tag: str) -> list[str]:
    """What stands before the last `tag` in a line; the whole line where it is not in it."""
    if tag not in line:
        return line
    return line[: len(line) - 1 - line[::-1].index(tag)]


def _crown(connection: Connection, version: Version, before: Version | None, action: str) -> None:
    """Make `version` the champion in place of `before`, and say so in the audit."""
    if before is not None:
        _set_stage(connection, before, "retired")
    _set_stage(connection, version, "champion")
    record(connection, action, version.tag, f"before: {before.tag if before else 'none'}")


def _set_stage(connection: Connection, version: Version, stage: str) -> None:
    connection.execute(
        versions.update()
        .where(versions.c.name == version.name, versions.c.version == version.version)
        .values(stage=stage, stage_since=datetime.now(UTC))
    )


def _point_latest_at(directory: Path) -> None:
    """Write the file that BentoML reads the newest version of a name from.

    The version is registered by now, and Plumbline itself does not read this file: a failure
    is told, and nothing is undone.
    """
    partial = directory.parent / f".latest-{directory.name}"
    try:
        partial.write_text(directory.name)
        partial.replace(directory.parent / "latest")
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        _log.warning(
            "%s:%s is registered, but BentoML's pointer to the latest version could not be"
            " written: %s; write the version into %s to mend it",
            *(directory.parent.name, directory.name, error, directory.parent / "latest"),
        )


def _write_bentoml_description(directory: Path, manifest: Manifest) -> None:
    from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions
    from bentoml._internal.tag import Tag

    info = ModelInfo(
        tag=Tag.from_str(manifest.tag),
        module="model.bundle",
        api_version="v1",
        signatures={},
        labels={"task": manifest.task, "architecture": manifest.architecture},
        options=ModelOptions(),
        metadata={},
        context=ModelContext(framework_name="plumbline", framework_versions={}),
        creation_time=manifest.created,
    )
    with (directory / bundles.BENTOML_DESCRIPTION).open("w", encoding="utf-8") as file:
        info.dump(file)
