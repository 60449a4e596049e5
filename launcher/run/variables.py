"""Variables on their way to the ranks: in a file that every host sources, in no command line."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_shards.base.errors import InputError
from data_shards.base.names import is_variable

EXPORTED = ("MLFLOW", "MV2", "NCCL", "PYTHON", "UCX")
"""Beginnings of the variables that DeepSpeed writes into pdsh's command line, with their values."""


def environment_script(variables: Mapping[str, str], further: Sequence[str] = ()) -> str:
    """Return the shell script that sets `variables`, whatever their values hold.

    Args:
        variables: values by name.
        further: lines behind them.
    """
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    return "".join([*lines, *further])


def exported_variables(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the variables that DeepSpeed hands to the hosts, as it does.

    Args:
        environment: of the launcher.
        folder: where the ranks start; they import from there first.
    """
    exported = {
        name: value
        for name, value in environment.items()
        if name.startswith(EXPORTED) and is_variable(name)
    }
    path = environment.get("PYTHONPATH")
    return exported | {"PYTHONPATH": str(folder) if path is None else f"{folder}:{path}"}


def masked_exports(names: Iterable[str]) -> str:
    """Return DeepSpeed's file of variables that hides values from pdsh's command line.

    DeepSpeed writes `export NAME="VALUE"` there for its variables, where every user of the machine
    reads it; this file makes it `export NAME="$NAME"`, which keeps what the host's script has set.
    """
    return "".join(f"{name}=${name}\n" for name in names)


def deepspeed_env_lines(text: str, file: Path) -> list[str]:
    """Return the lines of a shell script that do what DeepSpeed does with its `.deepspeed_env`.

    Args:
        text: content of the file, `NAME=VALUE` a line; variables in a value are the host's.
        file: for the error message.

    Raises:
        InputError: a line is something else.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        name, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals or not is_variable(name.strip()):
            raise InputError(f"{file}, line {number}: {name.strip()!r} is not NAME=VALUE")
        quoted = re.sub(r'(["\\`])', r"\\\1", value.strip())
        lines.append(f'export {name.strip()}="{quoted}"\n')
    return lines


def passed_variables(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the user passes to all hosts.

    Raises:
        InputError: one is not set here, or is not a valid name.
    """
    for name in names:
        if not is_variable(name):
            raise InputError(f"--env {name!r} is not a variable name; values come from this shell")
        if name not in environment:
            raise InputError(f"--env {name}: the variable is not set here; export it first")
    return {name: environment[name] for name in names}


def read_deepspeed_env() -> list[str]:
    """Return what DeepSpeed's own files of variables say, as lines of the hosts' script.

    Raises:
        InputError: a line is not a variable.
    """
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    files = [folder / name for folder in (Path.home(), Path.cwd())]
    return [
        line
        for file in files
        if file.is_file()
        for line in deepspeed_env_lines(file.read_text(), file)
    ]
