"""What a command does while it runs: its progress, on stderr, and stdout kept clean for its result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitexport.artifacts import Progress, silent


@contextmanager
def native_output_aside() -> Iterator[None]:
    """Send what native libraries write to stdout (TensorRT-RTX does) to stderr: stdout is for results, JSON above all."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed: nothing can mix with it
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """A callback for the stages: a live display on a terminal, plain lines elsewhere, both on stderr."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _Live() as live:
            yield live
    else:
        yield _Lines()


class _Live:
    """One line of a rich display per step; the one before is finished when the next begins.

    It begins with the first step, so that what is refused before does not wait for rich to be imported.
    """

    def __init__(self) -> None:
        self.live: Any = None
        self.what = ""
        self.task: Any = None

    def __enter__(self) -> _Live:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        from rich.markup import escape

        if self.live is None:
            self.live = _display()
            self.live.start()
        if what != self.what:
            if self.task is not None:
                self.live.remove_task(self.task)
            self.task = self.live.add_task(escape(what), total=total or None, count="")
            self.what = what
        self.live.update(self.task, completed=done, total=total or None, count=f"{done}/{total}" if total else "")


def _display() -> Any:
    """rich's, on stderr, gone when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display

    return Display(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )


class _Lines:
    """A line per step, and one every few seconds while a step counts."""

    def __init__(self) -> None:
        self.what = ""
        self.last = 0.0

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        ends = bool(total) and done >= total
        if what == self.what and now - self.last < 5 and not ends:
            return
        count = f" {done}/{total}" if total else ""
        sys.stderr.write(f"{what}{count}\n")
        sys.stderr.flush()
        self.what, self.last = what, now
