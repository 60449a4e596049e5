import pytest
import typer

from data_shards.errors import InputError, ShardError, Stopped, run

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
