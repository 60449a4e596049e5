"""Records of a failed rank for the restart decision."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_shards.base.errors import InputError, UserError
from smdt.training.checkpoints.run_folder import RunFolder
from smdt.training.ranks.lease import ATTEMPT_VARIABLE, LeaseMonitor

_log = logging.getLogger(__name__)


@contextmanager
def recorded(folder: RunFolder, *, rank: int, heard: bool = False) -> Iterator[None]:
    """Log what the block raises, and say in `state.json` why the run failed.

    Args:
        folder: of the run.
        rank: of this process.
        heard: whether errors for the user are rank 0's, which has said them if they are the run's.
    """
    try:
        yield
    except Exception as error:
        if not (heard and isinstance(error, UserError)):
            _log.exception("rank %d failed", rank)
            record_failure(folder, error)
        raise


def record_failure(folder: RunFolder, error: Exception) -> None:
    """Write into `state.json` why the run failed, unless another rank has a better reason.

    A rank that only lost its partner does not overwrite the reason of the failed one, and a rank
    of an attempt that is over writes nothing.
    """
    lease = LeaseMonitor.of(os.environ)
    if lease is not None and lease.superseded():
        return
    state = folder.read_state_of(os.environ.get(ATTEMPT_VARIABLE)) or {}
    if state.get("status") == "failed" and not isinstance(error, UserError):
        return
    try:
        wrong_input = isinstance(error, UserError) and error.exit_code == InputError.exit_code
        reason = str(error) or type(error).__name__
        folder.note("failed", reason=reason)
        folder.write_state("failed", reason=reason, retry=not wrong_input)
    except OSError:
        _log.exception("state.json could not be written")
