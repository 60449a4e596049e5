"""Work that runs ahead of its consumer, in order, and ends with it."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import TypeVar

FINISHED_AHEAD = 3
"""Results that are prefetched: one is ready while two are in progress."""

Job = TypeVar("Job")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def prefetch_one(
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


def prefetch_jobs(
    jobs: Iterable[Job],
    pieces: Callable[[Job], Sequence[Callable[[], Piece]]],
    finish: Callable[[Job, list[Piece]], Result],
    *,
    threads: int,
    finishers: int,
    ahead: int,
    stopping: Event,
) -> Generator[Result, None, None]:
    """Yield `finish(job, its pieces)` of each job, in the order of the jobs.

    `threads` threads make the pieces, up to `ahead` jobs ahead; `finishers` threads finish jobs;
    one more takes the jobs and deals out the work, so that the consumer does nothing but wait. An
    exception from a thread is raised here, at its job's turn. All threads end when the iterator
    ends, fails, is closed or is garbage: `stopping` is set, queued work is dropped, work in
    progress is waited for.
    """
    results: SimpleQueue[Future[Result] | None] = SimpleQueue()
    room = Semaphore(FINISHED_AHEAD)
    with (
        ThreadPoolExecutor(threads, "smdt-read") as makers,
        ThreadPoolExecutor(finishers, "smdt-decode") as finishing,
        ThreadPoolExecutor(1, "smdt-deal") as dealing,
    ):

        def finish_when_there(job: Job, shares: Sequence[Future[list[Piece]]]) -> None:
            room.acquire()
            if not stopping.is_set():
                results.put(finishing.submit(lambda: finish(job, _interleaved(shares))))

        def deal() -> None:
            in_pieces: deque[tuple[Job, list[Future[list[Piece]]]]] = deque()
            for job in jobs:
                # One task a thread, not one a piece: a task costs more than most pieces do.
                todo = pieces(job)
                dealt = [todo[first::threads] for first in range(min(threads, len(todo)))]
                in_pieces.append((job, [makers.submit(_make, share, stopping) for share in dealt]))
                if len(in_pieces) >= ahead:
                    finish_when_there(*in_pieces.popleft())
                if stopping.is_set():
                    return
            while in_pieces and not stopping.is_set():
                finish_when_there(*in_pieces.popleft())

        dealer = dealing.submit(deal)
        dealer.add_done_callback(lambda _: results.put(None))
        try:
            while (result := results.get()) is not None:
                made = result.result()
                room.release()
                yield made
            dealer.result()
        finally:
            stopping.set()
            room.release()
            dealing.shutdown()
            makers.shutdown(cancel_futures=True)
            finishing.shutdown(cancel_futures=True)


def _make(share: Sequence[Callable[[], Piece]], stopping: Event) -> list[Piece]:
    made = []
    for piece in share:
        if stopping.is_set():
            raise CancelledError
        made.append(piece())
    return made


def _interleaved(shares: Sequence[Future[list[Piece]]]) -> list[Piece]:
    """Every n-th piece of n shares, back in one order."""
    made = [share.result() for share in shares]
    count = sum(map(len, made))
    return [made[number % len(made)][number // len(made)] for number in range(count)]
