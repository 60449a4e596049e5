"""Rendezvous of ranks before they form a process group: rank 0 decides, the others get the result.

Collectives have a timeout, so that a lost rank ends the run. Reading the hashes of a checkpoint or
converting it may take longer than any sensible one.
"""

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from data_shards.base.errors import InputError, UserError

_DECISION, _HEARD = "smdt/decision", "smdt/heard"
_POLL = timedelta(seconds=5)
SHUTDOWN_GRACE_SECONDS = 10.0
"""How long rank 0 serves the result to the others before it exits."""


class Rendezvous:
    """The ranks of a run, over a store that rank 0 serves for as long as it keeps this object.

    Args:
        timeout_seconds: how long a rank waits for rank 0 to show up.
    """

    def __init__(self, timeout_seconds: float) -> None:
        timeout = timedelta(seconds=timeout_seconds)
        self._store, self._rank, self._ranks = next(rendezvous("env://", timeout=timeout))

    def run_on_rank_zero(self, decide: Callable[[], str]) -> str:
        """Return what `decide` returns on rank 0, which alone calls it; once, by every rank.

        Args:
            decide: may take as long as it likes.

        Raises:
            UserError: `decide` raised it, on whatever rank.
        """
        if self._rank > 0:
            return self._hear()
        try:
            decision = decide()
        except UserError as error:
            self._say({"error": str(error), "input": isinstance(error, InputError)})
            self._stay()
            raise
        self._say({"decision": decision})
        return decision

    def _say(self, content: Mapping[str, object]) -> None:
        self._store.set(_DECISION, json.dumps(content))

    def _hear(self) -> str:
        """Wait as long as rank 0 lives; when it does not, the launcher ends all ranks."""
        while True:
            try:
                self._store.wait([_DECISION], _POLL)
                break
            except dist.DistStoreError:  # not yet; a lost connection is another error
                continue
        heard = json.loads(self._store.get(_DECISION))
        self._store.add(_HEARD, 1)
        if "error" in heard:
            raise (InputError if heard["input"] else UserError)(heard["error"])
        return str(heard["decision"])

    def _stay(self) -> None:
        """Serve the store until all others have read it, or a timeout."""
        end = time.monotonic() + SHUTDOWN_GRACE_SECONDS
        while self._store.add(_HEARD, 0) < self._ranks - 1 and time.monotonic() < end:
            time.sleep(0.1)
