"""`plumbline recalibrate`: the champion, calibrated on a random, confirmed sample of production."""

from __future__ import annotations

from datetime import datetime

import click

from model.errors import SettingsError
from model.settings import read_settings
from monitoring.settings import MonitoringSettings
from plumbline.output import open_store, print_json
from plumbline.sample_options import images_option, since_option, until_option


@click.command("recalibrate")
@images_option
@since_option
@until_option(
    required=True, help_text="And before then: as plumbline monitor sample, which drew them, says."
)
@click.option("--why", required=True, help="The reason; kept in the audit.")
@click.option("--json", "as_json", is_flag=True)
def recalibrate(
    images: int, since: datetime | None, until: datetime, why: str, as_json: bool
) -> None:
    """Make a version of the champion whose calibration images are a random sample of production.

    For production that differs from the training data from the first day. Takes the sample that
    plumbline monitor sample lists, with what people say of it, and trains nothing. Refused where
    fewer than 99 images are confirmed to be of the domain, or more than 10 % have no usable answer,
    or those that have none were left out for their flag. Promotion stays a command.
    """
    from monitoring.random_sample import Period
    from monitoring.recalibration import recalibrate as make_version

    if not why.strip():
        raise SettingsError("--why is empty; say why, it is kept in the audit")
    settings = read_settings(MonitoringSettings)
    store = open_store(settings)
    made = make_version(settings, store, images, Period(since, until), why.strip())
    if not as_json:
        click.echo(made.sentence)
        return
    its = made.images
    print_json(
        {
            "version": made.version,
            "sentence": made.sentence,
            "sampled": its.sampled,
            "confirmed": len(its.rows),
            "none_of_the_classes": its.foreign,
            "unanswered": its.unanswered,
        }
    )
