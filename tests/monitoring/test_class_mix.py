"""A watch tells a change of the class mix from its own window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monitoring import class_mix as class_mix_module
from monitoring.records import to_table
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch

SHARES = (0.6, 0.3, 0.1)


@pytest.fixture
def watch(store, champion):
    """At its beginning."""
    return Watch(champion(), MonitoringSettings(home=store.home, false_alarm_images=1e12))


def test_it_is_told_of_the_last_images_whether_or_not_they_were_sampled(watch, of_world):
    assert "0 images are too few" in watch.class_mix_change()["sentence"]
    made, _ = of_world(watch.manifest.tag, 400, 1)
    watch.take(to_table(made))
    assert not watch.class_mix_change()["recognised"]
    made, _ = of_world(watch.manifest.tag, 1_500, 2, SHARES)
    for start in range(0, 1_500, 300):
        watch.take(to_table(made[start : start + 300]))
    found = watch.class_mix_change()
    assert found["recognised"]
    assert 900 <= found["images"] <= 1_000, "since the change, where that is seen in the window"
    json.dumps(found, allow_nan=False)
    watch.reset(1, 0.0)
    assert not watch.class_mix_change()["recognised"]


def test_it_is_not_computed_anew_for_every_image(watch, of_world, monkeypatch):
    made, _ = of_world(watch.manifest.tag, 300, 1)
    watch.take(to_table(made[:250]))
    first = watch.class_mix_change()
    watch.take(to_table(made[250:260]))
    assert watch.class_mix_change() is first
    monkeypatch.setattr(class_mix_module, "EXPLAINED_EVERY_IMAGES", 5)
    assert watch.class_mix_change() is not first


def test_images_that_depend_on_each_other_tell_no_class_mix(watch, of_world):
    made, _ = of_world(watch.manifest.tag, 300, 1, SHARES)
    copies = [
        replace(its, image_sha256=f"{place}-{copy}", perceptual_hash=(7919 * place + copy) ** 3)
        for place, its in enumerate(made)
        for copy in range(3)
    ]
    watch.take(to_table(copies))
    assert watch.promise.why_not is not None
    assert watch.class_mix_change()["sentence"].startswith("The class mix cannot be told: ")


@pytest.fixture
def restarted(watch):
    """`restarted(watch)`: another one, as after a restart of the monitor."""

    def restart(before: Watch) -> Watch:
        again = Watch(watch.bundle, MonitoringSettings(home=Path("."), false_alarm_images=1e12))
        again.restore(json.loads(json.dumps(before.to_state())))
        return again

    return restart


def test_what_was_recognised_stands_over_a_restart_until_images_speak_against_it(
    watch, of_world, restarted
):
    made, _ = of_world(watch.manifest.tag, 1_500, 2, SHARES)
    watch.take(to_table(made))
    found = watch.class_mix_change()
    assert found["recognised"]
    again = restarted(restarted(watch))
    assert again.class_mix_change() == json.loads(json.dumps(found))
    assert not again.class_mix_has_too_few
    made, _ = of_world(watch.manifest.tag, 1_000, 3)
    again.take(to_table(made[:100]))
    assert again.class_mix_change()["recognised"], "too few to take it back"
    again.take(to_table(made[100:]))
    assert not again.class_mix_change()["recognised"]


def test_what_was_recognised_is_taken_back_where_images_within_classes_change(
    watch, of_world, restarted
):
    made, _ = of_world(watch.manifest.tag, 1_500, 2, SHARES)
    watch.take(to_table(made))
    assert watch.class_mix_change()["recognised"]
    again = restarted(watch)
    made, _ = of_world(watch.manifest.tag, 300, 3, SHARES)
    again.take(to_table([replace(its, brightness=its.brightness + 0.3) for its in made]))
    assert not again.class_mix_change()["recognised"]


def test_after_a_restart_and_a_reset_there_are_too_few_images_to_tell(watch, of_world, restarted):
    assert watch.class_mix_has_too_few
    made, _ = of_world(watch.manifest.tag, 250, 1)
    watch.take(to_table(made))
    watch.class_mix_change()
    assert not watch.class_mix_has_too_few
    assert restarted(watch).class_mix_has_too_few
    watch.reset(1, 0.0)
    assert watch.class_mix_has_too_few
