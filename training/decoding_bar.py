"""The progress bar of decoding."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class DecodingBar:
    """Counts images as they are decoded: a bar on a terminal, one line at the end elsewhere.

    Shows nothing until it is called, so nothing for cached images, and nothing at all where
    `enabled` is False. Writes to stderr.

    >>> with DecodingBar(enabled=False) as bar:
    ...     bar(64, 1000)
    """

    def __init__(
        self, title: str = "decoding", *, enabled: bool = True, console: Console | None = None
    ) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self.enabled = enabled
        self.progress = Progress(
            TextColumn(title),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar, also after an error."""
        self.progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` images are decoded."""
        if self._bar is None:
            self._bar = self.progress.add_task(self.title, total=total)
            self.progress.start()
        self.progress.update(self._bar, completed=done)
        if done == total and self.enabled and not self.console.is_terminal:
            self.console.print(f"{self.title}: {total} images")
