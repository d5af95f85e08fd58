"""An HTTP load generator in a process of its own: persistent connections, raw HTTP/1.1.

Every latency is recorded. Closed loop: each connection sends its next request after the answer to
the last. Open loop
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

_POPULAR = b'"retrieval_unavailable"'
_RETRY_AFTER_S = 1.0  # what the server's refusals ask for


@dataclass
class Load:
    """The answers to a load.

    Attributes:
        seconds: latency of each request that was answered with 2xx.
        statuses: number of answers by HTTP status; 0: no answer, even to a retry on a new
            connection.
        retried: number of retries.
        popular: number of accepted answers that fell back on popular items.
        answers: epoch seconds, status and body of each answer, if they were to be kept.
        took_s: duration of the whole load.

    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    retried: int = 0
    popular: int = 0
    answers: list[tuple[float, int, bytes]] = field(default_factory=list)
    took_s: float = 0.0

    def add(self, other: Load) -> None:
        """Take over the answers to a load that ran after this one."""
        self.seconds += other.seconds
        self.statuses += other.statuses
        self.retried += other.retried
        self.popular += other.popular
        self.answers += other.answers
        self.took_s += other.took_s

    def percentile(self, q: float) -> float:
        """Return a percentile of the latencies of accepted requests, in milliseconds; NaN: none."""
        return (
            round(float(np.percentile(self.seconds, q)) * 1_000, 3)
            if self.seconds
            else float("nan")
        )

    @property
    def rps(self) -> float:
        """Return accepted requests a second."""
        return round(len(self.seconds) / self.took_s, 1)

    @property
    def full_rps(self) -> float:
        """Return accepted requests a second that did not fall back on popular items."""
        return round((len(self.seconds) - self.popular) / self.took_s, 1)


class _Connection(asyncio.Protocol):
    """One persistent connection with at most one request in flight."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lost = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) >= length and self._answer:
            self._buffer = rest[length:]
            answer = self._answer
            self._answer = None
            answer.set_result((int(head[9:12]), rest[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._answer and not self._answer.done():
            self._answer.set_exception(
                exc or ConnectionResetError("the server closed the connection")
            )

    async def send(self, request: bytes) -> tuple[int, bytes]:
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
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        "content-type: application/json\r\ncontent-length: "
    )
    return [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]


@dataclass(frozen=True)
class _Plan:
    """One load; see ``load``."""

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    rate: float | None
    keep: bool
    patient: bool


class _Generator:
    """Sends the requests of one load over its connections."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._load = Load()
        self._sent = 0
        self._start = time.perf_counter()

    async def run(self) -> Load:
        """Run the load to its end."""
        await asyncio.gather(*(self._work() for _ in range(self._plan.connections)))
        self._load.took_s = time.perf_counter() - self._start
        return self._load

    async def _work(self) -> None:
        """Send requests over one connection until the time is over."""
        plan = self._plan
        end = self._start + plan.seconds
        connection: _Connection | None = None
        while (due := self._next_due()) < end:
            request = plan.requests[self._sent % len(plan.requests)]
            self._sent += 1
            if plan.rate is not None and (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)

            connection, status, body = await self._send(connection, request)
            self._load.statuses[status] += 1
            if 200 <= status < 300:
                self._load.seconds.append(time.perf_counter() - due)
                self._load.popular += _POPULAR in body
            elif plan.patient and status == 503:
                await asyncio.sleep(min(_RETRY_AFTER_S, end - time.perf_counter()))
            if plan.keep:
                self._load.answers.append((time.time(), status, body))
        if connection:
            connection.close()

    def _next_due(self) -> float:
        """Return when the next request is due: at once in a closed loop."""
        if self._plan.rate is None:
            return time.perf_counter()
        return self._start + self._sent / self._plan.rate

    async def _send(
        self, connection: _Connection | None, request: bytes
    ) -> tuple[_Connection | None, int, bytes]:
        """Send a request, with one retry on a new connection; return connection, status, body."""
        loop = asyncio.get_running_loop()
        for attempt in range(2):
            try:
                if connection is None:
                    address = ("127.0.0.1", self._plan.port)
                    _, connection = await loop.create_connection(_Connection, *address)
                return connection, *await connection.send(request)
            except OSError:
                connection = None
                self._load.retried += 1 - attempt
        return None, 0, b""


async def _run(plan: _Plan) -> Load:
    return await _Generator(plan).run()


def _main(queue: Any, plan: _Plan) -> None:
    queue.put(uvloop.run(_run(plan)))


def load(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    keep: bool = False,
    patient: bool = False,
) -> Load:
    """Load ``127.0.0.1:port`` and return the answers.

    Args:
        port: where the server listens.
        requests: whole HTTP requests, sent in turn.
        connections: number of connections.
        seconds: duration.
        rate: requests a second in an open loop; None: a closed loop.
        keep: keep the answers' bodies.
        patient: a connection waits as long as a refusal asks for before its next request.

    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    plan = _Plan(port, requests, connections, seconds, rate, keep, patient)
    process = context.Process(target=_main, args=(queue, plan))
    process.start()
    result: Load = queue.get(timeout=seconds + 60)
    process.join()
    return result
