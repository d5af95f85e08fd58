"""Erased users in Redis. All keys and entries are scanned: the list holds digests, not ids."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import redis
from feast import RepoConfig
from feast.infra.key_encoding_utils import deserialize_entity_key

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import DEAD_LETTERS, LOG, batch_key, recent_key
from pipelines.erasure.locations import StorageLocation
from serving.erasure import Erasure

_KEYS_PER_CALL = 1_000
_REWRITE_TIMEOUT_S = 600.0
_FILLER = "funnel:erasure:filler"
_REMEDY = (
    "see that its disk has room and that this user may CONFIG SET and BGREWRITEAOF "
    "(see Redis' own log)"
)

REWRITTEN = "rewritten"
NO_FILE = "no append-only file"
CLEAN = (REWRITTEN, NO_FILE)
"""Outcomes after which the append-only file has nothing of who was removed."""


@dataclass(frozen=True)
class OnlineRows:
    """Feast's hashes of users."""

    client: redis.Redis
    erasure: Erasure
    config: RepoConfig
    name: str = "online features"

    def find(self) -> Counter[str]:
        """Return the hashes of each erased user."""
        project = self.config.project.encode()
        keys = self.client.scan_iter(
            match=b"*" + c.USER.encode() + b"*" + project, count=_KEYS_PER_CALL
        )
        version = self.config.entity_key_serialization_version
        users = (_user_of(key.removesuffix(project), version) for key in keys)
        return Counter(self.erasure.erased.among(user for user in users if user is not None))

    def remove(self, users: Set[str]) -> None:
        """Remove the hashes, and everything else of the users in Redis."""
        for user in users:
            self.erasure.forget(user)


def _user_of(key: bytes, version: int) -> str | None:
    try:
        entity = deserialize_entity_key(key, version)
    except (ValueError, UnicodeDecodeError):
        return None  # not a key of Feast
    return entity.entity_values[0].string_val if list(entity.join_keys) == [c.USER] else None


@dataclass(frozen=True)
class KeysByUser:
    """Keys that end in a user's id, which ``key`` makes from the id."""

    client: redis.Redis
    erased: ErasedUsers
    name: str
    key: Callable[[str], str]

    def find(self) -> Counter[str]:
        """Return the keys of each erased user."""
        start = len(self.key(""))
        keys = self.client.scan_iter(match=self.key("*"), count=_KEYS_PER_CALL)
        return Counter(
            self.erased.among(key.decode(errors="surrogateescape")[start:] for key in keys)
        )

    def remove(self, users: Set[str]) -> None:
        """Remove them."""
        for user in users:
            self.client.delete(self.key(user))


@dataclass(frozen=True)
class StreamEntries:
    """Entries of a Redis Stream; ``field`` holds an event, valid or not."""

    client: redis.Redis
    erased: ErasedUsers
    name: str
    stream: str
    field: bytes

    def find(self) -> Counter[str]:
        """Return the entries of each erased user."""
        return Counter(user for _, users in self._named() for user in users)

    def remove(self, users: Set[str]) -> None:
        """Remove them."""
        for entry, named in self._named():
            if not named.isdisjoint(users):
                self.client.xdel(self.stream, entry)

    def _named(self) -> Iterator[tuple[bytes, set[str]]]:
        start = "-"
        while entries := self.client.xrange(self.stream, min=start, count=_KEYS_PER_CALL):
            for entry, fields in entries:  # type: ignore[union-attr]
                users = self.erased.named_in(
                    fields.get(self.field, b"").decode(errors="replace"), (c.USER,)
                )
                if users:
                    yield entry, users
            start = f"({entry.decode()}"


def redis_locations(
    client: redis.Redis, erasure: Erasure, config: RepoConfig
) -> list[StorageLocation]:
    """Return all locations in Redis."""
    return [
        OnlineRows(client, erasure, config),
        KeysByUser(client, erasure.erased, "recent events", recent_key),
        KeysByUser(client, erasure.erased, "lists made by batch", batch_key),
        StreamEntries(client, erasure.erased, "event log", LOG, b"event"),
        StreamEntries(client, erasure.erased, "dead letters", DEAD_LETTERS, b"entry"),
    ]


def rewrite_file(client: redis.Redis) -> str:
    """Make Redis rewrite its append-only file, which still has deleted data.

    Returns:
        one of ``CLEAN``, or what went wrong and what to do.

    """
    try:
        state: dict[str, Any] = client.info("persistence")  # type: ignore[assignment]
        if not state["aof_enabled"]:
            return NO_FILE
        # A snapshot contains deleted entries of streams, which Redis only marks; commands do not,
        # and a Redis that was started from commands does not either. So the setting stays.
        client.config_set("aof-use-rdb-preamble", "no")
        before = _wait(client)  # a rewrite that began before the deletions does not count
        # A rewrite that fails at its last step leaves the status of the one before. The size after
        # the last rewrite tells: with a value of random length in it, it is another one.
        client.set(_FILLER, "x" * secrets.randbelow(1 << 16), ex=int(_REWRITE_TIMEOUT_S))
        client.bgrewriteaof()  # type: ignore[no-untyped-call]
        after = _wait(client)
        client.delete(_FILLER)
        status = after["aof_last_bgrewrite_status"]
        if status == "ok" and after["aof_base_size"] != before["aof_base_size"]:
            return REWRITTEN
        return f"Redis could not rewrite it ({status}): {_REMEDY}"
    except redis.ResponseError as error:
        return f"Redis refused ({error}): {_REMEDY}"
    except redis.RedisError as error:
        return f"Redis did not answer ({error}): {_REMEDY}"


def _wait(client: redis.Redis) -> dict[str, Any]:
    deadline = time.monotonic() + _REWRITE_TIMEOUT_S
    while True:
        state: dict[str, Any] = client.info("persistence")  # type: ignore[assignment]
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            return state
        if time.monotonic() > deadline:
            return state | {"aof_last_bgrewrite_status": "late"}
        time.sleep(0.05)
