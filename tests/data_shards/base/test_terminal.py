from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from data_shards.base.names import printable
from data_shards.base.terminal import Terminal
from data_shards.build.progress import Work
from data_shards.console import BuildProgressBar, show_verification
from data_shards.inspect.verify import Verification
from data_shards.inspect.verify_shard import Damage
from smdt.telemetry.console import ProgressBar

ROOT = Path(__file__).parents[3]
NAMES = [
    "photo[north].png",
    "x[/b].png",
    "[red]a[/red]",
    "[/]",
    "\\[b]",
    ":smile:.png",
    "été 1.png",
]
WIDE = 200


def shown(name: str, capsys) -> str:
    """What a console prints of a name, as a line, in a table's title and cells, and in a rule."""
    terminal = Terminal(width=WIDE)
    table = Table("", name, title=name)
    table.add_row("cell", name)
    terminal.print(name)
    terminal.print(table)
    terminal.rule(name)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_wherever_it_stands(name, capsys):
    assert shown(name, capsys).count(name) == 5


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines", "two\\nlines"),
        ("back\x08\r", "back\\x08\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (b"\xff.png".decode("utf-8", "surrogateescape"), "\\udcff.png"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(name, escaped, capsys):
    text = shown(name, capsys)
    assert text.count(escaped) == 5
    assert printable(name) == escaped


@given(st.text(st.characters(), max_size=30))
def test_nothing_that_is_printable_changes_and_nothing_else_is_left(name):
    text = printable(name)
    text.encode()  # it is UTF-8
    assert len(text.splitlines()) <= 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text)
    if name.isprintable():
        assert text == name
    assert printable(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_bars_show_their_titles_as_they_are(name, capsys):
    with BuildProgressBar(name) as bar:
        bar.begin(Work(1, 0, 10, 0))
    with ProgressBar(10, name) as progress:
        progress.step(1, {"[loss]": 1.0})
        progress.say(f"{name} said")
    text = capsys.readouterr().err
    assert text.count(name) >= 3
    assert "[loss]" in text


def test_damage_of_a_sample_with_an_odd_name_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDE))
    damage = Damage("a[/b].tar", "[north]", "ground", "checksum", "[/]")
    show_verification(Verification(shards=1, samples=1, damages=[damage]))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "checksum" in line]
    assert all(word in row for word in damage)


@pytest.mark.parametrize("package", ["data_shards", "smdt", "launcher", "monitoring"])
def test_no_other_console_writes(package):
    files = set((ROOT / package).rglob("*.py")) - {ROOT / "data_shards" / "base" / "terminal.py"}
    users = [file for file in files if "rich.console" in file.read_text()]
    assert users == []
