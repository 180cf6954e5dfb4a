"""The command line: `plumbline`, one sub-command per job.

Exit codes: 0 done, 1 the answer is no, 2 wrong use or bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from model.errors import BundleError, PlumblineError, SettingsError
from model.settings import PREFIX, ModelSettings, read_settings, refuse_unknown
from monitoring.settings import MonitoringSettings
from plumbline.data_commands import data
from plumbline.learning_curve_command import learning_curve
from plumbline.lr_find_command import lr_find
from plumbline.settings import ClientSettings
from plumbline.training_options import (
    data_options,
    take_columns,
    take_knobs,
    training_options,
)
from service.settings import ServiceSettings

# What a command needs it imports itself: a second or two less for those that need little.
if TYPE_CHECKING:
    from model.store import ModelStore, Version

ALL_SETTINGS = (ServiceSettings, ClientSettings)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class PlumblineGroup(click.Group):
    """Turns errors that a user can mend into one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the settings, then run the command."""
        try:
            refuse_unknown(list(ALL_SETTINGS))
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read us has gone: click ends the program
            raise
        except KeyboardInterrupt:
            ctx.exit(130)
        except Exception as error:
            message = _one_line(error)
            if message is None:
                raise
            click.echo(f"error: {message}", err=True)
            ctx.exit(2)


def _one_line(error: Exception) -> str | None:
    """What a user can mend, in a line; None for everything else."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, (PlumblineError, OSError)):
        return str(error)
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, SQLAlchemyError):
        cause = getattr(error, "orig", None) or error
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        return f"the state database: {first}; check {PREFIX}STATE_URL"
    return None


@click.group(cls=PlumblineGroup)
@click.version_option(package_name="plumbline")
def main() -> None:
    """Train image classifiers, serve them, and watch for drift."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


def _store(settings: ModelSettings | None = None) -> ModelStore:
    from model.store import ModelStore

    return ModelStore(settings or read_settings(ModelSettings))


def _say(message: str) -> None:
    click.echo(message, err=True)


def _print_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1, default=str))


class LearningRate(click.ParamType[tuple[float | None, float]]):
    """LR, or LOW:HIGH for the first layers and the head."""

    name = "LR|LOW:HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | None, float]:
        """(lowest or None, highest)."""
        try:
            rates = [float(part) for part in str(value).split(":")]
        except ValueError:
            rates = []
        if len(rates) not in (1, 2) or any(not 0 < rate < 100 for rate in rates):
            self.fail(f"{value!r}: valid is a rate such as 1e-3, or a range such as 1e-5:1e-3")
        return (rates[0] if len(rates) == 2 else None, rates[-1])


@main.command()
@click.option(
    "--data",
    required=True,
    help="Folder of class folders, folder of idx files, CSV or Parquet file, or the word"
    " fashion-mnist.",
)
@click.option("--name", required=True, help="Name of the model.")
@click.option("--task", type=click.Choice(["single", "multi"]), help="Default: by the labels.")
@click.option("--none", "none_allowed", is_flag=True, help="May say: none of the classes.")
@click.option(
    "--architecture",
    help="small-resnet, small-resnet-wide or a name of timm's. Default: by the images.",
)
@click.option("--weights", help="timm, package, a safetensors FILE, or a VERSION.")
@click.option("--size", type=click.IntRange(8, 4096), help="Side of the input in pixels.")
@click.option("--epochs", type=click.IntRange(0), help="0: only the head, on frozen features.")
@click.option("--learning-rate", type=LearningRate())
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@data_options
@click.option(
    "--more",
    type=click.Path(exists=True, dir_okay=False),
    help="CSV or Parquet file of labelled images to add, as retraining does. Test rows stay.",
)
@click.option("--promote", is_flag=True, help="Make the new version champion.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, no progress.")
@click.option(
    "--resume", is_flag=True, help="Go on from the checkpoint of an interrupted training."
)
@click.option(
    "--keep-fine-tuned",
    is_flag=True,
    help="Keep the fine-tuned network also where the linear head is better on validation.",
)
@click.option(
    "--retrain-to-overfit-point",
    is_flag=True,
    help="Where validation loss turned, train anew with that many epochs.",
)
@click.option(
    "--track",
    type=click.Choice(["tensorboard", "mlflow", "none"]),
    default="tensorboard",
    show_default=True,
    help="Where losses, rates and metrics go: below $PLUMBLINE_HOME/runs, or MLFLOW_TRACKING_URI"
    " ($PLUMBLINE_HOME/mlflow.db).",
)
@training_options
def train(
    learning_rate: tuple[float | None, float] | None,
    promote: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model, register it, and print its VERSION.

    Several devices: torchrun --nproc-per-node N -m plumbline train ...
    """
    from training.preparation import DEFAULT_ALPHA, TrainRequest
    from training.recipe import run_training

    lowest, highest = learning_rate or (None, None)
    settings = read_settings(ServiceSettings)
    knobs = take_knobs(options)
    options |= take_columns(options)
    request = TrainRequest(
        knobs=knobs,
        learning_rate=highest,
        body_learning_rate=lowest,
        alpha=settings.alpha or DEFAULT_ALPHA,
        **options,
    )
    store = _store(settings)
    say = (lambda message: None) if as_json else _say
    # By an exception what is half-written is removed too.
    signal.signal(signal.SIGTERM, _end)
    bundle = run_training(request, store, show_progress=not as_json, say=say)
    if bundle is None:  # torchrun's first process speaks for all
        return
    manifest = bundle.manifest
    if promote:
        store.promote(manifest.tag)
    if as_json:
        _print_json(
            {
                "version": manifest.tag,
                "stage": store.find(manifest.tag).stage,
                "metrics_split": manifest.metrics_split,
                "metrics": {name: its.value for name, its in manifest.metrics.items()},
                "report": str(bundle.path("report.html")),
            }
        )
        return
    _say(f"report: {bundle.path('report.html')}")
    click.echo(manifest.tag)


@main.command()
@click.argument("version")
@click.option("--data", required=True, help="As for train.")
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "all"]),
    help="Default: test for the data it was trained on, all for other data.",
)
@data_options
@click.option("--json", "as_json", is_flag=True)
def evaluate(version: str, data: str, split: str | None, as_json: bool, **reading: Any) -> None:
    """Measure a VERSION on labelled images."""
    from training.evaluate import evaluate_version

    reading |= take_columns(reading)
    found = evaluate_version(_store(), version, data, split, **reading)
    if as_json:
        _print_json(found)
        return
    title = f"{version} on {found['count']} images, split: {found['split']}"
    rows = [
        (name, f"{value:.4f}", _interval(found["intervals"].get(name)))
        for name, value in found.items()
        if isinstance(value, float)
    ]
    _print_table(title, ("metric", "value", "95 % interval"), rows)


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


@main.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--version", "version", help="Predict here, with this VERSION.")
@click.option("--url", help="Ask a running service. Its key comes from PLUMBLINE_API_KEY.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines.")
@click.option("--json", "as_json", is_flag=True)
def predict(
    path: Path, version: str | None, url: str | None, out: Path | None, as_json: bool
) -> None:
    """Predict one image, or every JPEG, PNG and WebP below a folder."""
    from plumbline.predict import predict_by_service, predict_here

    if version and url:
        raise SettingsError("give --version or --url, not both")
    images = _image_files(path)
    if url:
        rows = predict_by_service(images, url, read_settings(ClientSettings).api_key)
    else:
        settings = read_settings(ServiceSettings)
        rows = predict_here(
            images,
            _store(settings),
            version,
            model=settings.model,
            engine=settings.engine,
            alpha=settings.alpha,
        )
    lines = [json.dumps(row) for row in rows]
    if out is not None:
        out.write_text("".join(f"{line}\n" for line in lines))
    elif as_json:
        click.echo("\n".join(lines))
    else:
        _print_predictions(rows)
    if any(row["error"] for row in rows):
        sys.exit(1)


def _image_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
    )
    if not found:
        raise SettingsError(f"{path} holds no {', '.join(_IMAGE_SUFFIXES)} file")
    return found


def _print_predictions(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("file", "labels", "probability", "out of domain")
    _print_table(None, columns, [_prediction_row(row) for row in rows])


def _prediction_row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["error"]:
        return row["file"], f"error: {row['error']['message']}", "", ""
    best = max(row["probabilities"].values())
    foreign = row["out_of_domain"]
    note = f"p = {foreign['p_value']:.4f}" + (" FLAGGED" if foreign["flagged"] else "")
    return row["file"], ", ".join(row["labels"]) or "(none)", f"{best:.3f}", note


@main.group()
def models() -> None:
    """List, show and verify model versions."""


@models.command("list")
@click.option("--name", help="Of one model only.")
@click.option("--json", "as_json", is_flag=True)
def list_models(name: str | None, as_json: bool) -> None:
    """List versions with their stages, newest first."""
    found = _store().versions(name)
    if as_json:
        _print_json([_version_row(version) for version in found])
        return
    if not found:
        click.echo("no versions yet; train one: plumbline train --help")
        return
    rows = [(its.tag, its.stage, f"{its.registered_at:%Y-%m-%d %H:%M}") for its in found]
    _print_table(None, ("version", "stage", "registered (UTC)"), rows)


@models.command("show")
@click.argument("version")
def show_model(version: str) -> None:
    """Print the manifest of a VERSION as JSON."""
    store = _store()
    bundle = store.load(store.find(version))
    click.echo(bundle.manifest.model_dump_json(indent=1))


@models.command("verify")
@click.argument("version")
def verify_model(version: str) -> None:
    """Check every hash of a VERSION; exit code 1 when one is wrong."""
    store = _store()
    found = store.find(version)
    try:
        store.load(found)
    except BundleError as error:
        click.echo(f"not intact: {error}")
        sys.exit(1)
    click.echo(f"{found.tag} is intact")


def _version_row(version: Version) -> dict[str, Any]:
    return {
        "version": version.tag,
        "stage": version.stage,
        "registered_at": version.registered_at,
        "stage_since": version.stage_since,
    }


@main.command()
@click.argument("version")
def promote(version: str) -> None:
    """Make VERSION the champion; a running service follows within seconds."""
    click.echo(f"champion: {_store().promote(version).tag}")


@main.command()
@click.option(
    "--name",
    help="Of this model. Default: PLUMBLINE_MODEL, else the only one with a champion.",
)
def rollback(name: str | None) -> None:
    """Make the champion before the present one champion again; repeated, go further back."""
    settings = read_settings(ModelSettings, model=name)
    click.echo(f"champion: {_store(settings).rollback(settings.model).tag}")


@main.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--workers", type=click.IntRange(1), help="Worker processes. Default: one a core.")
@click.option("--engine", type=click.Choice(["openvino", "torch"]))
def serve(host: str | None, port: int | None, workers: int | None, engine: str | None) -> None:
    """Serve the champion over HTTP until Ctrl-C."""
    from service.serving import serve as run_service

    settings = read_settings(ServiceSettings, workers=workers, engine=engine)
    if host or port:
        settings = settings.listening_on(host, port)
    run_service(settings)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@main.command()
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
    signal.signal(signal.SIGTERM, _end)
    try:
        comparison = train_challenger(read_settings(MonitoringSettings), why.strip())
    except NoNewLabelsError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    click.echo(comparison.in_words())


@main.group(invoke_without_command=True)
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


@monitor.command("reset")
@click.option("--why", required=True, help="What was found; kept in the audit.")
@click.option(
    "--keep",
    is_flag=True,
    help="The alarm was false: its images are of the domain, and new ones are held to them too.",
)
def reset_monitor(why: str, keep: bool) -> None:
    """End the state "drift": evidence begins anew, and the promise with it.

    New images are held to those from before the drift.
    """
    from monitoring.monitor import ask_for_reset

    if not why.strip():
        raise SettingsError("--why is empty; say what was found, it is kept in the audit")
    tag = ask_for_reset(read_settings(MonitoringSettings), why.strip(), keeping=keep)
    click.echo(f"the evidence for {tag} begins anew")


@main.command()
@click.option("--data", default="fashion-mnist", show_default=True, help="As for train.")
@click.option("--name", help="Name of the model. Default: PLUMBLINE_MODEL, else fashion-mnist.")
def up(data: str, name: str | None) -> None:
    """Train where there is no champion yet, then serve and watch it: what `make up` runs."""
    from plumbline.up import bring_up

    sys.exit(bring_up(data, name))


@main.command()
@click.argument("kind", type=click.Choice(["clean", "dark", "blur", "noise", "foreign"]))
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


@main.group()
def keys() -> None:
    """API keys of the service."""


@keys.command("add")
@click.option("--name", required=True, help="Whose key it is; records name the client so.")
@click.option("--scope", "scopes", multiple=True, required=True, help="predict, feedback, metrics.")
def add_key(name: str, scopes: tuple[str, ...]) -> None:
    """Make a key and show it once; the file keeps its hash alone."""
    from service.keys import add_key as make_key

    settings = read_settings(ServiceSettings)
    path = settings.api_keys_file or settings.home / "api-keys.json"
    try:
        key = make_key(path, name, scopes)
    except OSError as error:
        raise SettingsError(
            f"the API keys file {path} cannot be written: {error.strerror or error};"
            f" name another with {PREFIX}API_KEYS_FILE"
        ) from error
    click.echo(key)
    _say(f"kept in {path}; in force with {PREFIX}API_KEYS_FILE={path} after a restart")


main.add_command(lr_find)
main.add_command(data)
main.add_command(learning_curve)
