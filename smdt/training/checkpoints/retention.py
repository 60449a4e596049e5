"""Retention of checkpoints: which are kept, deleted or set aside.

Only whole checkpoints at or before the current step count. Everything else is renamed to a name
that says why, and stays: `step-00000010.damaged`, or `step-00000020.newer` for one that is newer
than the checkpoint that the run resumed from. Readers ignore these names.
"""

import logging
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from data_shards.base.atomic import sync_folder
from data_shards.base.errors import InputError, UserError
from data_shards.base.names import printable
from smdt.training.checkpoints.checkpoint import (
    LATEST,
    Progress,
    folder_of,
    integrity_error,
    load_progress,
    published,
    step_of,
    update_latest,
)

_log = logging.getLogger(__name__)


def steps_to_keep(
    whole: Collection[int], current: int, keep_last: int, best: int | None
) -> set[int]:
    """Return which whole checkpoints stay (pure).

    Args:
        whole: steps of the checkpoints that are whole.
        current: step of the checkpoint that was just written; it always stays.
        keep_last: how many of the newest stay, at least 1.
        best: step of the best evaluation, whose checkpoint stays; None if there was none.
    """
    newest_first = sorted({current, *(step for step in whole if step <= current)}, reverse=True)
    return {step for step in newest_first if step == best} | set(newest_first[:keep_last])


class Retention:
    """Deletes the checkpoints of a run that its configuration does not keep; one process calls it.

    Args:
        checkpoints: folder of the run's checkpoints.
        keep_last: how many of the newest stay, at least 1.
    """

    def __init__(self, checkpoints: Path, keep_last: int) -> None:
        self._checkpoints = checkpoints
        self._keep_last = keep_last
        self._verified: set[Path] = set()

    def apply(self, current: int, best: int | None) -> list[Progress]:
        """Delete what the checkpoint of step `current`, just published, replaces.

        The hashes of a checkpoint that this process has not written are read once; after that the
        sizes of its files and its progress are checked. What killed processes left half written
        is deleted too, so nothing may be being published.

        Args:
            current: step of the checkpoint.
            best: step of the best evaluation so far, None before the first.

        Returns:
            Progress of the checkpoints that are kept in addition to the current one.
        """
        self._verified.add(folder_of(self._checkpoints, current))  # publishing it made its hashes
        whole: dict[int, tuple[Path, Progress]] = {}
        for folder in published(self._checkpoints):
            step = step_of(folder)
            if step > current:
                set_aside(folder, "newer", f"newer than step {current}, where the run is")
            elif step < current:
                try:
                    whole[step] = folder, self._read(folder)
                except InputError as error:
                    set_aside(folder, "damaged", str(error))
        kept = steps_to_keep(whole, current, self._keep_last, best)
        for step in whole.keys() - kept:
            delete(whole[step][0])
        self._delete_leftovers()
        return [progress for step, (_, progress) in whole.items() if step in kept]

    def _read(self, folder: Path) -> Progress:
        """Return the progress of an intact checkpoint.

        Raises:
            InputError: it is damaged.
        """
        fault = integrity_error(folder, hashes=folder not in self._verified)
        if fault:
            raise InputError(fault)
        self._verified.add(folder)
        return load_progress(folder)

    def _delete_leftovers(self) -> None:
        for folder in self._checkpoints.glob("step-*.tmp"):
            shutil.rmtree(folder)
        for file in self._checkpoints.glob(f"{LATEST}.*.tmp"):
            file.unlink()


def prepare_resume(checkpoints: Path, origin: Path, step: int) -> None:
    """Set aside checkpoints that the run cannot resume from, and update `latest`.

    Args:
        checkpoints: folder of the run's checkpoints.
        origin: the checkpoint that the run resumes from, intact; perhaps of another run.
        step: of the origin.

    Raises:
        UserError: `latest` can't be written.
    """
    for folder in published(checkpoints):
        fault = "" if folder == origin else integrity_error(folder)
        if fault:
            set_aside(folder, "damaged", fault)
        elif step_of(folder) > step:
            set_aside(folder, "newer", f"newer than step {step}, where the run resumes")
        else:
            try:
                update_latest(checkpoints, folder)
            except OSError as error:
                why = f"{checkpoints / LATEST} can't be written: {error.strerror}"
                raise UserError(why) from error
            return
    (checkpoints / LATEST).unlink(missing_ok=True)


def set_aside(folder: Path, suffix: str, reason: str) -> None:
    """Rename a checkpoint so that it is not listed any more, and report it in one line.

    Args:
        folder: the checkpoint.
        suffix: of its new name.
        reason: why, as a phrase.
    """
    aside = folder.with_name(f"{folder.name}.{suffix}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.{suffix}-{number}")
    folder.rename(aside)
    sync_folder(folder.parent)
    line = f"checkpoint {folder} is set aside as {aside.name}: {reason}"
    _log.warning("%s", line)
    print(printable(line), file=sys.stderr, flush=True)


def delete(folder: Path) -> None:
    """Delete a checkpoint; a kill in between leaves a name that no reader takes."""
    going = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)
