"""The same work for many jobs, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from .command_line import UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Result]]:
    """Each job's number and what the function makes of it, as soon as that is there. The first error ends all work.

    Raises:
        UsageError: a process was killed, as the system does where memory ends.
    """
    if workers == 1 or len(jobs) < 2:
        yield from enumerate(map(function, jobs))
        return
    # spawned, since a fork of a program with threads, such as pyarrow's, may hang
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UsageError(f"--workers {workers}: a process was killed; fewer need less memory") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
