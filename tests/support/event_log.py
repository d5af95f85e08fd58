"""What the tests of the event log's adapters share.

Events, their Redis, and processes that are killed.
"""

import itertools
import multiprocessing
import os
import signal
import time

import redis

from feature_repo.events.log_names import recent_key
from feature_repo.stores.embedded_redis import socket_path
from serving.online.overlay import parse_overlay

numbers = itertools.count()


def event(user="u1", event_id=None, item="i1"):
    event_id = event_id or f"e{next(numbers)}"
    return {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "type": "view",
        "timestamp": time.time(),
    }


def client(workspace):
    return redis.Redis(unix_socket_path=str(socket_path(workspace.redis)))


def kill_redis(workspace):
    with client(workspace) as server:
        os.kill(server.info("server")["process_id"], signal.SIGKILL)


def overlay(workspace, user):
    """Return positions and items that a user's next request sees, oldest first."""
    with client(workspace) as server:
        return [
            (seen.position, seen.item)
            for seen in parse_overlay(server.lrange(recent_key(user), 0, -1))
        ]


def in_a_process_that_is_killed(work):
    """Run ``work``, which kills its process, in one of its own."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
