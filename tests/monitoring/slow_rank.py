"""A rank that something on its host holds up."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def slowed(pid: int, stopped_seconds: float = 0.1, running_seconds: float = 0.1) -> Iterator[None]:
    """Stop a process and let it go on, over and over, while the block runs."""
    done = threading.Event()

    def pulse() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stopped_seconds)
            os.kill(pid, signal.SIGCONT)
            done.wait(running_seconds)

    pulsing = threading.Thread(target=pulse)
    pulsing.start()
    try:
        yield
    finally:
        done.set()
        pulsing.join()


def rank_of(pid: int) -> str:
    """The rank that a process is."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(v.decode().split("=", 1) for v in variables if b"=" in v)["RANK"]
