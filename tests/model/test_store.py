"""Versions are registered whole, promoted one at a time, and checked whenever they are loaded."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from model import bundle as bundles
from model.errors import BundleError, StoreError
from model.settings import ModelSettings
from model.state import audit, write_transaction
from model.state import versions as versions_table
from model.store import ModelStore, check_name


@pytest.fixture
def store(tmp_path, state_url):
    """On each of the databases that stages may be kept in."""
    store = ModelStore(ModelSettings(home=tmp_path / "home", state_url=state_url))
    yield store
    store.state.dispose()


def same(store: ModelStore) -> ModelStore:
    """The store as another process has it."""
    url = store.state.url.render_as_string()
    return ModelStore(ModelSettings(home=store.home, state_url=url))


def stages(store: ModelStore) -> dict[str, str]:
    return {version.tag: version.stage for version in store.versions()}


def audited(store: ModelStore) -> list[tuple[str, str, str]]:
    with store.state.connect() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id))
        return [(row.action, row.subject, row.detail) for row in rows]


# Registering


def test_a_registered_version_stands_in_the_store_and_loads(store, register):
    tag = register()
    assert re.fullmatch(r"shapes:\d{8}-[0-9a-f]{8}", tag)
    version = store.find(tag)
    assert version.stage == "registered"
    assert store.load(version).manifest.tag == tag


@pytest.mark.parametrize("when", ["before sealing", "after sealing"])
def test_a_failure_while_registering_leaves_no_trace(when, store, make_manifest, fill_bundle):
    with pytest.raises(ZeroDivisionError):
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            if when == "after sealing":
                seal(make_manifest(version=version))
            raise ZeroDivisionError
    assert store.versions() == []
    assert list((store.bentoml_home / "models" / "shapes").iterdir()) == []


def test_a_version_that_was_never_sealed_is_not_registered(store):
    with pytest.raises(BundleError, match="never sealed"), store.registering("shapes"):
        pass
    assert store.versions() == []
    assert list((store.bentoml_home / "models" / "shapes").iterdir()) == []


def test_a_database_that_refuses_leaves_no_files(store, make_manifest, fill_bundle):
    with pytest.raises(Exception, match=r"no such table|does not exist"):
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            seal(make_manifest(version=version))
            with write_transaction(store.state) as connection:
                versions_table.drop(connection)
    assert list((store.bentoml_home / "models" / "shapes").iterdir()) == []


def test_what_an_interrupted_training_left_is_gone_after_the_next(store, register):
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = store.bentoml_home / "models" / "shapes"
    left = folder / f".20260101-0123abcd.0123abcd.{ended.pid}@{platform.node()}.partial"
    left.mkdir(parents=True)
    register()
    assert not left.exists()


@pytest.mark.parametrize("name", ["", "Shapes", "../up", "a/b", "a:b", "-a", "a-", "a" * 63, "ä"])
def test_other_names_are_refused_before_anything_is_made(name, store):
    with pytest.raises(StoreError, match="is no model name"), store.registering(name):
        raise AssertionError("the block must not run")
    assert not store.bentoml_home.exists()


@pytest.mark.parametrize("name", ["a", "7", "fashion-mnist", "v1.2_x", "a" * 62])
def test_names_that_bentoml_takes_are_taken(name):
    check_name(name)


def test_bentoml_lists_and_loads_what_was_registered(store, register):
    tag = register()
    code = (
        "import bentoml\n"
        "for model in bentoml.models.list(): print('listed', model.tag)\n"
        "print('latest', bentoml.models.get('shapes:latest').tag)\n"
    )
    environment = os.environ | {
        "BENTOML_HOME": str(store.bentoml_home),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == [f"listed {tag}", f"latest {tag}"]


def test_a_pointer_for_bentoml_that_cannot_be_written_is_told_and_the_version_stays(
    store, register, caplog
):
    (store.bentoml_home / "models" / "shapes" / "latest").mkdir(parents=True)
    tag = register()
    assert store.find("shapes:latest").tag == tag
    assert f"{tag} is registered, but BentoML's pointer" in caplog.text
    left = sorted(path.name for path in (store.bentoml_home / "models" / "shapes").iterdir())
    assert left == sorted([tag.partition(":")[2], "latest"])


# Finding


def test_a_database_that_cannot_be_read_is_a_store_error(store):
    with write_transaction(store.state) as connection:
        versions_table.drop(connection)
    for ask in (store.versions, store.champion, lambda: store.find("shapes:latest")):
        with pytest.raises(StoreError, match=r"cannot be read: .*(no such table|does not exist)"):
            ask()


def test_versions_come_newest_first_and_by_name(store, register):
    first, second, other = register(), register(), register("digits")
    assert [version.tag for version in store.versions()] == [other, second, first]
    assert [version.tag for version in store.versions("shapes")] == [second, first]


def test_a_version_is_found_by_tag_as_latest_and_as_champion(store, register):
    first, second = register(), register()
    store.promote(first)
    assert store.find(first).tag == first
    assert store.find("shapes:latest").tag == second
    assert store.find("shapes:champion").tag == first


@pytest.mark.parametrize("reference", ["shapes:20000101-00000000", "shapes:newest", "shapes"])
def test_an_unknown_version_is_refused_and_the_store_is_listed(reference, store, register):
    tag = register()
    with pytest.raises(StoreError, match=f"no model version '{reference}'.*In the store: {tag}"):
        store.find(reference)


@pytest.mark.parametrize("reference", ["digits:latest", "digits:20000101-00000000"])
def test_an_unknown_name_is_refused(reference, store, register):
    register()
    with pytest.raises(StoreError, match="no version of that name"):
        store.find(reference)


def test_without_a_champion_the_error_says_how_to_get_one(store, register):
    register()
    for ask in (store.champion, lambda: store.find("shapes:champion")):
        with pytest.raises(StoreError, match=r"no champion.*plumbline promote"):
            ask()


def test_the_only_champion_needs_no_name_and_one_of_two_does(store, register):
    shapes, digits = register(), register("digits")
    store.promote(shapes)
    assert store.champion().tag == shapes
    store.promote(digits)
    with pytest.raises(StoreError, match=r"several models have a champion \(digits, shapes\)"):
        store.champion()
    assert store.champion("shapes").tag == shapes


# Promotion


def test_promotion_retires_the_champion_before(store, register):
    first, second = register(), register()
    assert store.promote(first).stage == "champion"
    assert store.promote(second).stage == "champion"
    assert stages(store) == {first: "retired", second: "champion"}


def test_champions_of_other_names_are_left_alone(store, register):
    shapes, digits = register(), register("digits")
    store.promote(shapes)
    store.promote(digits)
    assert set(stages(store).values()) == {"champion"}


def test_promoting_the_champion_again_changes_nothing(store, register):
    tag = register()
    before = store.promote(tag)
    assert store.promote(tag) == before
    assert [action for action, _, _ in audited(store)] == ["register", "promote"]


def test_rollback_brings_back_the_champion_before(store, register):
    first, second, third = register(), register(), register()
    for tag in (first, second, third):
        store.promote(tag)
    assert store.rollback().tag == second
    assert stages(store) == {first: "retired", second: "champion", third: "retired"}


def test_repeated_rollbacks_go_further_back_and_never_forward(store, register):
    first, second, third = register(), register(), register()
    for tag in (first, second, third):
        store.promote(tag)
    assert [store.rollback().tag, store.rollback().tag] == [second, first]
    with pytest.raises(StoreError, match=f"{first} has no champion before it"):
        store.rollback()
    assert audited(store)[-2:] == [
        ("rollback", second, f"before: {third}"),
        ("rollback", first, f"before: {second}"),
    ]


def test_a_rollback_after_a_new_promotion_does_not_bring_back_what_was_rolled_back(store, register):
    first, bad, mended = register(), register(), register()
    store.promote(first)
    store.promote(bad)
    store.rollback()
    store.promote(mended)
    assert store.rollback().tag == first


def test_a_version_promoted_twice_is_rolled_back_step_by_step(store, register):
    first, second = register(), register()
    for tag in (first, second, first):
        store.promote(tag)
    assert [store.rollback().tag, store.rollback().tag] == [second, first]


def test_a_rollback_keeps_to_names_that_look_alike(store, register):
    for name in ("a_b", "axb"):
        store.promote(register(name))
    with pytest.raises(StoreError, match="nothing to roll back to"):
        store.rollback("a_b")


def test_a_rollback_to_a_corrupt_version_changes_nothing(store, register):
    first, second = register(), register()
    store.promote(first)
    store.promote(second)
    store.load(store.find(first)).path(bundles.REPORT).write_text("changed")
    with pytest.raises(BundleError, match=r"report\.html is corrupt"):
        store.rollback()
    assert stages(store) == {first: "retired", second: "champion"}
    assert audited(store)[-1][:2] == ("promote", second)


def test_rollback_without_a_champion_before_is_refused(store, register):
    store.promote(register())
    register()
    with pytest.raises(StoreError, match="nothing to roll back to"):
        store.rollback("shapes")


def test_every_change_is_audited(store, register):
    first, second = register(), register()
    store.promote(first)
    store.promote(second)
    assert audited(store) == [
        ("register", first, ""),
        ("register", second, ""),
        ("promote", first, "before: none"),
        ("promote", second, f"before: {first}"),
    ]


def test_promotions_at_the_same_moment_leave_exactly_one_champion(store, register):
    tags = [register() for _ in range(4)]
    together = threading.Barrier(len(tags))

    def promote(tag: str) -> str:
        other = same(store)
        together.wait()
        try:
            return other.promote(tag).tag
        finally:
            other.state.dispose()

    with ThreadPoolExecutor(len(tags)) as threads:
        assert sorted(threads.map(promote, tags)) == sorted(tags)
    assert sorted(stages(store).values()) == ["champion", "retired", "retired", "retired"]
    assert audited(store)[-1][1] == store.champion().tag


@pytest.fixture
def while_verifying(store, monkeypatch):
    """`while_verifying(act)`: act once, from another connection, while a bundle is verified."""

    def plan(act):
        verify, waiting = store.load, [act]

        def load(version):
            other = same(store)
            while waiting:
                waiting.pop()(other)
            other.state.dispose()
            return verify(version)

        monkeypatch.setattr(store, "load", load)

    return plan


def test_others_can_write_while_a_rollback_verifies(store, register, while_verifying):
    first, second, other = register(), register(), register("digits")
    store.promote(first)
    store.promote(second)
    while_verifying(lambda store: store.promote(other))
    assert store.rollback("shapes").tag == first
    assert store.champion("digits").tag == other


@pytest.mark.parametrize("meanwhile", ["another promotion", "another rollback"])
def test_a_rollback_of_what_is_no_longer_champion_changes_nothing(
    meanwhile, store, register, while_verifying
):
    first, second, third = register(), register(), register()
    store.promote(first)
    store.promote(second)
    while_verifying(
        lambda store: store.promote(third) if "promotion" in meanwhile else store.rollback()
    )
    with pytest.raises(StoreError, match=f"{second} is no longer the champion"):
        store.rollback()
    assert store.champion().tag == (third if "promotion" in meanwhile else first)


# Verification


def test_a_corrupt_version_is_not_promoted_and_the_champion_stays(store, register):
    first, second = register(), register()
    store.promote(first)
    report = store.load(store.find(second)).path(bundles.REPORT)
    report.write_text("changed")
    with pytest.raises(BundleError, match=r"report\.html is corrupt"):
        store.promote(second)
    assert stages(store) == {first: "champion", second: "registered"}


def test_a_bundle_exchanged_for_another_whole_one_is_found(store, register):
    first, second = register(), register()
    here, there = (store.load(store.find(tag)).directory for tag in (first, second))
    shutil.rmtree(here)
    shutil.copytree(there, here)
    bundles.load(here)  # in itself it is whole
    with pytest.raises(BundleError, match="is not the manifest that was registered"):
        store.load(store.find(first))


def test_a_version_whose_files_are_gone_is_refused(store, register):
    version = store.find(register())
    shutil.rmtree(store.load(version).directory)
    with pytest.raises(BundleError, match="is no model bundle"):
        store.promote(version.tag)


def test_bentomls_description_is_hashed_too(store, register):
    version = store.find(register())
    bundle = store.load(version)
    assert bundles.BENTOML_DESCRIPTION in bundle.manifest.files
    bundle.path(bundles.BENTOML_DESCRIPTION).write_text("name: another")
    with pytest.raises(BundleError, match=r"model\.yaml is corrupt"):
        store.load(version)
