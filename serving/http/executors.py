"""Where the work of recommending runs, and how much of it may wait before load is shed."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import faiss

from feature_repo.threads import inference_threads

T = TypeVar("T")


class Executor(Protocol):
    """Runs functions one at a time, with a bounded queue."""

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next request must be refused."""

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what ``work(*arguments)`` returns; it runs in the caller's context."""


class _Task(NamedTuple):
    future: asyncio.Future[Any]
    context: contextvars.Context
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


class LoopExecutor:
    """Runs short work in the event loop's own thread, one task at a time, in order of arrival.

    Extra threads would contend for the GIL and cost two wake-ups a request. Between two tasks the
    loop runs, so that it can refuse new requests while the queue is full.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[_Task] = deque()
        self._running = False

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next request must be refused."""
        return len(self._waiting) >= self._max_waiting

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what the work returns; its log lines carry the request's id."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Task(future, contextvars.copy_context(), work, arguments))
        if not self._running:
            self._running = True
            self._task = asyncio.create_task(self._drain())
        result: T = await future
        return result

    async def _drain(self) -> None:
        """Run waiting tasks until there are none; skip those whose client has gone."""
        while self._waiting:
            task = self._waiting.popleft()
            if not task.future.cancelled():
                try:
                    task.future.set_result(task.context.run(task.work, *task.arguments))
                except Exception as error:  # noqa: BLE001 - the caller of run() handles it
                    task.future.set_exception(error)
            await asyncio.sleep(0)
        self._running = False


class WorkerPool:
    """Runs long work on a thread of its own, one task at a time, so that short work goes on."""

    def __init__(self, max_pending: int) -> None:
        """``max_pending``: tasks that may wait or run."""
        self._max_pending = max_pending
        self._pending = 0
        # FAISS keeps its number of threads per thread, so the new thread must set it.
        self._pool = ThreadPoolExecutor(
            1, "worker", faiss.omp_set_num_threads, (inference_threads(),)
        )

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next request must be refused."""
        return self._pending >= self._max_pending

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what the work returns; its log lines carry the request's id."""
        self._pending += 1
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, context.run, work, *arguments
            )
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Wait for the tasks that are pending."""
        self._pool.shutdown()
