"""Configuration files with command-line overrides, as values and as typed text.

YAML decides what an unquoted value is before anything knows what it is for: `001` is 1, `1e3` is
1000.0, `on` is true, `2026-11-30` a date. So every value is kept with its text too, and where the
schema wants a string it is the text.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from data_shards.base.atomic import unpublished_folder, write_atomic
from data_shards.base.errors import InputError

WANTS_TEXT = frozenset({"string_type", "path_type", "literal_error"})
"""Message of pydantic for a value that should be a string."""

MISSING = "???"
"""Text that OmegaConf reads as a missing value."""

_AMBIGUOUS = re.compile(r"[-+]?0[0-7_]+|[^.]*:.*")
"""Text that YAML 1.1 reads as an octal or sexagesimal number: 010 is 8, 1:30 is 90."""

CONFIGS = Path(__file__).parent / "configs"
"""What the package brings: a folder of recipes for each data set, `deepspeed`, `monitoring`."""

_Model = TypeVar("_Model", bound=BaseModel)


def packaged() -> dict[str, Path]:
    """Return the packaged files by name: recipes as `cvusa/sample4geo`, DeepSpeed's as `zero2`."""
    recipes = sorted(CONFIGS.glob("*/*.yaml"))
    settings = sorted(CONFIGS.glob("deepspeed/*.json"))
    return {
        f"{file.parent.name}/{file.stem}": file
        for file in recipes
        if file.parent.name != "monitoring"
    } | {file.stem: file for file in settings}


def find(named: str | Path) -> Path:
    """Return the file that `--config` or `--deepspeed_config` means.

    Args:
        named: a path, or the name of a packaged file; a file that exists wins.
    """
    path = Path(named)
    return path if path.is_file() else packaged().get(str(named), path)


def copy_packaged(name: str, out: Path) -> None:
    """Copy a packaged file, or the folder `monitoring`, to where it can be edited.

    Raises:
        InputError: the package has nothing of that name, or `out` exists or can't be written.
    """
    source = CONFIGS / name if name == "monitoring" else packaged().get(name)
    if source is None:
        raise InputError(f"{name}: {not_packaged(name)}")
    if out.exists():
        raise InputError(f"--out {out} exists: choose another path, or delete it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            write_atomic(out, source.read_bytes())
            return
        with unpublished_folder(out) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            folder.rename(out)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}: choose another path") from error


@dataclass(frozen=True)
class Document:
    """A configuration that was read.

    Attributes:
        content: sections with their values.
        texts: the same with strings for all scalars, as they were typed.
        overrides: text of each override by its key, as they were typed.
    """

    content: dict[str, Any]
    texts: Mapping[str, Any]
    overrides: Mapping[str, str]

    def validated(self, schema: type[_Model]) -> _Model:
        """Return the configuration; string fields of the schema get the typed text.

        Raises:
            ValidationError: it does not fit the schema.
        """
        while True:
            try:
                return schema.model_validate(self.content)
            except ValidationError as error:
                wanted = [each["loc"] for each in error.errors() if each["type"] in WANTS_TEXT]
                replaced = [self._set_text(location) for location in wanted]
                if not any(replaced):
                    raise

    def _set_text(self, location: Sequence[str | int]) -> bool:
        """Put the text where pydantic misses a string; return whether there was one to put."""
        value: Any = self.content
        texts: Any = self.texts
        holder: Any = None
        path: list[str | int] = []
        for part in location:  # of a union it holds tags too, which are not keys
            of_dict = isinstance(value, dict) and part in value
            of_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
            if not of_dict and not of_list:
                continue
            holder, value = value, value[part]
            texts = _child(texts, part)
            path.append(part)
        text = self.overrides.get(".".join(str(part) for part in path), texts)
        if holder is None or isinstance(value, str) or not isinstance(text, str):
            return False
        holder[path[-1]] = text
        return True


def read(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a YAML file and merge overrides into it, in their order.

    `${section.key}` in the file stands for another value, with its override; in an override it is
    text.

    Args:
        path: the file, or the name of a packaged one.
        overrides: `section.key=value` each; a value is YAML where that reads it as anything but a
            string, else the text after the first `=`.

    Raises:
        InputError: the file or an override can't be read.
    """
    try:
        text = find(path).read_text(encoding="utf-8-sig")
        merged: Any = OmegaConf.create(text)  # refuses a duplicate key
        typed = yaml.load(text, yaml.BaseLoader)  # noqa: S506 (makes only strings)
    except OSError as error:
        raise InputError(f"configuration {path}: {unreadable(path, error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"configuration {path}: it is not UTF-8 text") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"configuration {path}: {_first_line(error)}") from error
    if not OmegaConf.is_dict(merged):
        raise InputError(f"configuration {path}: not a mapping of sections")
    as_typed: Any = OmegaConf.create(typed if isinstance(typed, dict) else {})
    texts: dict[str, str] = {}
    try:
        for override in overrides:
            key, value, text = _parse(override)
            texts = {k: v for k, v in texts.items() if not k.startswith(f"{key}.")} | {key: text}
            merged = OmegaConf.merge(merged, _nested(key, escaped(value)))
            as_typed = OmegaConf.merge(as_typed, _nested(key, escaped(_typed(value, text))))
        content: Any = OmegaConf.to_container(merged, resolve=True)
        strings: Any = OmegaConf.to_container(as_typed, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"configuration {path}: {_first_line(error)}") from error
    return Document(_unambiguous(content, strings), strings, texts)


def unreadable(path: str | Path, error: OSError) -> str:
    """Return why a configuration could not be read, and what may have been meant (pure)."""
    if not isinstance(error, FileNotFoundError):
        return f"{error.strerror}"
    return f"no such file, and {not_packaged(path)}"


def not_packaged(name: str | Path) -> str:
    """Return that nothing packaged has this name, and which one is near (pure)."""
    nearest = get_close_matches(str(name).removesuffix(".yaml"), packaged(), n=1)
    meant = f" (did you mean {nearest[0]}?)" if nearest else ""
    return f"no packaged configuration has this name{meant}: `smdt configs` lists them"


def escaped(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Return a value with literal strings: `${` in them is escaped."""
    if isinstance(value, dict):
        return {key: escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escaped(each) for each in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def _parse(override: str) -> tuple[str, Any, str]:
    """Return key, value and text of an override.

    Raises:
        InputError: it has no key or no `=`.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {override!r} is not section.key=value")
    if text == MISSING:
        raise InputError(f"override {override!r}: {MISSING} stands for a missing value; write one")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]))
        value = parsed["v"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        value = text
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return key, text if isinstance(value, str) and not quoted else value, text


def _nested(key: str, value: object) -> Any:  # noqa: ANN401 (OmegaConf's)
    nested = OmegaConf.create({})
    OmegaConf.update(nested, key, value)
    return nested


def _typed(value: object, text: str) -> object:
    """Return an override's value with all scalars as typed text."""
    if isinstance(value, dict | list):
        return yaml.load(text, yaml.BaseLoader)  # noqa: S506 (makes only strings)
    return value if isinstance(value, str) else text


def _unambiguous(value: Any, typed: Any) -> Any:  # noqa: ANN401 (any YAML value)
    """Return a value with the typed text of strings and of numbers that YAML reads otherwise.

    A string that contains another value holds it as typed.
    """
    if isinstance(value, dict):
        return {key: _unambiguous(each, _child(typed, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_unambiguous(each, _child(typed, number)) for number, each in enumerate(value)]
    if isinstance(typed, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, str) or (number and _AMBIGUOUS.fullmatch(typed)):
            return typed
    return value


def _child(typed: Any, key: Any) -> Any:  # noqa: ANN401 (any YAML value)
    """Return what is known to have been typed below a key, None if nothing is."""
    if isinstance(typed, dict):
        return typed.get(str(key))
    if isinstance(typed, list) and isinstance(key, int) and key < len(typed):
        return typed[key]
    return None


def _first_line(error: BaseException) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).strip().splitlines()[0]
