"""Input: a command; output: its exit code, with an error in a sentence where there is one."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from vitexport.cli.commands import cli
from vitexport.cli.wording import as_options
from vitexport.errors import InterruptedBuildError, VitexportError


def main() -> NoReturn:
    """The one border between errors and exit codes."""
    signal.signal(signal.SIGTERM, _on_terminate)
    _prepare_streams()
    verbose = "--verbose" in sys.argv[1:]
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        sys.stderr.close()
        code = 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - see `_explain`
        code = _fail(error, verbose=verbose)
    sys.exit(code or 0)


def _prepare_streams() -> None:
    """Nothing about the terminal is a reason to fail: neither a closed stream nor a character that its encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _on_terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    # Not an Exception: the rooms turn a library's exceptions into their own errors, and this is none of a library's.
    raise KeyboardInterrupt


def _fail(error: BaseException, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error)
    explained = _explain(error)
    click.echo(f"Error: {as_options(str(explained))}", err=True)
    return explained.exit_code


def _explain(error: BaseException) -> VitexportError:
    """What every exception means to a user. A traceback is no message, and Python's own exit code 1 means a failed check."""
    if isinstance(error, VitexportError):
        return error
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        return InterruptedBuildError("Interrupted.")
    if isinstance(error, MemoryError):
        return VitexportError("The machine ran out of memory. Use a smaller model, image or batch.")
    if isinstance(error, OSError):
        return VitexportError(f"The system refused: {error}.")
    return VitexportError(
        f"Unexpected {type(error).__name__}: {error}. This is a defect of vitexport; --verbose shows where it lies."
    )
