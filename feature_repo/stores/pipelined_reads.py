"""Several reads of Redis in one round trip, without the overhead of redis-py's pipeline.

That overhead takes as long as the trip.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import redis


class PipelinedReads(threading.local):
    """One connection a thread, with the client's settings; for reads, which may be repeated."""

    def __init__(self, client: redis.Redis) -> None:
        self._connection: Any = client.connection_pool.make_connection()

    def __call__(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the answers to the commands.

        Raises:
            redis.RedisError: Redis did not answer in time, or refused a command.

        """
        try:
            return self._ask(commands)
        except redis.TimeoutError:
            raise
        except redis.ConnectionError:  # Redis may have closed it, or have been restarted
            return self._ask(commands)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except BaseException:
            # The next call must not read the answers that are left.
            connection.disconnect()
            raise
