"""The command line: `plumbline`, one sub-command per job.

Exit codes: 0 done, 1 the answer is no, 2 wrong use or bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
from typing import Any

import click

from model.errors import PlumblineError
from model.settings import PREFIX, refuse_unknown
from plumbline.clean_command import clean
from plumbline.data_commands import data
from plumbline.evaluate_command import evaluate
from plumbline.interpret_command import interpret
from plumbline.learning_curve_command import learning_curve
from plumbline.lr_find_command import lr_find
from plumbline.model_commands import models, promote, rollback
from plumbline.monitor_commands import drift, monitor, retrain
from plumbline.predict_command import predict
from plumbline.recalibrate_command import recalibrate
from plumbline.service_commands import keys, serve, up
from plumbline.settings import ClientSettings
from plumbline.train_command import train
from service.settings import ServiceSettings

ALL_SETTINGS = (ServiceSettings, ClientSettings)


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


for _command in (
    *(data, train, evaluate, predict, lr_find, learning_curve),
    *(interpret, clean),
    *(models, promote, rollback),
    *(up, serve, keys),
    *(monitor, recalibrate, retrain, drift),
):
    main.add_command(_command)
