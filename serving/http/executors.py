"""Where the work of recommending runs, and how much of it may wait before load is shed."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

import faiss

from feature_repo.threads import inference_threads
from serving.recommender.deadline import NEVER, Deadline, StepTime

T = TypeVar("T")


class Overloaded(Exception):  # noqa: N818 - an answer, not a fault
    """Work was refused: it could not begin in time. Nothing of it was done."""


class Executor(Protocol):
    """Runs functions one at a time, with a bounded queue."""

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next request must be refused."""


class _Task(NamedTuple):
    future: asyncio.Future[Any]
    context: contextvars.Context
    deadline: Deadline
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


class LoopExecutor:
    """Runs short work in the event loop's own thread, one task at a time, in order of arrival.

    Extra threads would contend for the GIL and cost two wake-ups a request. Between two tasks the
    loop runs, so that it can refuse new requests while the queue is full. The queue is as long as
    its tasks can begin in time: work that begins late would be done for nothing.
    """

    def __init__(
        self,
        max_waiting: int,
        max_wait_s: float = float("inf"),
        on_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        """Start without work.

        Args:
            max_waiting: tasks that may wait.
            max_wait_s: seconds that a task may wait, by the mean duration of the last ones.
            on_refusal: called whenever ``run`` refuses.

        """
        self._on_refusal = on_refusal
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._duration = StepTime()
        self._waiting: deque[_Task] = deque()
        self._running = False

    @property
    def full(self) -> bool:
        """Whether the queue is full, so that the next request must be refused."""
        waiting = len(self._waiting)
        return waiting >= self._max_waiting or waiting * self._duration.seconds > self._max_wait_s

    async def run(self, work: Callable[..., T], *arguments: Any, deadline: Deadline = NEVER) -> T:
        """Return what the work returns; its log lines carry the request's id.

        Raises:
            Overloaded: the queue is full, or the deadline passed before the work could begin.

        """
        if self.full:
            self._on_refusal()
            raise Overloaded
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Task(future, contextvars.copy_context(), deadline, work, arguments))
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
                self._run(task)
            await asyncio.sleep(0)
        self._running = False

    def _run(self, task: _Task) -> None:
        if task.deadline.remaining() <= 0:
            self._on_refusal()
            task.future.set_exception(Overloaded())
            return
        start = perf_counter()
        try:
            task.future.set_result(task.context.run(task.work, *task.arguments))
        except Exception as error:  # noqa: BLE001 - the caller of run() handles it
            task.future.set_exception(error)
        self._duration.record(perf_counter() - start)


class WorkerPool:
    """Runs long work on a thread of its own, one task at a time, so that short work goes on."""

    def __init__(self, max_pending: int, on_refusal: Callable[[], object] = lambda: None) -> None:
        """``max_pending``: tasks that may wait or run; ``on_refusal`` as in ``LoopExecutor``."""
        self._on_refusal = on_refusal
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
        """Return what the work returns; its log lines carry the request's id.

        Raises:
            Overloaded: the queue is full.

        """
        if self.full:
            self._on_refusal()
            raise Overloaded
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
