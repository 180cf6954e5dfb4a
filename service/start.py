"""How the start of a server goes, told by its workers to their supervisor.

They share a folder of their own: a worker leaves a file there when it first serves a model, or why
it cannot. So nothing is loaded twice for the question whether there is a champion to serve.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Told to workers by their supervisor; no setting, so not named like one.
FOLDER_VARIABLE = "_PLUMBLINE_FOLDER"

_READY, _REFUSAL = "ready", "refusal"


class Start:
    """What the files in the folder of one server say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_this_worker(cls) -> Start | None:
        """The start that this process is part of; None where nobody asks how it goes."""
        folder = os.environ.get(FOLDER_VARIABLE)
        return None if folder is None else cls(Path(folder))

    @property
    def is_over(self) -> bool:
        """Whether a worker has served a model: what happens to others from then on is no start."""
        return (self._folder / _READY).exists()

    @property
    def refusal(self) -> str | None:
        """Why there is nothing to serve, by the worker that found it out."""
        try:
            return None if self.is_over else (self._folder / _REFUSAL).read_text("utf-8")
        except FileNotFoundError:
            return None

    def succeed(self) -> None:
        """A model is served."""
        with suppress(OSError):  # the server is ending, and its folder gone
            (self._folder / _READY).touch()

    def refuse(self, why: str) -> None:
        """There is none to serve, or it cannot be."""
        own = self._folder / f".{_REFUSAL}-{os.getpid()}"
        with suppress(OSError):
            own.write_text(why, "utf-8")
            own.replace(self._folder / _REFUSAL)  # whole, or not there
