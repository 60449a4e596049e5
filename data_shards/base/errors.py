"""Errors for the user, and the one place where commands turn them into exit codes."""

import atexit
import gc
import io
import os
import sys
import traceback
from typing import ClassVar, NoReturn

import typer
from typer.exceptions import TyperException

from data_shards.base.names import printable

EXIT_STOPPED = 75
"""Stopped on request after saving; start the same command again to resume."""


class UserError(Exception):
    """One sentence for the user: what was wrong, where, what to do. The work failed: exit 1."""

    exit_code: ClassVar[int] = 1


class InputError(UserError):
    """The user handed in something that can't be used: exit 2."""

    exit_code: ClassVar[int] = 2


class ShardError(UserError):
    """A data set on disk is not what it should be, or a job could not finish."""


class StoreError(ShardError):
    """A store does not answer, or refuses: one sentence that names the location."""


class DataError(UserError):
    """The data cannot be read as the run needs it; one sentence for the user."""


class DataInputError(DataError, InputError):
    """The user named data that is not there, or that does not fit: exit 2."""


class Stopped(UserError):  # noqa: N818  (an outcome, not a failure)
    """The work stopped on request; everything that was finished is saved."""

    exit_code: ClassVar[int] = EXIT_STOPPED


def run(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command line and exit: 0 done, 1 failed, 2 wrong usage or input, 75 stopped
    (130 for a Ctrl-C that nothing had to be saved for).

    A `UserError` and a usage error become one sentence on stderr; `--debug`, anywhere on the
    command line, adds the traceback. Any other exception is a bug and keeps its traceback.

    Args:
        app: the commands.
        arguments: instead of `sys.argv[1:]`.
    """
    _close_terminal()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold bytes that are not UTF-8
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    atexit.register(gc.freeze)  # memory is freed sooner by the kernel than by a collection
    command = typer.main.get_command(app)
    try:
        result = command.main([a for a in given if a != "--debug"], standalone_mode=False)
    except UserError as error:
        _fail(str(error), error.exit_code, debug)
    except TyperException as error:
        _fail(" ".join(error.format_message().split()), error.exit_code, debug)
    sys.exit(result if isinstance(result, int) else 0)


def _close_terminal() -> None:
    """Let everything that would ask a question at the terminal read an end of file instead.

    No command asks. A library or a program that a command starts may, and would wait for ever.
    """
    if os.isatty(0):
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(printable(message), file=sys.stderr)
    sys.exit(exit_code)
