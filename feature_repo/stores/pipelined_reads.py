"""Several reads of Redis in one round trip, without the overhead of redis-py's pipeline.

That overhead takes as long as the trip.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import redis


class PipelinedReads(threading.local):
    """One connection a thread, with the client's settings; for reads, which may be repeated.

    A connection is opened in another thread: the look-up of a host's name has no time limit. So a
    call never waits longer than its timeout, also while Redis hangs or is being replaced.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None
        self._opening: Future[Any] | None = None

    def __call__(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the answers to the commands.

        Raises:
            redis.RedisError: Redis did not answer in time, or refused a command.
            OSError: it cannot be reached.

        """
        try:
            return self._ask(commands)
        except redis.TimeoutError:
            raise
        except redis.ConnectionError:  # Redis may have closed it, or have been restarted
            return self._ask(commands)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection = self._connection or self._opened()
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except BaseException:
            # The next call must not read the answers that are left.
            self._connection = None
            connection.disconnect()
            raise

    def _opened(self) -> Any:
        """Return a new open connection, or go on without; the attempt is then the next call's."""
        if self._opening is None:
            self._opening = _in_thread(self._connect)
        opening = self._opening
        try:
            connection = opening.result(self._pool.connection_kwargs.get("socket_timeout"))
        except TimeoutError:
            if not opening.done():
                raise redis.TimeoutError("Redis does not accept a connection in time") from None
            self._opening = None
            raise
        except BaseException:
            self._opening = None
            raise
        self._opening = None
        return connection

    def _connect(self) -> Any:
        connection: Any = self._pool.make_connection()
        connection.connect()
        return connection


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run something in a thread that nobody has to wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    threading.Thread(target=run, name="redis connection", daemon=True).start()
    return future
