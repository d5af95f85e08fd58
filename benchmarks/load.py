"""Load on one HTTP endpoint from a process of its own: kept connections, raw HTTP/1.1, every latency kept.

Closed loop: each connection sends its next request when the answer to the last is there. Open loop
(``rate``): requests are due at fixed times, and a latency counts from when its request was due, so
that a server that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop


@dataclass
class Load:
    """What came back.

    Attributes:
        seconds: how long each request took that was answered with 2xx.
        statuses: how many answers of each HTTP status; 0: no answer, also not to a second try on a
            new connection.
        retried: how many second tries there were.
        answers: epoch seconds, status and body of each answer, if they were to be kept.
        took_s: the whole load.

    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    retried: int = 0
    answers: list[tuple[float, int, bytes]] = field(default_factory=list)
    took_s: float = 0.0

    def percentile(self, q: float) -> float:
        """Return a percentile of the latencies of accepted requests in milliseconds, NaN if there are none."""
        return (
            round(float(np.percentile(self.seconds, q)) * 1_000, 3)
            if self.seconds
            else float("nan")
        )

    @property
    def rps(self) -> float:
        """Return accepted requests a second."""
        return round(len(self.seconds) / self.took_s, 1)


class _Connection(asyncio.Protocol):
    """One kept connection with one request under way."""

    def __init__(self) -> None:
        self._buffer, self._lost = b"", False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) >= length and self._answer:
            self._buffer = rest[length:]
            answer, self._answer = self._answer, None
            answer.set_result((int(head[9:12]), rest[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(
                exc or ConnectionResetError("the server closed the connection")
            )

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        if self._lost:
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


def encode_requests(path: str, bodies: Sequence[bytes]) -> list[bytes]:
    """Return whole HTTP requests that POST these bodies."""
    head = f"POST {path} HTTP/1.1\r\nhost: funnel\r\ncontent-type: application/json\r\ncontent-length: "
    return [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]


async def _load(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    rate: float | None,
    keep: bool,
) -> Load:
    loop, load, number = asyncio.get_running_loop(), Load(), 0
    start = time.perf_counter()
    end = start + seconds

    async def asked(
        connection: _Connection | None, request: bytes
    ) -> tuple[_Connection | None, int, bytes]:
        for attempt in range(2):
            try:
                if connection is None:
                    _, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
                return connection, *await connection.ask(request)
            except OSError:
                connection = None
                load.retried += 1 - attempt
        return None, 0, b""

    async def work() -> None:
        nonlocal number
        connection: _Connection | None = None
        while True:
            due = time.perf_counter() if rate is None else start + number / rate
            if due >= end:
                break
            request = requests[number % len(requests)]
            number += 1
            if rate is not None and (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            connection, status, body = await asked(connection, request)
            load.statuses[status] += 1
            if 200 <= status < 300:
                load.seconds.append(time.perf_counter() - due)
            if keep:
                load.answers.append((time.time(), status, body))
        if connection:
            connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    load.took_s = time.perf_counter() - start
    return load


def _main(queue: Any, *arguments: Any) -> None:
    queue.put(uvloop.run(_load(*arguments)))


def load(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    rate: float | None = None,
    keep: bool = False,
) -> Load:
    """Load ``127.0.0.1:port`` and return what came back.

    Args:
        port: where the server listens.
        requests: whole HTTP requests, sent in turn.
        connections: how many at once.
        seconds: for so long.
        rate: requests a second in an open loop; None: a closed loop.
        keep: keep the answers' bodies.

    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(
        target=_main, args=(queue, port, requests, connections, seconds, rate, keep)
    )
    process.start()
    found: Load = queue.get(timeout=seconds + 60)
    process.join()
    return found
