"""How many recommendations are under way at once; the others are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faiss

from feature_repo.threads import inference_threads

T = TypeVar("T")

_Work = tuple["asyncio.Future[Any]", contextvars.Context, Callable[..., Any], tuple[Any, ...]]


class Turns:
    """Runs short work in the event loop's own thread, one piece at a time, in the order in which it came.

    A thread beside the loop would fight with it for the interpreter, and cost two wake-ups a
    request. Between two pieces the loop turns, so that it can refuse what comes while too many
    wait.
    """

    def __init__(self, most: int) -> None:
        """``most``: pieces that may wait."""
        self._most, self._waiting, self._turning = most, deque[_Work](), False

    @property
    def full(self) -> bool:
        """Whether the next one is to be refused."""
        return len(self._waiting) >= self._most

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what the work returns; log lines within name the request."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, contextvars.copy_context(), work, arguments))
        if not self._turning:
            self._turning = True
            self._task = asyncio.create_task(self._turn())
        result: T = await future
        return result

    async def _turn(self) -> None:
        while self._waiting:
            future, context, work, arguments = self._waiting.popleft()
            if not future.cancelled():
                try:
                    future.set_result(context.run(work, *arguments))
                except Exception as error:  # noqa: BLE001 - it is the request's, whatever it is
                    future.set_exception(error)
            await asyncio.sleep(0)
        self._turning = False


class Aside:
    """Runs long work on a thread, one piece at a time, so that short work goes on."""

    def __init__(self, most: int) -> None:
        """``most``: pieces that may wait or be worked on."""
        set_threads = (
            faiss.omp_set_num_threads,
            (inference_threads(),),
        )  # each thread has a number of its own
        self._pool = ThreadPoolExecutor(1, "aside", *set_threads)
        self._most, self._under_way = most, 0

    @property
    def full(self) -> bool:
        """Whether the next one is to be refused."""
        return self._under_way >= self._most

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what the work returns; log lines within name the request."""
        self._under_way += 1
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, context.run, work, *arguments
            )
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown()
