"""How many recommendations are under way at once; the others are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import faiss

from feature_repo.threads import inference_threads

T = TypeVar("T")


class Admission:
    """Runs work on a few threads, in the order in which it came.

    With so many under way at most, a request that is accepted waits for so many at most, however many are sent.
    """

    def __init__(self, threads: int, most: int) -> None:
        """``most``: requests under way, those that wait for a thread included."""
        set_threads = (faiss.omp_set_num_threads, (inference_threads(),))  # each thread has a number of its own
        self._pool = ThreadPoolExecutor(threads, "recommend", *set_threads)
        self._most, self._under_way = most, 0

    @property
    def full(self) -> bool:
        """Whether the next one is to be refused."""
        return self._under_way >= self._most

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what the work returns."""
        self._under_way += 1
        context = contextvars.copy_context()  # log lines name the request, and spans their parent
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work, *arguments)
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown()
