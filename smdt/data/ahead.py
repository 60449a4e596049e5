"""Work that runs ahead of its consumer, in order, and ends with it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

FINISHED_AHEAD = 2
"""Results made before they are asked for: one is waiting while the next is in the making."""

Job = TypeVar("Job")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def one_ahead(
    function: Callable[[Job], Result], jobs: Iterable[Job]
) -> Generator[Result, None, None]:
    """Yield `function(job)` of each job, in order; a thread works on the next one meanwhile.

    The thread ends when the iterator ends, is closed or is garbage.
    """
    with ThreadPoolExecutor(1, "smdt-ahead") as thread:
        upcoming: Future[Result] | None = None
        for job in jobs:
            current, upcoming = upcoming, thread.submit(function, job)
            if current is not None:
                yield current.result()
        if upcoming is not None:
            yield upcoming.result()


def run_ahead(
    jobs: Iterable[Job],
    pieces: Callable[[Job], Iterable[Callable[[], Piece]]],
    finish: Callable[[Job, list[Piece]], Result],
    *,
    threads: int,
    ahead: int,
    stopping: Event,
) -> Generator[Result, None, None]:
    """Yield `finish(job, its pieces)` of each job, in the order of the jobs.

    `threads` threads make the pieces, up to `ahead` jobs ahead; one further thread finishes jobs
    one after the other. An exception from a thread is raised here, at its job's turn. All threads
    end when the iterator ends, fails, is closed or is garbage: `stopping` is set, queued work is
    dropped, work in progress is waited for.
    """
    makers = ThreadPoolExecutor(threads, "smdt-read")
    finisher = ThreadPoolExecutor(1, "smdt-decode")
    in_pieces: deque[tuple[Job, list[Future[Piece]]]] = deque()
    finished: deque[Future[Result]] = deque()

    def finish_next() -> None:
        job, made = in_pieces.popleft()
        finished.append(finisher.submit(lambda: finish(job, [piece.result() for piece in made])))

    try:
        for job in jobs:
            in_pieces.append((job, [makers.submit(piece) for piece in pieces(job)]))
            if len(in_pieces) >= ahead:
                finish_next()
            if len(finished) > FINISHED_AHEAD:
                yield finished.popleft().result()
        while in_pieces or finished:
            if in_pieces:
                finish_next()
            yield finished.popleft().result()
    finally:
        stopping.set()
        makers.shutdown(cancel_futures=True)
        finisher.shutdown(cancel_futures=True)
