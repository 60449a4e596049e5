"""Handling of an interrupt, a SIGTERM or a scheduler's SIGUSR1 in a launcher."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def on_stop(act: Callable[[bool], None]) -> Iterator[None]:
    """While the block runs, call `act` on each signal, with whether it is not the first."""
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (signal's form)
        nonlocal seen
        again, seen = seen, True
        act(again)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
