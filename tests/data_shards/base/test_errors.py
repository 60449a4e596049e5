import os
import pty
import subprocess
import sys

import pytest
import typer

from data_shards.base.errors import InputError, ShardError, Stopped, run

app = typer.Typer()


@app.command()
def fail(kind: str) -> None:
    errors = {"shard": ShardError, "input": InputError, "stop": Stopped}
    if kind == "exit":
        raise typer.Exit(1)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind in errors:
        raise errors[kind]("This is what was wrong.")


@app.command()
def other() -> None:
    pass


@pytest.mark.parametrize(
    ("kind", "code"), [("shard", 1), ("input", 2), ("stop", 75), ("fine", 0), ("exit", 1)]
)
def test_exit_codes(kind, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(app, ["fail", kind])
    assert stopped.value.code == code
    expected = "" if kind in ("fine", "exit") else "This is what was wrong.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "name", ["photo[north].png", "x[/b].png", ":smile:.png", "\x1b[31m", "a\nb"]
)
def test_names_in_sentences_stand_there_as_they_are_in_one_line(name, capsys):
    def lost() -> None:
        raise InputError(f"there is no {name}")

    lonely = typer.Typer()
    lonely.command()(lost)
    with pytest.raises(SystemExit):
        run(lonely, [])
    shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert capsys.readouterr().err == f"there is no {shown}\n"


ASKING = """
import typer
from data_shards.base.errors import run
app = typer.Typer()
@app.command()
def ask() -> None:
    try:
        print("heard", repr(input("Really? ")))
    except EOFError:
        print("nothing was asked")
run(app, [])
"""


def test_what_would_ask_at_a_terminal_reads_its_end():
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ASKING], stdin=slave, capture_output=True, text=True, timeout=60
    )
    os.close(master)
    os.close(slave)
    assert done.stdout.splitlines()[-1].endswith("nothing was asked")


def test_what_is_piped_in_is_read():
    done = subprocess.run(
        [sys.executable, "-c", ASKING], input="yes\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("heard 'yes'\n")


def test_wrong_usage_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(app, ["fail", "--nonsense", "1"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interrupt_is_no_traceback(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(app, ["fail", "interrupt"])
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_debug_adds_the_traceback(capsys):
    with pytest.raises(SystemExit):
        run(app, ["fail", "shard", "--debug"])
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("This is what was wrong.\n")


def test_a_bug_keeps_its_traceback():
    broken = typer.Typer()

    @broken.command()
    def crash() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken, [])
