"""The sections and tables of docs/formats.md, and the code that it is about."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import data_shards
import launcher
import smdt

PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
PACKAGES = [Path(package.__file__).parent for package in (data_shards, launcher, smdt)]
SOURCES = [file.read_text() for folder in PACKAGES for file in sorted(folder.rglob("*.py"))]


def section(heading: str) -> str:
    """What stands below a heading of the page, up to the next one."""
    (text,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.M | re.S)
    return text


def tables(heading: str) -> list[list[list[str]]]:
    """The rows of each table below a heading, without its head: cells of text."""
    found = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section(heading), re.M)
    return [[re.split(r" ?\| ?", row)[1:-1] for row in rows.splitlines()] for rows in found]


def words(cell: str) -> list[str]:
    """What a cell has in code font."""
    return re.findall(r"`([^`]+)`", cell)


def keys(heading: str, number: int = 0) -> list[str]:
    """The names in the first column of a table."""
    return [name for row in tables(heading)[number] for name in words(row[0])]


def names_of(record: type) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in fields(record)]


def calls(name: str) -> list[ast.Call]:
    """Every call of a function or a method of this name in the packages."""
    return [
        node
        for tree in map(ast.parse, SOURCES)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == name
    ]
