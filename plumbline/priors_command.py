"""`plumbline monitor priors`: the class mix of today's images, and a version adjusted to it."""

from __future__ import annotations

import sys
from typing import Any

import click

from model.errors import MonitorError, SettingsError
from model.settings import read_settings
from monitoring.settings import MonitoringSettings
from plumbline.monitor_status import monitor_status
from plumbline.output import open_store, print_json, print_table


@click.command("priors")
@click.option("--adjust", is_flag=True, help="Make a version of the champion adjusted to it.")
@click.option("--why", help="The reason, with --adjust; kept in the audit.")
@click.option("--json", "as_json", is_flag=True)
def priors(adjust: bool, why: str | None, as_json: bool) -> None:
    """Tell whether a change of the class mix alone explains the last images, and what it is.

    Asks the running monitor. Exit code 1 where it does not explain them: then nothing is adjusted.
    Promotion stays a command.
    """
    if adjust and not (why or "").strip():
        raise SettingsError("--why is empty; say why, it is kept in the audit")
    settings = read_settings(MonitoringSettings)
    host, port = settings.monitor_address
    status = monitor_status(f"http://{host}:{port}")
    found = status.get("prior_shift")
    if found is None:
        raise MonitorError(f"the monitor cannot tell the class mix now: {status['sentence']}")
    made = None
    if adjust and found["recognised"]:
        made = _adjust(settings, status["model"], found, str(why).strip())
    if as_json:
        print_json({**found, "model": status["model"], "adjusted": made})
    else:
        _show(found, made)
    sys.exit(0 if found["recognised"] else 1)


def _adjust(
    settings: MonitoringSettings, tag: str, found: dict[str, Any], why: str
) -> dict[str, str]:
    from monitoring.adjusted_version import make_adjusted_version

    store = open_store(settings)
    shares = {its["name"]: its["share"] for its in found["classes"]}
    changed = [its["name"] for its in found["classes"] if its["changed"]]
    made, sentence = make_adjusted_version(store, store.load(store.find(tag)), shares, changed, why)
    return {"version": made, "sentence": sentence}


def _show(found: dict[str, Any], made: dict[str, str] | None) -> None:
    click.echo(found["sentence"])
    if found.get("classes"):
        columns = ("class", "calibration", "now (95 %)", "by confusion matrix", "changed")
        print_table(None, columns, [_row(its) for its in found["classes"]])
    proposal = found.get("proposal")
    if proposal is not None:
        _show_proposal(proposal)
    if made is not None:
        click.echo(made["sentence"])


def _show_proposal(proposal: dict[str, Any]) -> None:
    expected = proposal["expected"]
    click.echo(
        f"Proposed: {proposal['what']}. Expected {expected['after']:.4f} instead of"
        f" {expected['before']:.4f} (gain {expected['gain']:+.4f}, 95 %:"
        f" {expected['gain_low']:+.4f} to {expected['gain_high']:+.4f}), by {expected['by']}."
    )
    factors = ", ".join(f"{name} {its:.3g}" for name, its in proposal["factors"].items())
    click.echo(f"Factors: {factors}")
    for name, its in proposal["thresholds"].items():
        click.echo(f"Threshold of {name}: {its['adjusted']:.4f} instead of {its['now']:.4f}")


def _row(its: dict[str, Any]) -> tuple[str, ...]:
    checked = "-"
    if its["black_box"] is not None:
        checked = (
            f"{its['black_box']:.1%} ({its['black_box_low']:.1%} to {its['black_box_high']:.1%})"
        )
    return (
        its["name"],
        f"{its['reference']:.1%}",
        f"{its['share']:.1%} ({its['low']:.1%} to {its['high']:.1%})",
        checked,
        "yes" if its["changed"] else "",
    )
