"""Terminal output of the launcher: one line for each event, and the table of a preflight."""

import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text

from data_shards.base.names import printable
from data_shards.base.terminal import Terminal
from launcher.hosts.hostfile import Hosts
from launcher.run.preflight import PreflightReport


class StatusLog:
    """Says what happens, on stderr and in a file.

    Args:
        file: of the run folder; appended to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, sentence: str) -> None:
        """Say it, with the time."""
        line = f"{time.strftime('%H:%M:%S')} launcher: {printable(sentence)}\n"
        with suppress(OSError, ValueError):  # a terminal that is gone ends no run
            sys.stderr.write(line)
            sys.stderr.flush()
        with suppress(OSError), self._file.open("a") as file:  # a full disk ends no run
            file.write(line)


def show_preflight(seen: PreflightReport, hosts: Hosts) -> None:
    """Print one table: a line for each host that is fine, one for each thing that is not."""
    table = Table("host", "", "found", "what to do", title="Preflight")
    for host, slots in hosts.items():
        findings = [finding for finding in seen.findings if finding.host == host]
        if not findings:
            facts = seen.facts[host]
            table.add_row(
                host, Text("ready", "green"), f"{len(slots)} of {facts.devices} {facts.device}"
            )
        for finding in findings:
            colour = "red" if finding.blocking else "yellow"
            table.add_row(host, Text(finding.check, colour), finding.found, finding.fix)
    Terminal(stderr=True).print(table)
