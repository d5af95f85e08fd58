"""The list of erased users: it can be asked about an id, but does not reveal the ids on it.

``erasures/`` in the working folder has one JSON file for each of them, under an HMAC-SHA256 of the
id that is keyed by ``erasures/key``. The files are the truth; a set in Redis repeats their names
for servers that share Redis but not the folder (they need a copy of the key), and is filled again
after Redis was flushed.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from feature_repo.files import locked, read_json, sync_folder, write_json
from feature_repo.workspace import Workspace

LISTED = "funnel:erased"
"""Redis set of the numbers of all erasures."""

PENDING = "pending"
ERASED = "erased"
"""Values of ``state`` in an erasure's file."""

_DIGITS = 32
_NAME = re.compile(rf"([0-9a-f]{{{_DIGITS}}})\.json")
_REDIS_EVERY_S = 1.0
_SETTLED_NS = 100_000_000  # a folder's time is coarse: two quick changes look like one
_FRACTION = re.compile(r"\.0+$")
_WORD = re.compile(r"""[^\s,;:|"'{}\[\]()<>=]+""")


class ErasedUsers:
    """A process's view of the list; it follows the files."""

    def __init__(
        self, workspace: Workspace, client: redis.Redis | None = None, waits: bool = True
    ) -> None:
        """Read the list of a working folder.

        Args:
            workspace: the working folder.
            client: Redis client for the copy of the list; without it only the files count.
            waits: wait for Redis; otherwise a background thread asks it, except the first time, so
                that a slow Redis delays no caller.

        """
        self.folder = workspace.root / "erasures"
        self._redis = client
        self._numbers: frozenset[str] = frozenset()
        self._elsewhere: frozenset[str] = frozenset()
        self._in_redis: frozenset[str] = frozenset()
        self._key: bytes | None = None
        self._stamp = -1
        self._asked = 0.0
        self._waits = True
        self._asking = False
        if not waits:
            self.numbers()
            self._waits = False

    def numbers(self) -> frozenset[str]:
        """Return the numbers of all erasures."""
        self._follow_files()
        self._follow_redis()
        return self._numbers | self._elsewhere

    def among(self, user_ids: Iterable[str]) -> set[str]:
        """Return the given ids that are on the list."""
        numbers = self.numbers()
        return {user for user in user_ids if self.number(user) in numbers} if numbers else set()

    def named_in(self, text: str, keys: Collection[str]) -> set[str]:
        """Return the ids on the list that a row of text names.

        In a JSON object the values of ``keys`` count; where there are none, or it is no object,
        every word does.
        """
        if not self.numbers():
            return set()
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        named = (
            [str(row[key]).strip() for key in keys if key in row] if isinstance(row, dict) else []
        )
        # Ingest reads 123.0 as 123; the row is as it was in the file.
        named += [_FRACTION.sub("", name) for name in named]
        return self.among(named or _WORD.findall(text))

    def number(self, user_id: str) -> str:
        """Return the number that the erasure of an id has, or would have."""
        return self.digest(user_id)[:_DIGITS]

    def digest(self, user_id: str) -> str:
        """Return the keyed digest of an id, in hexadecimal digits."""
        if self._key is None:
            self._key = _key(self.folder / "key")
        return hmac.digest(self._key, user_id.encode("utf-8", "surrogatepass"), "sha256").hex()

    def proof(self, number: str) -> Path:
        """Return the file of an erasure."""
        return self.folder / f"{number}.json"

    def add(self, user_id: str) -> str:
        """Put an id on the list durably, and return the number of its erasure.

        An id that is on the list stays on it, with the same number.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = self.number(user_id)
        with self.editing(number) as proof:  # makes the file, by which the id is on the list
            proof["digest"] = self.digest(user_id)
        sync_folder(self.folder)
        if self._redis is not None:
            self._redis.sadd(LISTED, number)
        return number

    @contextlib.contextmanager
    def editing(self, number: str) -> Iterator[dict[str, Any]]:
        """Yield an erasure's file as JSON, to be changed in place under a lock."""
        with locked(self.folder / ".proofs.lock"):
            path = self.proof(number)
            proof = read_json(path) if path.is_file() else _new_proof(number)
            yield proof
            write_json(path, proof)

    def _follow_files(self) -> None:
        try:
            stamp = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if stamp == self._stamp:
            return
        names = frozenset(
            match[1] for name in os.listdir(self.folder) if (match := _NAME.fullmatch(name))
        )
        if names != self._numbers:
            self._numbers = names
            self._asked = 0.0
        if time.time_ns() - stamp > _SETTLED_NS:
            self._stamp = stamp

    def _follow_redis(self) -> None:
        now = time.monotonic()
        if self._redis is None or now - self._asked < _REDIS_EVERY_S:
            return
        self._asked = now or _REDIS_EVERY_S
        if self._waits:
            self._ask_redis(self._redis)
        elif not self._asking:
            self._asking = True
            threading.Thread(
                target=self._ask_redis, args=(self._redis,), name="erased", daemon=True
            ).start()

    def _ask_redis(self, client: redis.Redis) -> None:
        with contextlib.suppress(redis.RedisError, OSError):  # the files are enough
            # Numbers are only added, so a set of the same size is the same set.
            if client.scard(LISTED) != len(self._in_redis) or self._numbers - self._in_redis:
                self._read_redis(client)
        self._asking = False

    def _read_redis(self, client: redis.Redis) -> None:
        """Read the whole set, and add what it lacks."""
        numbers = self._numbers
        members: Any = client.smembers(LISTED)
        in_redis = frozenset(member.decode() for member in members)
        if numbers - in_redis:
            client.sadd(LISTED, *(numbers - in_redis))
        self._in_redis = in_redis | numbers
        self._elsewhere = in_redis - numbers


def _new_proof(number: str) -> dict[str, Any]:
    asked = datetime.now(UTC).isoformat(timespec="seconds")
    return {"erasure": number, "asked_at": asked, "state": PENDING, "places": {}}


def _key(path: Path) -> bytes:
    """Return the list's key; the first call creates it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(path.parent)
    return path.read_bytes()
