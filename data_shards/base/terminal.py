"""Terminal output that prints any user text literally.

File names, keys and exception texts must not be read as markup, emoji codes or control sequences.
All output of rich goes through `Terminal`; styled text is a `rich.text.Text`.
"""

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from data_shards.base.names import printable


class Terminal(Console):
    """A console that prints strings literally.

    Args:
        stderr: whether it writes to stderr instead of stdout.
        width: in characters; None takes that of the terminal.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: object) -> Text:
        """Return a string as rich shows it; strings in tables and rules come here as well."""
        return super().render_str(printable(text), **options)  # type: ignore[arg-type]


def title_column() -> TextColumn:
    """Return the column of a progress bar that prints `printable` titles literally."""
    return TextColumn("{task.description}", markup=False)
