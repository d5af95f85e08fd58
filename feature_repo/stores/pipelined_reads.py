"""Several reads of Redis in one trip, without what redis-py does around a pipeline, which takes as long as the trip."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import redis


class PipelinedReads(threading.local):
    """A connection of its own for each thread, with the client's settings. For reads only: they may be sent twice."""

    def __init__(self, client: redis.Redis) -> None:
        self._connection: Any = client.connection_pool.make_connection()

    def __call__(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the answers to some commands.

        Raises:
            redis.RedisError: Redis did not answer in time, or refused a command.

        """
        try:
            return self._ask(commands)
        except redis.TimeoutError:
            raise
        except (
            redis.ConnectionError
        ):  # Redis may have closed it long ago, or have been started again since
            return self._ask(commands)

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except BaseException:
            connection.disconnect()  # answers that were not read would be taken for those to the next commands
            raise
