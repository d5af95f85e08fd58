"""Reads in one trip, on a real server that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feature_repo.stores import embedded_redis
from feature_repo.stores.pipelined_reads import PipelinedReads


@pytest.fixture
def client(tmp_path: Path) -> Iterator[redis.Redis]:
    found = embedded_redis.connect(tmp_path / "redis", timeout_s=0.3)
    found.set("key", "value")
    found.rpush("list", "a", "b")
    yield found
    embedded_redis.release(tmp_path / "redis")


COMMANDS = [("GET", "key"), ("LRANGE", "list", 0, -1), ("HMGET", "none", "field")]
ANSWERS = [b"value", [b"a", b"b"], [None]]


def test_answers_are_in_the_order_of_the_commands(client: redis.Redis) -> None:
    reads = PipelinedReads(client)
    assert reads(COMMANDS) == ANSWERS and reads(COMMANDS[::-1]) == ANSWERS[::-1]


def test_a_connection_that_was_closed_is_opened_again(client: redis.Redis) -> None:
    reads = PipelinedReads(client)
    assert reads(COMMANDS) == ANSWERS
    client.client_kill_filter(_type="normal")
    assert reads(COMMANDS) == ANSWERS


def test_no_answer_is_taken_for_that_to_a_later_command(client: redis.Redis) -> None:
    reads = PipelinedReads(client)
    assert reads(COMMANDS) == ANSWERS
    client.execute_command("CLIENT", "PAUSE", 600)
    with pytest.raises(redis.TimeoutError, match="(?i)timeout|timed out"):
        reads([("GET", "key")])
    client.execute_command("CLIENT", "UNPAUSE")
    assert reads(COMMANDS[1:]) == ANSWERS[1:]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        reads([("LRANGE", "key", 0, -1), ("GET", "key")])
    assert reads(COMMANDS) == ANSWERS


def test_threads_do_not_share_a_connection(client: redis.Redis) -> None:
    reads, wrong = PipelinedReads(client), []

    def ask(number: int) -> None:
        for _ in range(200):
            if reads([("ECHO", str(number)), *COMMANDS]) != [str(number).encode(), *ANSWERS]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
