"""`plumbline monitor`, `retrain` and `drift`: watch, train anew, and play a drift."""

from __future__ import annotations

import signal
import sys

import click

from model.errors import SettingsError
from model.settings import read_settings
from monitoring.settings import MonitoringSettings
from plumbline.output import end_by_exception
from plumbline.priors_command import priors
from plumbline.sample_command import sample
from service.settings import ServiceSettings


@click.group(invoke_without_command=True)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
@click.pass_context
def monitor(ctx: click.Context, host: str | None, port: int | None) -> None:
    """Watch the champion's records for drift until Ctrl-C."""
    if ctx.invoked_subcommand is not None:
        return
    from monitoring.app import run_monitor

    settings = read_settings(MonitoringSettings)
    if host or port:
        own_host, own_port = settings.monitor_address
        address = f"{host or own_host}:{port or own_port}"
        settings = settings.model_copy(update={"monitor_on": address})
    run_monitor(settings)


monitor.add_command(priors)
monitor.add_command(sample)


@monitor.command("reset")
@click.option("--why", required=True, help="What was found; kept in the audit.")
@click.option(
    "--keep",
    is_flag=True,
    help="The alarm was false: its images are of the domain, and new ones are held to them too.",
)
@click.option(
    "--new-normal",
    is_flag=True,
    help="The images since the alarm are what is to come: new ones are held to them alone.",
)
def reset_monitor(why: str, keep: bool, new_normal: bool) -> None:
    """End the state "drift": evidence begins anew, and the promise with it.

    New images are held to those from before the drift.
    """
    from monitoring.monitor import ask_for_reset

    if not why.strip():
        raise SettingsError("--why is empty; say what was found, it is kept in the audit")
    if keep and new_normal:
        raise SettingsError(
            "--keep and --new-normal are two things: with --keep new images are held to those from"
            " before the alarm and after it, with --new-normal to those after it alone"
        )
    tag = ask_for_reset(
        read_settings(MonitoringSettings),
        why.strip(),
        "keep" if keep else "new normal" if new_normal else "back",
    )
    click.echo(f"the evidence for {tag} begins anew")


@monitor.command("reports")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port."
)
def show_reports(host: str, port: int) -> None:
    """Show Evidently's reports in a browser until Ctrl-C, with its telemetry off.

    The pages have no keys: they are for this machine alone.
    """
    from monitoring import reports

    reports.show_reports(read_settings(MonitoringSettings), host, port)


@click.command()
@click.option("--why", required=True, help="The reason; kept in the audit.")
def retrain(why: str) -> None:
    """Train a challenger of the champion on labelled production images, and compare them.

    Exit code 1 when there are too few new labels to train on. Promotion stays a command.
    """
    from monitoring.retrain import NoNewLabelsError
    from monitoring.retrain import retrain as train_challenger

    if not why.strip():
        raise SettingsError("--why is empty; say why, it is kept in the audit")
    # By an exception the training is stopped too, and the retraining is written down as failed.
    signal.signal(signal.SIGTERM, end_by_exception)
    try:
        comparison = train_challenger(read_settings(MonitoringSettings), why.strip())
    except NoNewLabelsError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    click.echo(comparison.in_words())


KINDS = ("clean", "dark", "blur", "noise", "foreign", "prior", "concept")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--clean", type=click.IntRange(0), default=400, show_default=True, help="Images.")
@click.option("--images", type=click.IntRange(1), default=2000, show_default=True, help="Most.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), help="Of changed images.")
@click.option("--labels/--no-labels", default=True, help="Send feedback with the true labels.")
@click.option("--retraining/--no-retraining", default=True, help="Wait for the retraining.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="To repeat a play. 0: by the clock."
)
def drift(
    kind: str,
    clean: int,
    images: int,
    share: float | None,
    labels: bool,
    retraining: bool,
    seed: int,
) -> None:
    """Play traffic whose domain changes, and tell what the monitor says: what `make drift` runs.

    Exit code 1 when the monitor raises no alarm, or one on clean images.
    """
    from plumbline.drift import Play, play

    what = Play(
        kind=kind,
        clean_images=clean,
        changed_images=images,
        share=share if share is not None else (0.25 if kind == "noise" else 1.0),
        labels=labels,
        retraining=retraining,
        seed=seed,
    )
    drifted = play(read_settings(ServiceSettings), what)
    if drifted == (kind == "clean"):
        sys.exit(1)
