"""Executors that run the tasks of a job: the interface, and a pool of processes on this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Protocol, TypeAlias, TypeVar

from data_shards.base.errors import ShardError

Task = TypeVar("Task")
Result = TypeVar("Result")
AdvanceCallback: TypeAlias = Callable[[int], None]

REFRESH_SECONDS = 0.2


class Executor(Protocol):
    """Runs `function(task, advance)` for every task; results come in order of completion.

    `run_tasks` is one, for this machine; `RayExecutor` another. What a task writes may not depend
    on which of them runs it, nor on how often: a task that was lost may run again.
    """

    def __call__(
        self,
        function: Callable[[Task, AdvanceCallback], Result],
        tasks: Sequence[Task],
        workers: int | None,
        advance: AdvanceCallback,
        preload: Sequence[str] = (),
    ) -> Generator[Result, None, None]:
        """As `run_tasks`; `workers` is how many tasks run at once, None as many as can."""
        ...


def no_progress(samples: int) -> None:
    """Ignore progress."""


def run_tasks(
    function: Callable[[Task, AdvanceCallback], Result],
    tasks: Sequence[Task],
    workers: int | None,
    advance: AdvanceCallback,
    preload: Sequence[str] = (),
) -> Generator[Result, None, None]:
    """Run `function(task, advance)` for every task; results come in order of completion.

    Closing the iterator, or an exception in the caller, ends the workers at once; so does the
    death of this process.

    Args:
        function: must pickle when `workers` is more than 1; it is sent to each worker once.
        tasks: must pickle too.
        workers: processes; None is one a core, 1 runs everything in this one.
        advance: called with the number of samples that were finished since the last call.
        preload: modules that are slow to import: once for all workers, not once in each.

    Raises:
        ShardError: a worker was killed.
    """
    processes = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if processes <= 1:
        return (function(task, advance) for task in tasks)
    return _run_in_processes(function, tasks, processes, advance, preload)


def _run_in_processes(
    function: Callable[[Task, AdvanceCallback], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: AdvanceCallback,
    preload: Sequence[str],
) -> Generator[Result, None, None]:
    # Workers are forked from a server process that has no threads and nothing but the preload.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    done_samples = context.Value("q", 0)
    lifeline, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_begin, initargs=(function, done_samples, lifeline)
    )
    try:
        waiting: set[Future[Result]] = {pool.submit(_work, task) for task in tasks}
        reported = 0
        while waiting:
            done, waiting = wait(waiting, REFRESH_SECONDS, FIRST_COMPLETED)
            total = done_samples.value
            advance(total - reported)
            reported = total
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise ShardError(
            "A worker process was killed, most often because memory ran out: "
            "give fewer --workers and start the same command again; what is finished stays."
        ) from None
    except BaseException:
        our_end.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        our_end.close()


_function: Callable[..., Any]
_done_samples: "Synchronized[int]"


def _begin(
    function: Callable[..., Any], done_samples: "Synchronized[int]", lifeline: Connection
) -> None:
    global _function, _done_samples
    _function, _done_samples = function, done_samples
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()


def _die_with_parent(lifeline: Connection) -> None:
    """Nothing is ever sent: the pipe becomes readable when the other end is closed or dead."""
    lifeline.poll(None)
    os._exit(1)


def _work(task: object) -> Any:  # noqa: ANN401  (whatever the function returns)
    return _function(task, _advance)


def _advance(samples: int) -> None:
    with _done_samples.get_lock():
        _done_samples.value += samples
