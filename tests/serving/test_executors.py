"""Short work in the loop's thread, long work on a thread of its own, and when a queue is full."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from serving.http.executors import LoopExecutor, Overloaded, WorkerPool
from serving.recommender.deadline import NEVER, Breaker, Deadline, StepTime

name = contextvars.ContextVar("name", default="")


def test_tasks_run_in_order_in_the_loops_thread_and_keep_their_context() -> None:
    async def ask(executor: LoopExecutor, number: int) -> tuple[int, str, int]:
        name.set(f"request {number}")
        return await executor.run(lambda n: (n, name.get(), threading.get_ident()), number)

    async def all_of_them() -> list[tuple[int, str, int]]:
        executor = LoopExecutor(max_waiting=10)
        return await asyncio.gather(*(ask(executor, number) for number in range(5)))

    found = asyncio.run(all_of_them())
    assert found == [(number, f"request {number}", threading.get_ident()) for number in range(5)]


def test_an_error_is_the_requests_own() -> None:
    async def both() -> list[object]:
        executor = LoopExecutor(max_waiting=10)
        return await asyncio.gather(
            executor.run(int, "x"), executor.run(int, "7"), return_exceptions=True
        )

    failed, fine = asyncio.run(both())
    assert isinstance(failed, ValueError) and fine == 7


def test_a_loop_executor_is_full_while_its_queue_is() -> None:
    async def fill() -> tuple[list[bool], list[object]]:
        executor, seen = LoopExecutor(max_waiting=2), [False]
        tasks = [
            asyncio.create_task(executor.run(lambda: seen.append(executor.full))) for _ in range(3)
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [*seen, executor.full], results

    seen, results = asyncio.run(fill())
    assert seen == [False, False, False, False]
    assert [type(result) for result in results] == [type(None), type(None), Overloaded]


def test_a_cancelled_task_is_not_run() -> None:
    async def give_up() -> list[int]:
        executor, done = LoopExecutor(max_waiting=9), list[int]()
        tasks = [asyncio.create_task(executor.run(done.append, number)) for number in range(3)]
        await asyncio.sleep(0)  # all wait, the first has its turn next
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    assert asyncio.run(give_up()) == [0, 2]


def test_the_queue_is_as_long_as_its_tasks_can_begin_in_time() -> None:
    """A queue of fixed length would make every request late on a slow machine."""

    async def fill() -> tuple[list[bool], int]:
        refused: list[int] = []
        executor = LoopExecutor(100, max_wait_s=0.05, on_refusal=lambda: refused.append(1))
        for _ in range(30):  # it has learned that a task takes about 20 ms
            await executor.run(time.sleep, 0.02)
        tasks = [asyncio.create_task(executor.run(time.sleep, 0.0)) for _ in range(20)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [isinstance(result, Overloaded) for result in results], len(refused)

    overloaded, refused = asyncio.run(fill())
    assert 1 <= overloaded.index(True) <= 4, "a few may wait"
    assert sum(overloaded) == refused > 10


def test_work_whose_time_has_passed_is_refused_and_not_done() -> None:
    async def late() -> tuple[list[object], list[int]]:
        executor, done = LoopExecutor(9), list[int]()
        tasks = [
            asyncio.create_task(executor.run(done.append, n, deadline=Deadline(seconds)))
            for n, seconds in enumerate((10.0, -1.0, 10.0))
        ]
        return await asyncio.gather(*tasks, return_exceptions=True), done

    results, done = asyncio.run(late())
    assert done == [0, 2]
    assert [type(result) for result in results] == [type(None), Overloaded, type(None)]


def test_a_full_worker_pool_refuses() -> None:
    async def run() -> list[object]:
        pool, go = WorkerPool(max_pending=2), threading.Event()
        tasks = [asyncio.create_task(pool.run(go.wait, 5)) for _ in range(5)]
        await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        pool.close()
        return results

    assert [type(result) for result in asyncio.run(run())] == [bool, bool] + [Overloaded] * 3


def test_a_worker_pool_uses_another_thread_and_can_be_full() -> None:
    async def run() -> tuple[int, bool, bool]:
        pool, go = WorkerPool(max_pending=1), threading.Event()
        task = asyncio.create_task(pool.run(lambda: (go.wait(5), threading.get_ident())[1]))
        await asyncio.sleep(0)
        full = pool.full
        go.set()
        thread = await task
        pool.close()
        return thread, full, pool.full

    thread, full, after = asyncio.run(run())
    assert thread != threading.get_ident()
    assert (full, after) == (True, False)


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("serving.recommender.deadline.time.monotonic", lambda: now[0])
    breaker = Breaker(failures=3, open_s=1.0)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert not breaker.closed and not breaker.allows()
    now[0] += 1.1
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.failed()
    assert not breaker.allows()
    now[0] += 1.1
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.closed and breaker.allows()


def test_a_step_is_left_out_where_it_does_not_fit_and_tried_again_some_time() -> None:
    cost = StepTime(weight=1.0)
    assert cost.fits(NEVER)
    cost.record(1.0)
    assert cost.fits(NEVER) and not cost.fits(Deadline(0.5))
    assert any(cost.fits(Deadline(0.5)) for _ in range(50))
    assert not StepTime().fits(Deadline(-1.0))
