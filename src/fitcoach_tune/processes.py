"""Work on chunk after chunk in forked processes, its results in order."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from fitcoach_tune import interrupts
from fitcoach_tune.errors import FitcoachTuneError

FEW = 16
"""Chunks that are not worth a second process."""

_IN_FLIGHT = 2  # chunks for each process: one that it has, and one that waits
_task: Callable[[Any], Any]

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def cores() -> int:
    """How many processes can work at a time; 1 where forking a process is not safe."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def in_order(task: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Result]]:
    """Each chunk with what `task` makes of it: on all cores if there are more than `FEW`, else in this process.

    Args:
        task: any function: the processes are copies of this one. What it changes stays in the process that it ran in.
            Its results, and the chunks, are pickled on their way.

    Raises:
        FitcoachTuneError: a process was killed. And whatever the task raises, in the chunks' order.
    """
    chunks = iter(chunks)
    first = list(islice(chunks, FEW + 1))
    count = cores() if len(first) > FEW else 1
    chunks = chain(first, chunks)
    if count == 1:
        for chunk in chunks:
            yield chunk, task(chunk)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(count, context, _begin, (task,)) as pool:
        waiting: deque[tuple[Chunk, Future]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, _submit(pool, chunk)))
                if len(waiting) > _IN_FLIGHT * count:
                    chunk, future = waiting.popleft()
                    yield chunk, future.result()
            for chunk, future in waiting:
                yield chunk, future.result()
        except BrokenProcessPool:
            what = "a process that worked on the rows was killed, perhaps because memory ran out"
            raise FitcoachTuneError(what, hint="make memory free and run it again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, chunk: Any) -> Future:
    # In the midst of a fork a Ctrl-C would be lost, or be raised in the copy.
    with interrupts.postponed(), warnings.catch_warnings():
        # Newer Pythons warn of a fork beside threads. The copies take no lock that a library's thread could have had.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(_do, chunk)


# In the other process -------------------------------------------------------------------------------------------------


def _begin(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not copied
    gc.freeze()  # or looking through what was copied would copy it for good
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do(chunk: Any) -> Any:
    return _task(chunk)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
