"""Erased users in Redis: keys and streams are looked through whole, id by id, since the list knows no ids."""

from __future__ import annotations

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
from pipelines.erasure.places import Place
from serving.erasure import Erasure

_STEP = 1_000
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class OnlineRows:
    """Hashes that Feast keeps of users."""

    client: redis.Redis
    erasure: Erasure
    config: RepoConfig
    name: str = "online features"

    def find(self) -> Counter[str]:
        """Return the hashes of each erased user."""
        project = self.config.project.encode()
        keys = self.client.scan_iter(match=b"*" + c.USER.encode() + b"*" + project, count=_STEP)
        version = self.config.entity_key_serialization_version
        users = (_user_of(key.removesuffix(project), version) for key in keys)
        return Counter(self.erasure.erased.among(user for user in users if user is not None))

    def remove(self, users: Set[str]) -> None:
        """Remove them, and everything else that Redis has of users."""
        for user in users:
            self.erasure.forget(user)


def _user_of(key: bytes, version: int) -> str | None:
    try:
        entity = deserialize_entity_key(key, version)
    except (ValueError, UnicodeDecodeError):
        return None  # not Feast's
    return entity.entity_values[0].string_val if list(entity.join_keys) == [c.USER] else None


@dataclass(frozen=True)
class KeysByUser:
    """Keys that end in a user's id, such as those of users' newest events; ``key`` makes them."""

    client: redis.Redis
    erased: ErasedUsers
    name: str
    key: Callable[[str], str]

    def find(self) -> Counter[str]:
        """Return the keys of each erased user."""
        start = len(self.key(""))
        keys = self.client.scan_iter(match=self.key("*"), count=_STEP)
        return Counter(
            self.erased.among(key.decode(errors="surrogateescape")[start:] for key in keys)
        )

    def remove(self, users: Set[str]) -> None:
        """Remove them."""
        for user in users:
            self.client.delete(self.key(user))


@dataclass(frozen=True)
class StreamEntries:
    """Entries of a Redis Stream; ``field`` holds an event, or what was to be one."""

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
        while entries := self.client.xrange(self.stream, min=start, count=_STEP):
            for entry, fields in entries:  # type: ignore[union-attr]
                users = self.erased.named_in(
                    fields.get(self.field, b"").decode(errors="replace"), (c.USER,)
                )
                if users:
                    yield entry, users
            start = f"({entry.decode()}"


def redis_places(client: redis.Redis, erasure: Erasure, config: RepoConfig) -> list[Place]:
    """Return all places in Redis."""
    return [
        OnlineRows(client, erasure, config),
        KeysByUser(client, erasure.erased, "recent events", recent_key),
        KeysByUser(client, erasure.erased, "lists made by batch", batch_key),
        StreamEntries(client, erasure.erased, "event log", LOG, b"event"),
        StreamEntries(client, erasure.erased, "dead letters", DEAD_LETTERS, b"entry"),
    ]


def rewrite_file(client: redis.Redis) -> str:
    """Have Redis rewrite its append-only file, which still has what was deleted, and return how that went."""
    try:
        state: dict[str, Any] = client.info("persistence")  # type: ignore[assignment]
        if not state["aof_enabled"]:
            return "no append-only file"
        # As a snapshot it would have deleted entries of streams, which Redis only marks; as
        # commands it has none, and once Redis was started from them its memory has none either. So
        # nobody sets this back.
        client.config_set("aof-use-rdb-preamble", "no")
        _wait(client)  # a rewrite that began before the deletions does not count
        client.bgrewriteaof()  # type: ignore[no-untyped-call]
        return (
            "rewritten"
            if _wait(client)["aof_last_bgrewrite_status"] == "ok"
            else "Redis could not rewrite it"
        )
    except redis.ResponseError as error:
        return f"Redis refused: {error}"


def _wait(client: redis.Redis) -> dict[str, Any]:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        state: dict[str, Any] = client.info("persistence")  # type: ignore[assignment]
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            return state
        if time.monotonic() > deadline:
            return state | {"aof_last_bgrewrite_status": "late"}
        time.sleep(0.05)
