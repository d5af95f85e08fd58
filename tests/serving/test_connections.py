"""Connections: spread over the workers, bounded in number, and none is held without a request."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.process import bounded_protocol
from serving.process.bounded_protocol import MAX_HEAD, BoundedProtocol
from serving.process.listener import ConnectionCounts, FairListener, listen

ANSWER = b"answered"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body and answer."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    length = [(b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": ANSWER})


async def with_server(work: Callable[[int], Awaitable[Any]]) -> Any:
    """Serve the app with the product's protocol and return what ``work(port)`` returns."""
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedProtocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        return await work(server.sockets[0].getsockname()[1])


async def exchange(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts of a request and return all that comes until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(-1), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


def head(size: int) -> bytes:
    return HEAD + b"x-padding: " + b"a" * size + b"\r\n\r\n"


@pytest.mark.parametrize(
    "request_parts",
    [
        [head(MAX_HEAD + 1)],
        [HEAD + b"x-padding: ", *[b"a" * 10_000] * 8],
        [HEAD, *[b"x-%d: %s\r\n" % (n, b"b" * 1_000) for n in range(80)]],
        [b"GET /" + b"c" * (MAX_HEAD + 1) + b" HTTP/1.1\r\n"],
    ],
    ids=["one header", "a header without an end", "many headers", "a path"],
)
def test_a_head_that_is_too_large_is_refused(request_parts: list[bytes]) -> None:
    answer = asyncio.run(with_server(lambda port: exchange(port, *request_parts)))
    # Closing a connection whose client still sends may cost the client the answer.
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    if answer:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 431
    assert ANSWER not in answer


def test_a_head_below_the_limit_is_answered_however_it_is_cut() -> None:
    whole = head(MAX_HEAD // 2)
    for cut in (1, 40, 1_000, len(whole) - 1):
        answer = asyncio.run(
            with_server(lambda port, at=cut: exchange(port, whole[:at], whole[at:]))
        )
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(ANSWER)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST", b"\r\n", HEAD + b"x-slow: ", HEAD + b"content-length: 9\r\n\r\nabc"],
    ids=["nothing", "a word", "an empty line", "half a head", "half a body"],
)
def test_a_client_that_stops_loses_its_connection(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_S", "BODY_S"):
        monkeypatch.setattr(bounded_protocol, name, 0.3)
    answer = asyncio.run(with_server(lambda port: exchange(port, sent)))
    assert ANSWER not in answer


def test_a_dripping_client_gets_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_protocol, "HEAD_S", 0.5)
    drops = [HEAD, *[b"x-%d: 1\r\n" % number for number in range(40)]]
    answer = asyncio.run(with_server(lambda port: exchange(port, *drops, pause_s=0.05)))
    assert ANSWER not in answer


def test_a_kept_connection_is_answered_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_protocol, "HEAD_S", 0.4)

    async def ask(port: int) -> list[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = []
        for _ in range(4):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            answers.append(await reader.readexactly(len(ANSWER)))
            await asyncio.sleep(0.3)
        writer.close()
        return answers

    assert asyncio.run(with_server(ask)) == [ANSWER] * 4


class Held(asyncio.Protocol):
    """A connection that stays open, in the set of its worker."""

    def __init__(self, held: set[Any], lost: Callable[[], None]) -> None:
        self._held = held
        self._lost = lost

    def connection_made(self, _transport: Any) -> None:
        self._held.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._held.discard(self)
        self._lost()


class Workers:
    """Some listeners of one socket, as the workers of a server have them."""

    def __init__(self, count: int, limit: int = 10_000, stuck: int = 0) -> None:
        """``stuck``: workers that have no connections and accept none."""
        self.listening = listen(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.held: list[set[Any]] = [set() for _ in range(count)]
        counts = ConnectionCounts(count + stuck)
        for slot in range(count, count + stuck):
            counts.of(slot).note(0)
        self.listeners = [
            self._listener(slot, counts, limit, self.listening.dup()) for slot in range(count)
        ]

    def _listener(
        self, slot: int, counts: ConnectionCounts, limit: int, listening: socket.socket
    ) -> FairListener:
        held = self.held[slot]
        return FairListener(
            listening,
            lambda: Held(held, lambda: self.listeners[slot].note()),
            open_connections=held.__len__,
            worker=counts.of(slot),
            max_connections=limit,
        )

    def sizes(self) -> list[int]:
        return [len(held) for held in self.held]

    async def wait(self, count: int) -> list[int]:
        """Wait until the workers hold ``count`` connections."""
        async with asyncio.timeout(20):
            while sum(self.sizes()) != count:
                await asyncio.sleep(0.01)
        return self.sizes()

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listening.close()


async def connect(workers: Workers, count: int) -> list[asyncio.StreamWriter]:
    opened = await asyncio.gather(
        *(asyncio.open_connection(*workers.address[:2]) for _ in range(count))
    )
    return [writer for _, writer in opened]


def test_connections_are_spread_evenly_also_after_some_were_closed() -> None:
    async def run() -> tuple[list[int], list[int]]:
        workers = Workers(3)
        writers = await connect(workers, 300)
        first = await workers.wait(300)
        for writer in writers[::2]:
            writer.close()
        await workers.wait(150)
        writers += await connect(workers, 150)
        second = await workers.wait(300)
        workers.close()
        for writer in writers:
            writer.close()
        return first, second

    for sizes in asyncio.run(run()):
        assert max(sizes) <= 1.25 * min(sizes) + 2, sizes


def test_a_worker_that_accepts_nothing_stops_nobody() -> None:
    async def run() -> list[int]:
        workers = Workers(1, stuck=1)
        writers = await connect(workers, 40)
        sizes = await workers.wait(40)
        workers.close()
        for writer in writers:
            writer.close()
        return sizes

    assert asyncio.run(run()) == [40]


def test_more_connections_than_may_be_open_wait_until_others_close() -> None:
    async def run() -> list[int]:
        workers = Workers(1, limit=5)
        writers = await connect(workers, 8)
        before = await workers.wait(5)
        await asyncio.sleep(0.3)
        before += workers.sizes()
        for writer in writers[:4]:
            writer.close()
        # Which of the eight are open is the kernel's choice of order: the first ones.
        await workers.wait(4)
        after = workers.sizes()
        workers.close()
        for writer in writers:
            writer.close()
        return before + after

    assert asyncio.run(run()) == [5, 5, 4]
