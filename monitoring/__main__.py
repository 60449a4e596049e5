"""Write rules and dashboards to `configs/monitoring`.

python -m monitoring [--out DIR] [--runbook URL]
"""

from pathlib import Path
from typing import Annotated

import typer

from monitoring.files import FOLDER, write
from monitoring.rules import RUNBOOK


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER,
    runbook: Annotated[
        str, typer.Option(help="Page that the alerts link to, where yours is published.")
    ] = RUNBOOK,
) -> None:
    """Write rules and dashboards."""
    for path in write(out, runbook):
        print(path)


if __name__ == "__main__":
    typer.run(main)
